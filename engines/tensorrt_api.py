"""The part of TensorRT's Python API that our builder uses, by name and type: the same in TensorRT 10, 11 and RTX."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, cast

from engines.tensorrt_package import TensorRTName, load

if TYPE_CHECKING:
    import tensorrt as trt

__all__ = ["RtxApi", "RtxConfig", "TensorRTApi", "rtx_api", "rtx_config", "tensorrt_api"]


class TensorRTApi(Protocol):
    """The module `tensorrt`, or `tensorrt_rtx`, whose builder has the same names.

    With the package `tensorrt-stubs` installed, mypy checks every use of them; without it they are not checked.
    """

    __version__: str
    BuilderFlag: type[trt.BuilderFlag]
    Builder: type[trt.Builder]
    Dims: type[trt.Dims]
    HardwareCompatibilityLevel: type[trt.HardwareCompatibilityLevel]
    LayerInformationFormat: type[trt.LayerInformationFormat]
    MemoryPoolType: type[trt.MemoryPoolType]
    NetworkDefinitionCreationFlag: type[trt.NetworkDefinitionCreationFlag]
    OnnxParser: type[trt.OnnxParser]
    ProfilingVerbosity: type[trt.ProfilingVerbosity]
    Runtime: type[trt.Runtime]


class RtxApi(Protocol):
    """What only `tensorrt_rtx` has: GPU architectures to build for, `ComputeCapability.SM86` and so on."""

    ComputeCapability: type[object]


class RtxConfig(Protocol):
    """What only the builder configuration of `tensorrt_rtx` has."""

    num_compute_capabilities: int

    def set_compute_capability(self, compute_capability: object, index: int) -> bool:
        """Choose the architecture at a position; False where it is not accepted."""
        ...


def tensorrt_api(name: TensorRTName) -> TensorRTApi:
    """Import a package and give its builder's names types.

    Args:
        name: of the runtime.

    Returns:
        The module.

    Raises:
        CannotRunHere: as `tensorrt_package.load`.
    """
    return cast("TensorRTApi", load(name))


def rtx_api() -> RtxApi:
    """Import TensorRT-RTX for what only it has.

    Returns:
        The module.

    Raises:
        CannotRunHere: it is missing.
    """
    return cast("RtxApi", load("tensorrt-rtx"))


def rtx_config(config: trt.IBuilderConfig) -> RtxConfig:
    """The same configuration, with what only TensorRT-RTX's has."""
    return cast("RtxConfig", config)
