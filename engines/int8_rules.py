"""Which convolutions TensorRT has INT8 kernels for: one table, with its sources."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

__all__ = ["RULES", "Convolution", "Int8Rule", "no_int8_kernel"]


@dataclass(frozen=True)
class Convolution:
    """What decides: channels in and out, groups, spatial dimensions, and whether it is transposed."""

    inputs: int
    outputs: int
    groups: int = 1
    dimensions: int = 2
    transposed: bool = False


@dataclass(frozen=True)
class Int8Rule:
    """One limit.

    Args:
        breaks: whether a convolution is outside of it.
        says: a clause for messages, after "TensorRT has no INT8 kernel for it: ".
        source: where TensorRT documents it.
    """

    breaks: Callable[[Convolution], bool]
    says: str
    source: str


def _is_depthwise(conv: Convolution) -> bool:
    return conv.groups > 1 and conv.groups == conv.inputs and conv.outputs % conv.groups == 0


def _awkward_groups(conv: Convolution) -> bool:
    if conv.groups == 1 or _is_depthwise(conv):  # depthwise ones have kernels of their own
        return False
    return bool((conv.inputs // conv.groups) % 4 or (conv.outputs // conv.groups) % 4)


RULES: Final = (
    Int8Rule(
        _awkward_groups,
        "the channels of a group must be a multiple of 4, both in and out",
        "IConvolutionLayer::setNbGroups and IDeconvolutionLayer::setNbGroups, NvInfer.h",
    ),
)


def no_int8_kernel(conv: Convolution) -> str | None:
    """Why TensorRT would run a quantized convolution in float; None where it has an INT8 kernel.

    The codes are the same either way: a code times a power of two is exact in float, too.

    Args:
        conv: its channels and groups.

    Returns:
        A clause such as "the channels of a group must be a multiple of 4, both in and out".

    Source:
        TensorRT API, IConvolutionLayer::setNbGroups: "When using groups in int8 mode, the size of the groups must be a
        multiple of 4 for both input and output."
    """
    return next((rule.says for rule in RULES if rule.breaks(conv)), None)
