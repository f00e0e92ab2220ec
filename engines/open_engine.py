"""From an engine's folder to a runner: nothing is loaded before its record fits the files and this machine."""

from __future__ import annotations

from pathlib import Path

from engines import engine_manifest
from engines.errors import InputError
from engines.host import this_host
from engines.ort import OrtRunner
from engines.runner import Runner
from engines.tensorrt_runner import TensorRTRunner

__all__ = ["open_engine"]


def open_engine(folder: Path, onnx_sha256: str | None = None) -> Runner:
    """Check an engine's record against its files and this machine, then load it.

    A file that is cut short, foreign or of another GPU or version never reaches a runtime, which would crash on it or
    name the wrong cause.

    Args:
        folder: `engines/NAME`, as `faq-deploy build` leaves it.
        onnx_sha256: of the ONNX file that it must have been built from; None takes the record's word.

    Returns:
        A runner; close it after use.

    Raises:
        InputError: the engine is missing, changed, or built from another file.
        CannotRunHere: no GPU, another one, or another version of the runtime.
    """
    manifest = engine_manifest.check(folder, onnx_sha256, this_host())
    engine = folder / manifest.file
    if manifest.runtime == "onnxruntime":
        return OrtRunner(engine)
    if manifest.baseline:
        raise InputError(
            f"{folder} is a net without quantizers, to compare speed with.", "open the engine without -fp16."
        )
    return TensorRTRunner(engine, manifest.runtime, host_code=manifest.options.get("version_compatible") is True)
