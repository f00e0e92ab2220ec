"""How an engine is to be built: everything beside the network and the GPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from engines.host import RuntimeName
from engines.profile import DEFAULT_PROFILE, Profile

__all__ = ["BuildOptions", "Hardware", "recorded"]

Hardware = Literal["exact", "same-cc", "ampere+"]


@dataclass(frozen=True)
class BuildOptions:
    """Choices of `faq-deploy build`; the defaults make the fastest engine for the GPU at hand.

    Args:
        profile: batch sizes for inputs whose first dimension is dynamic.
        hardware: which other GPUs a TensorRT engine must run on: "exact" none, "same-cc" those of the same compute
            capability, "ampere+" Ampere and newer.
        version_compatible: later TensorRT versions of the same major number can load the engine too.
        fp16_rest: layers that were left in float compute in FP16.
        fp16_baseline: also build the net without quantization in FP16, to compare speed with.
        int4_linear: linear layers with 4-bit weights keep them in INT4, where the GPU and the runtime take it.
        rebuilds: builds of each engine; the worst counts.
        workspace_mib: most GPU memory a kernel may use while it runs, in MiB; None takes what is free.
    """

    profile: Profile = DEFAULT_PROFILE
    hardware: Hardware = "exact"
    version_compatible: bool = False
    fp16_rest: bool = False
    fp16_baseline: bool = False
    int4_linear: bool = False
    rebuilds: int = 1
    workspace_mib: int | None = None


# what an engine of each runtime depends on, beside its batch sizes, which are recorded as shapes
_MATTERS: Final[Mapping[RuntimeName, tuple[str, ...]]] = {
    "onnxruntime": (),
    "tensorrt-rtx": ("fp16_rest", "int4_linear", "rebuilds"),
    "tensorrt": ("hardware", "version_compatible", "fp16_rest", "int4_linear", "rebuilds", "workspace_mib"),
}


def recorded(options: BuildOptions, runtime: RuntimeName) -> dict[str, object]:
    """The choices that an engine's record holds: another one of them needs another engine.

    Args:
        options: of the build.
        runtime: of the engine.

    Returns:
        Values by the name of the option.
    """
    return {name: getattr(options, name) for name in _MATTERS[runtime]}
