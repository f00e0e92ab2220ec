"""Layers without parameters: sums and products of tensors, pools, and ops that only move values."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engines.windows import pool_of, pooled_sum
from faq_deploy.max_pool import max_pool2d
from faq_deploy.shifted import Shifted

__all__ = [
    "Add",
    "AveragePool",
    "Concat",
    "Constant",
    "Flatten",
    "GlobalAveragePool",
    "MaxPool",
    "Multiply",
    "Pad",
    "Permute",
    "Reshape",
    "Slice",
    "StochasticDepth",
    "Subtract",
]


_MAX_POOLS: Final[Mapping[int, Callable[..., Tensor]]] = {1: F.max_pool1d, 2: max_pool2d, 3: F.max_pool3d}


class Add(nn.Module):
    """Sum of two tensors, which may broadcast."""

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        """Elementwise sum."""
        return left + right


class Subtract(nn.Module):
    """Difference of two tensors, which may broadcast."""

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        """Elementwise difference."""
        return left - right


class Multiply(nn.Module):
    """Product of two tensors, which may broadcast; of codes it is exact."""

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        """Elementwise product."""
        return left * right


class Constant(nn.Module):
    """A tensor that does not depend on the input.

    Args:
        value: float32, shape (1, ...).
        batched: repeat it for every image of the batch (a concat needs that, a sum doesn't).
    """

    value: Tensor

    def __init__(self, value: Tensor, batched: bool) -> None:
        super().__init__()
        self.batched = batched
        self.register_buffer("value", value)

    def forward(self, images: int) -> Tensor:
        """(images, ...), or (1, ...) if not batched."""
        return self.value.expand(images, *self.value.shape[1:]) if self.batched else self.value


class Concat(nn.Module):
    """Concatenation along one axis."""

    def __init__(self, axis: int) -> None:
        super().__init__()
        self.axis = axis

    def forward(self, *tensors: Tensor) -> Tensor:
        """Tensors of one shape except on the axis."""
        return torch.cat(tensors, self.axis)


class Flatten(nn.Module):
    """(N, C, ...) to (N, C·...)."""

    def forward(self, x: Tensor) -> Tensor:
        """Flatten all but the batch."""
        return x.flatten(1)


class Reshape(nn.Module):
    """(N, ...) to (N, *shape)."""

    def __init__(self, shape: list[int]) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, x: Tensor) -> Tensor:
        """Reshape all but the batch."""
        return x.reshape(len(x), *self.shape)


class Permute(nn.Module):
    """Reorder axes; the batch stays first."""

    def __init__(self, order: list[int]) -> None:
        super().__init__()
        self.order = order

    def forward(self, x: Tensor) -> Tensor:
        """Axis i of the result is axis order[i] of the input."""
        return x.permute(self.order)


class Slice(nn.Module):
    """Every `step`-th element from `start` up to `end` of one axis."""

    def __init__(self, axis: int, start: int, end: int, step: int) -> None:
        super().__init__()
        self.index = (*[slice(None)] * axis, slice(start, end, step))

    def forward(self, x: Tensor) -> Tensor:
        """The same rank, a shorter axis."""
        return x[self.index]


class Pad(nn.Module):
    """Zeros, mirrored or repeated values around a tensor.

    Args:
        pads: beginnings of axes 1 and up, then their ends.
        mode: `constant` (zeros), `reflect` or `edge`.
    """

    def __init__(self, pads: list[int], mode: str) -> None:
        super().__init__()
        self.mode = {"constant": "constant", "reflect": "reflect", "edge": "replicate"}[mode]
        count = len(pads) // 2
        pairs = [p for axis in reversed(range(count)) for p in (pads[axis], pads[axis + count])]
        if mode != "constant" and count > 1:
            pairs = pairs[:-2]  # torch mirrors and repeats positions only, never channels
        self.pairs = pairs

    def forward(self, x: Tensor) -> Tensor:
        """(N, ...), larger."""
        return F.pad(x, self.pairs, self.mode)


class MaxPool(nn.Module):
    """Largest value of each window, in one, two or three dimensions.

    Args:
        kernel, stride, dilation: one number a dimension.
        padding: one number a dimension, or all beginnings and then all ends.
        ceil_mode: keep windows that hang over the end.
    """

    def __init__(
        self, kernel: list[int], stride: list[int], padding: list[int], dilation: list[int], ceil_mode: bool
    ) -> None:
        super().__init__()
        self.pool = _MAX_POOLS[len(kernel)]
        self.kernel, self.stride, self.padding, self.dilation = kernel, stride, padding, dilation
        self.ceil_mode = ceil_mode
        count = len(kernel)
        both = padding if len(padding) > count else padding * 2
        # torch pads both ends alike, by half a window at most
        own = len(padding) > count or any(2 * p > k for p, k in zip(padding, kernel, strict=True))
        self.border = [p for axis in reversed(range(count)) for p in (both[axis], both[axis + count])] if own else []

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, ...), smaller."""
        padding = self.padding
        if self.border:
            x, padding = F.pad(x, self.border, value=-math.inf), [0] * len(self.kernel)
        pooled: Tensor = self.pool(x, self.kernel, self.stride, padding, self.dilation, self.ceil_mode)
        return pooled


class AveragePool(Shifted):
    """Mean of each window, in one, two or three dimensions."""

    def __init__(
        self, kernel: list[int], stride: list[int], padding: list[int], ceil_mode: bool, count_include_pad: bool
    ) -> None:
        super().__init__()
        self.pool = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}[len(kernel)]
        self.window = (kernel, stride, padding, ceil_mode, count_include_pad)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, ...), smaller."""
        return self.shifted(self.pool(x, *self.window))

    def window_sizes(self, size: tuple[int, ...]) -> set[int]:
        """How many values the windows average, in an image of this size; fewer at a border that does not count."""
        kernel, stride, padding, ceil_mode, count_include_pad = self.window
        windows = pool_of({"strides": stride, "pads": padding * 2, "ceil_mode": int(ceil_mode)}, kernel, size)
        _, counts = pooled_sum(np.zeros((1, 1, *size), np.int64), windows, count_include_pad)
        return set(counts.reshape(-1).tolist())


class GlobalAveragePool(Shifted):
    """Mean over all positions, which stay as axes of 1: one exact sum, one division (design 4)."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, 1, 1)."""
        return self.shifted(x.sum(tuple(range(2, x.dim())), keepdim=True) / math.prod(x.shape[2:]))

    def window_sizes(self, size: tuple[int, ...]) -> set[int]:
        """All positions of an image of this size: one number."""
        return {math.prod(size)}


class StochasticDepth(nn.Module):
    """Drops a branch for whole images in training; the others are scaled so that the mean stays.

    Source: Huang et al., Deep Networks with Stochastic Depth; torchvision's mode `row`.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """The same shape."""
        if not self.training or self.p == 0.0:
            return x
        kept = x.new_empty(len(x), *[1] * (x.dim() - 1)).bernoulli_(1.0 - self.p)
        return x * (kept if self.p == 1.0 else kept.div_(1.0 - self.p))
