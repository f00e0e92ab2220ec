"""Settings of one TensorRT build: typing, GPUs and versions to run on, memory, kernel timings, batch sizes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from engines.build_options import Hardware
from engines.errors import CannotRunHere, InputError
from engines.profile import Profile, Shapes
from engines.tensorrt_api import TensorRTApi, rtx_api, rtx_config

if TYPE_CHECKING:
    import tensorrt as trt

__all__ = [
    "add_profile",
    "allow_other_hardware",
    "allow_other_versions",
    "creation_flags",
    "limit_workspace",
    "measured_timings",
    "tell_layers",
    "use_architecture",
    "use_timings",
]

_T = TypeVar("_T")

Level = Callable[["type[trt.HardwareCompatibilityLevel]"], "trt.HardwareCompatibilityLevel"]

_LEVELS: Final[Mapping[Hardware, Level]] = {
    "exact": lambda level: level.NONE,
    "same-cc": lambda level: level.SAME_COMPUTE_CAPABILITY,
    "ampere+": lambda level: level.AMPERE_PLUS,
}


def creation_flags(api: TensorRTApi) -> int:
    """Flags of a strongly typed network.

    TensorRT 11 types every network strongly: there the flag is ignored, and a later one may drop it.

    Args:
        api: the package.

    Returns:
        A bit mask for `create_network`.
    """
    flag = getattr(api.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def tell_layers(api: TensorRTApi, config: trt.IBuilderConfig) -> None:
    """Keep in the engine what each layer became, for the engine inspector; it costs no speed."""
    config.profiling_verbosity = api.ProfilingVerbosity.DETAILED


def use_architecture(config: trt.IBuilderConfig, sm: int) -> None:
    """Build ahead of time for one GPU architecture (TensorRT-RTX only).

    Args:
        config: of a builder of tensorrt_rtx.
        sm: the architecture as one number; 8.6 is 86.

    Raises:
        CannotRunHere: the architecture is not accepted.
    """
    settings = rtx_config(config)
    settings.num_compute_capabilities = 1
    if not settings.set_compute_capability(getattr(rtx_api().ComputeCapability, f"SM{sm}"), 0):
        raise CannotRunHere(f"TensorRT-RTX does not accept SM {sm}.", "leave it out, or upgrade tensorrt_rtx.")


def allow_other_hardware(api: TensorRTApi, config: trt.IBuilderConfig, hardware: Hardware) -> None:
    """Let the engine run on other GPUs than the one it is built on.

    Args:
        api: the package.
        config: to change.
        hardware: which GPUs.

    Raises:
        CannotRunHere: this TensorRT is older than the level, or lacks it on this platform.
    """
    if hardware == "exact":
        return
    try:
        level = _LEVELS[hardware](api.HardwareCompatibilityLevel)
    except AttributeError as error:
        raise CannotRunHere(
            f"--hardware {hardware} is unknown to TensorRT {api.__version__}.", "leave it out, or upgrade TensorRT."
        ) from error
    config.hardware_compatibility_level = level
    if config.hardware_compatibility_level != level:  # a level that a platform lacks is ignored without an exception
        raise CannotRunHere(
            f"--hardware {hardware} is not accepted by TensorRT {api.__version__} on this platform.", "leave it out."
        )


def allow_other_versions(api: TensorRTApi, config: trt.IBuilderConfig) -> None:
    """Let later versions of TensorRT load the engine."""
    config.set_flag(api.BuilderFlag.VERSION_COMPATIBLE)


def limit_workspace(api: TensorRTApi, config: trt.IBuilderConfig, size: int) -> None:
    """Set the most GPU memory, in bytes, that a kernel may use while it runs."""
    config.set_memory_pool_limit(api.MemoryPoolType.WORKSPACE, size)


def use_timings(config: trt.IBuilderConfig, data: bytes) -> bool:
    """Start from the kernel timings of earlier builds.

    Args:
        config: to change.
        data: as `measured_timings` gave them; empty where there are none.

    Returns:
        False where they are damaged, or of another GPU or version, so that timing starts anew.
    """
    saved = _or_none(config.create_timing_cache(data))
    if saved is not None and config.set_timing_cache(saved, ignore_mismatch=False):
        return True
    config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)
    return False


def measured_timings(config: trt.IBuilderConfig) -> bytes | None:
    """The kernel timings after a build, for the next one; None where TensorRT gives none."""
    cache = _or_none(config.get_timing_cache())
    return None if cache is None else bytes(memoryview(cache.serialize()))


def add_profile(
    api: TensorRTApi,
    builder: trt.Builder,
    config: trt.IBuilderConfig,
    network: trt.INetworkDefinition,
    profile: Profile,
    onnx_path: Path,
) -> dict[str, Shapes]:
    """Give every input whose batch is dynamic its smallest, best and largest size.

    Args:
        api: the package.
        builder: of the network.
        config: to change.
        network: with any number of inputs; those of a fixed shape need no profile.
        profile: batch sizes.
        onnx_path: for messages.

    Returns:
        Each input's three shapes, the fixed ones three times the same.

    Raises:
        InputError: an input is dynamic in more than its batch, or the profile is not accepted.
    """
    shapes: dict[str, Shapes] = {}
    optimization = builder.create_optimization_profile()
    dynamic = False
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        shape = tuple(int(tensor.shape[axis]) for axis in range(len(tensor.shape)))
        if -1 in shape[1:]:
            raise InputError(
                f"{onnx_path}: input {tensor.name!r} has shape {shape}, dynamic in more than its batch.",
                "export with a fixed image size; only the first dimension may be dynamic.",
            )
        shapes[tensor.name] = profile.shapes(shape)
        if -1 in shape:
            dynamic = True
            smallest, best, largest = (api.Dims(list(sizes)) for sizes in shapes[tensor.name])
            optimization.set_shape(tensor.name, smallest, best, largest)
    if dynamic and config.add_optimization_profile(optimization) < 0:
        raise InputError(f"{onnx_path}: profile {profile} is not accepted.", "pass another --batch MIN:OPT:MAX.")
    return shapes


def _or_none(made: _T) -> _T | None:
    """What the bindings type as always there: their C++ side returns nothing where it failed."""
    return made
