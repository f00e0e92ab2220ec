"""What an engine really runs, as TensorRT's engine inspector tells it on the GPU that built it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engines.tensorrt_api import TensorRTApi
from engines.tensorrt_package import Messages, reason

if TYPE_CHECKING:
    import tensorrt as trt

__all__ = ["layers_as_json"]


def layers_as_json(
    api: TensorRTApi, logger: trt.ILogger, messages: Messages, engine: bytes, *, host_code: bool
) -> tuple[str | None, str | None]:
    """Ask a fresh engine for its layers.

    The engine is good without this, so a failure is told and goes no further.

    Args:
        api: the package that built it, on the same GPU.
        logger: as `open_log` gives it.
        messages: what it heard.
        engine: serialized.
        host_code: it carries a runtime of its own, as version-compatible engines do; we built it, so we trust it.

    Returns:
        The inspector's JSON, or None and why there is none.
    """
    try:
        runtime = api.Runtime(logger)
        if host_code:
            runtime.engine_host_code_allowed = True
        loaded = runtime.deserialize_cuda_engine(engine)
        inspector = None if loaded is None else loaded.create_engine_inspector()
        text = None if inspector is None else inspector.get_engine_information(api.LayerInformationFormat.JSON)
    except (TypeError, RuntimeError, AttributeError, MemoryError) as error:  # its C++ factories returned nothing
        return None, _untold(reason(messages, str(error).rstrip(".")))
    return (text, None) if text else (None, _untold(reason(messages, "it gave no reason")))


def _untold(why: str) -> str:
    return f"TensorRT did not tell what the engine's layers became: {why}. What is said of them is a prediction."
