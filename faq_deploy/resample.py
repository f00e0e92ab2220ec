"""Resizing and adaptive average pooling as products with small constant matrices."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engines.errors import InputError
from faq_deploy.layers import Mode
from faq_deploy.shifted import Shifted

__all__ = ["AdaptiveAveragePool", "Interpolation", "Resize", "interpolation", "nearest_indices", "pool_matrix"]

_BITS: Final = 7  # of an interpolation weight: two axes and 8-bit codes then make 22 bits, which fp32 holds


@dataclass(frozen=True)
class Interpolation:
    """Linear interpolation along one axis.

    Attributes:
        matrix: float32, (new size, old size); rows sum to 1, entries are multiples of 2^-7.
        exact: the matrix is the interpolation itself, and float32 computes its positions without rounding.
    """

    matrix: Tensor
    exact: bool


def interpolation(old: int, new: int, align_corners: bool) -> Interpolation:
    """Where each new position lies between two old ones, weights rounded to 2^-7.

    Args:
        old, new: sizes.
        align_corners: as torch defines it.
    """
    unit = 2**_BITS
    matrix = torch.zeros(new, old)
    ratio = Fraction(old, new)
    exact = not align_corners and ratio.denominator & (ratio.denominator - 1) == 0
    for position in range(new):
        if align_corners:
            place = Fraction(position * (old - 1), new - 1) if new > 1 else Fraction(0)
        else:
            place = max((position + Fraction(1, 2)) * ratio - Fraction(1, 2), Fraction(0))
        left = min(math.floor(place), old - 1)
        share = (place - left) * unit
        exact = exact and share.denominator == 1
        matrix[position, left] += (unit - round(share)) / unit
        matrix[position, min(left + 1, old - 1)] += round(share) / unit
    return Interpolation(matrix, exact)


def nearest_indices(old: int, new: int, mode: str) -> list[int]:
    """Which old position each new one takes, as torch's mode `nearest` or `nearest-exact` has it."""
    positions = torch.arange(old, dtype=torch.float32).reshape(1, 1, -1)
    return [int(p) for p in F.interpolate(positions, size=[new], mode=mode).flatten()]


def pool_matrix(old: int, new: int) -> Tensor:
    """The windows of adaptive pooling: float32, (new, old), 1 where a position belongs to a window."""
    matrix = torch.zeros(new, old)
    for window in range(new):
        matrix[window, window * old // new : -(-(window + 1) * old // new)] = 1.0
    return matrix


class Resize(nn.Module):
    """Another height and width (or length, or volume).

    Mode `nearest` moves codes. Mode `linear` in mode `quantize` is exact: where torch's own interpolation has weights
    that are multiples of 2^-7 (factors of two, align_corners off) it is torch's; elsewhere the weights are rounded to
    multiples of 2^-7, so that a result moves by at most 1/256 of the difference of its neighbours an axis.

    Args:
        mode: `nearest`, `nearest-exact` or `linear`.
        old, new: sizes of the axes from 2 on.
        align_corners: as in torch, for `linear`.

    Raises:
        InputError: linear resizing of volumes.
    """

    def __init__(self, mode: str, old: list[int], new: list[int], align_corners: bool) -> None:
        super().__init__()
        self.kind, self.old, self.new, self.align_corners = mode, old, new, align_corners
        self.mode: Mode = "float"
        self.linear = mode == "linear"
        if self.linear and len(new) > 2:
            raise InputError("linear resizing of volumes is not supported.", "use mode nearest, or resize before.")
        axes = [interpolation(*sizes, align_corners) for sizes in zip(old, new, strict=True)] if self.linear else []
        self.exact = all(axis.exact for axis in axes)
        for number, axis in enumerate(axes):
            self.register_buffer(f"matrix_{number}", axis.matrix, persistent=False)

    def matrices(self) -> list[Tensor]:
        """Of each axis from 2 on, (new, old); empty where no weights are needed."""
        return [self.get_buffer(f"matrix_{axis}") for axis in range(len(self.new))] if self.linear else []

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, *old) float32 to (N, C, *new)."""
        if not self.linear:
            return F.interpolate(x, self.new, mode=self.kind)
        if self.mode != "quantize" or self.exact:
            mode = "bilinear" if len(self.new) == 2 else "linear"
            return F.interpolate(x, self.new, mode=mode, align_corners=self.align_corners)
        *rows, columns = self.matrices()
        with torch.autocast(x.device.type, enabled=False):  # sums of codes, not products to be had in 16 bits
            y = x @ columns.T
            return rows[0] @ y if rows else y


class AdaptiveAveragePool(Shifted):
    """Means of windows of unequal size: exact sums by matrices of zeros and ones, then one division.

    Args:
        old, new: height and width.
    """

    rows: Tensor
    columns: Tensor
    counts: Tensor

    def __init__(self, old: list[int], new: list[int]) -> None:
        super().__init__()
        rows, columns = pool_matrix(old[0], new[0]), pool_matrix(old[1], new[1])
        counts = rows.sum(1).reshape(-1, 1) * columns.sum(1)
        for name, value in (("rows", rows), ("columns", columns), ("counts", counts)):
            self.register_buffer(name, value, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) float32 to (N, C, *new)."""
        with torch.autocast(x.device.type, enabled=False):  # see `Resize`
            return self.shifted(self.rows @ (x @ self.columns.T) / self.counts)

    def window_sizes(self, size: tuple[int, ...]) -> set[int]:
        """How many values the windows average; the image's size is known already."""
        return {int(count) for count in self.counts.reshape(-1).tolist()}
