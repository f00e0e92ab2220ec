"""The linear operations of weighted layers: convolution, transposed convolution, matrix product."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch.nn.functional as F
from torch import Tensor

__all__ = ["Convolution", "MatrixProduct", "Product", "TransposedConvolution"]


class Product(Protocol):
    """What a layer does with its input, its weight and its bias."""

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The layer's output, (N, channels, ...)."""
        ...

    def scaled(self, weight: Tensor, factors: Tensor) -> Tensor:
        """The weight with each output channel multiplied by its factor, shape (channels,)."""
        ...

    def by_channel(self, weight: Tensor) -> Tensor:
        """The weight with the output channels on axis 0."""
        ...


@dataclass(frozen=True)
class MatrixProduct:
    """x·Wᵀ, weight (channels, features)."""

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """(N, features) to (N, channels)."""
        return F.linear(x, weight, bias)

    def scaled(self, weight: Tensor, factors: Tensor) -> Tensor:
        """See `Product`."""
        return weight * factors.reshape(-1, 1)

    def by_channel(self, weight: Tensor) -> Tensor:
        """See `Product`."""
        return weight


@dataclass(frozen=True)
class Convolution:
    """Convolution over one, two or three dimensions, weight (channels, in/groups, *kernel).

    Attributes:
        stride, dilation: one number a dimension.
        padding: one number a dimension, or all beginnings and then all ends where they differ.
        groups: of channels.
    """

    stride: list[int]
    padding: list[int]
    dilation: list[int]
    groups: int

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """(N, C, ...) to (N, channels, ...)."""
        padding, count = self.padding, weight.dim() - 2
        if len(padding) > count:
            x = F.pad(x, [p for axis in reversed(range(count)) for p in (padding[axis], padding[axis + count])])
            padding = [0] * count
        if count == 2:
            return F.conv2d(x, weight, bias, self.stride, padding, self.dilation, self.groups)
        convolve = F.conv1d if count == 1 else F.conv3d
        return convolve(x, weight, bias, self.stride, padding, self.dilation, self.groups)

    def scaled(self, weight: Tensor, factors: Tensor) -> Tensor:
        """See `Product`."""
        return weight * factors.reshape(-1, *[1] * (weight.dim() - 1))

    def by_channel(self, weight: Tensor) -> Tensor:
        """See `Product`."""
        return weight


@dataclass(frozen=True)
class TransposedConvolution:
    """Transposed convolution, weight (in, channels/groups, *kernel): the output channels lie on axis 1 (C01).

    Attributes:
        stride, padding, output_padding, dilation: one number a dimension.
        groups: of channels.
    """

    stride: list[int]
    padding: list[int]
    output_padding: list[int]
    dilation: list[int]
    groups: int

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """(N, C, ...) to (N, channels, ...)."""
        convolve = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[weight.dim() - 3]
        result: Tensor = convolve(
            x, weight, bias, self.stride, self.padding, self.output_padding, self.groups, self.dilation
        )
        return result

    def scaled(self, weight: Tensor, factors: Tensor) -> Tensor:
        """See `Product`: channel g·(channels/groups) + j is row j of group g, whose inputs lie together on axis 0."""
        inner = [1] * (weight.dim() - 2)
        grouped = weight.reshape(self.groups, -1, *weight.shape[1:]) * factors.reshape(self.groups, 1, -1, *inner)
        return grouped.reshape(weight.shape)

    def by_channel(self, weight: Tensor) -> Tensor:
        """See `Product`."""
        grouped = weight.reshape(self.groups, -1, *weight.shape[1:]).transpose(1, 2)
        return grouped.reshape(self.groups * weight.shape[1], -1, *weight.shape[2:])
