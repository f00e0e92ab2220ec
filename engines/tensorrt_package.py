"""The `tensorrt` and `tensorrt_rtx` packages: imported only when needed, told apart from placeholders, and heard."""

from __future__ import annotations

import functools
import importlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import TYPE_CHECKING, Final, Literal

from engines.errors import CannotRunHere
from engines.extras import Extra, pip_install

if TYPE_CHECKING:
    import tensorrt as trt

__all__ = ["OLDEST_SM", "Messages", "TensorRTName", "load", "open_log", "reason", "rtx_sms"]

TensorRTName = Literal["tensorrt", "tensorrt-rtx"]

OLDEST_SM: Final = 75  # Turing: the oldest GPU whose INT8 tensor cores TensorRT 10, 11 and RTX use

_MODULES: Final[Mapping[TensorRTName, str]] = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
_EXTRAS: Final[Mapping[TensorRTName, Extra]] = {"tensorrt": "tensorrt", "tensorrt-rtx": "rtx"}
_JETSON: Final = " (on a Jetson, JetPack brings TensorRT: use a virtual environment made with --system-site-packages)"


@dataclass
class Messages:
    """What the package's C++ side said since `open_log`."""

    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def load(name: TensorRTName) -> ModuleType:
    """Import the package.

    Args:
        name: of the runtime.

    Returns:
        The module.

    Raises:
        CannotRunHere: it is not installed, its libraries do not load, it is a placeholder without a builder, or it
            is older than strongly typed networks.
    """
    module_name = _MODULES[name]
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.partition(".")[0] == module_name:
            raise CannotRunHere(f"The Python package {module_name} is not installed.", _install(name)) from error
        raise _does_not_load(name, error) from error
    except (ImportError, OSError, RuntimeError) as error:
        raise _does_not_load(name, error) from error
    spec = module.__spec__
    if spec is not None and spec.origin is None:  # a folder that holds type stubs, or that an uninstall left
        raise CannotRunHere(
            f"The Python package {module_name} is not installed: its folder holds no code.", _install(name)
        )
    if not hasattr(module, "Builder"):
        raise CannotRunHere(
            f"The Python package {module_name} is installed but is only a placeholder: it has no Builder.",
            f"pip uninstall {module_name}, then {_install(name)}",
        )
    # 11 types every network strongly and may drop the flag; before 10 an INT8 flag stood where it is missing
    if not hasattr(module.NetworkDefinitionCreationFlag, "STRONGLY_TYPED") and hasattr(module.BuilderFlag, "INT8"):
        raise CannotRunHere(
            f"{module_name} {module.__version__} has no strongly typed networks.",
            f"faq-deploy needs TensorRT 10 or newer: {_install(name)}",
        )
    return module


def rtx_sms() -> tuple[int, ...]:
    """GPU architectures that the installed TensorRT-RTX builds for, such as (75, 80, 86, 89, 120, 121).

    Returns:
        Compute capabilities as whole numbers, rising.

    Raises:
        CannotRunHere: tensorrt_rtx is missing.
    """
    names = load("tensorrt-rtx").ComputeCapability.__members__
    return tuple(sorted(int(name[2:]) for name in names if name.startswith("SM")))


def open_log(name: TensorRTName) -> tuple[trt.ILogger, Messages]:
    """The package's one logger and an empty record of what it will hear.

    A process keeps the first logger that any builder or runtime was made with and ignores later ones, so there is
    one a package; it forgets what it heard before.

    Args:
        name: of the runtime.

    Returns:
        The logger, for Builder, OnnxParser and Runtime; and what it hears.

    Raises:
        CannotRunHere: as `load`.
    """
    logger, messages = _logger(name)
    messages.errors.clear()
    messages.warnings.clear()
    return logger, messages


def reason(messages: Messages, otherwise: str) -> str:
    """The errors as one sentence without source positions, or `otherwise` if there were none."""
    said = list(dict.fromkeys(_plain(text) for text in messages.errors))
    return "; ".join(said).rstrip(".") if said else otherwise


@functools.cache
def _logger(name: TensorRTName) -> tuple[trt.ILogger, Messages]:
    module = load(name)
    messages = Messages()
    kept = {"INTERNAL_ERROR": messages.errors, "ERROR": messages.errors, "WARNING": messages.warnings}

    class Log(module.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            module.ILogger.__init__(self)  # its documentation asks for this explicit call

        def log(self, severity: object, msg: str) -> None:
            record = kept.get(getattr(severity, "name", ""))
            if record is not None:
                record.append(msg)

    return Log(), messages


def _does_not_load(name: TensorRTName, error: Exception) -> CannotRunHere:
    first = (str(error).splitlines() or [type(error).__name__])[0]
    return CannotRunHere(
        f"The Python package {_MODULES[name]} is installed but does not load: {first}.",
        f"install it again with its libraries: {_install(name)}",
    )


def _install(name: TensorRTName) -> str:
    return f"{pip_install(_EXTRAS[name])}{_JETSON if name == 'tensorrt' else ''}."


def _plain(text: str) -> str:
    """ "IBuilder::f: Error Code 1: Myelin ([a.cpp:3: g] It failed. In h at /b.cpp:4)" -> "Myelin: It failed."."""
    text = re.sub(r"^\w+(::\w+)*: Error Code \d+: ", "", text.strip())
    text, positions = re.subn(r"\s*In \w+ at \S+?\)?$", "", text)
    text = re.sub(r"\[\w+\.\w+:\d+: \w+\]\s*", "", text)
    if positions:  # the bracket that held the sentence lost its end
        text = re.sub(r"^([\w ]+?) \((?=[^)]*(\([^)]*\)[^)]*)*$)", r"\1: ", text)
    return " ".join(text.split())
