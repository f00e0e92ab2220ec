"""Counts of magnitudes in equal bins, exact over any number of batches."""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import Tensor

from calibration.errors import CalibrationError
from calibration.values import flat_values, peak

__all__ = ["MagnitudeHistogram"]

CHUNK: Final = 1 << 18  # values at a time: temporaries stay in the cache
LEAST_EXPONENT: Final = -100  # of the range; keeps 1 / bin width a normal float32


class MagnitudeHistogram:
    """Counts magnitudes in `bins` equal bins over [0, 2^exponent), and zeros apart.

    The range is a power of two and grows by doubling, which merges bins in pairs. Every bin edge is a
    multiple of a power of two, so no value ever changes sides: the counts are those of a single pass with
    the final range.

    Args:
        bins: a power of two.
        signed: count |x|. Otherwise negative values count as 0.

    Attributes:
        bins: number of bins.
        counts: int64, shape (bins,); zeros are not among them.
        zeros: how many values were exactly 0. They cost nothing on any grid, and after a ReLU they are most.
        greatest: the greatest magnitude seen; None before the first batch.
        exponent: the range is 2^exponent, over `greatest`.
    """

    def __init__(self, bins: int, *, signed: bool) -> None:
        if bins < 2 or bins & (bins - 1):
            raise CalibrationError(f"{bins} bins is not a power of two from 2 up")
        self.bins = bins
        self.counts = torch.zeros(bins, dtype=torch.int64)
        self.zeros = 0
        self.greatest: float | None = None
        self.exponent = LEAST_EXPONENT
        self._signed = signed

    @property
    def bin_width(self) -> float:
        """Width of a bin, a power of two."""
        return math.ldexp(1.0, self.exponent) / self.bins

    def update(self, tensor: Tensor) -> None:
        """Take in one batch.

        Args:
            tensor: floating point, any shape: one layer's activations for one batch.

        Raises:
            CalibrationError: the batch is empty or holds NaN or Inf.
        """
        values = flat_values(tensor)
        greatest = peak(values, signed=self._signed)
        self.greatest = max(greatest, self.greatest or 0.0)
        self._widen(math.frexp(greatest)[1])
        bins_per_unit = 1 / self.bin_width
        counts = torch.zeros(self.bins, dtype=torch.int64, device=values.device)
        for chunk in torch.split(values, CHUNK):
            magnitudes = chunk.abs() if self._signed else chunk.clamp(min=0)
            counts += torch.bincount((magnitudes * bins_per_unit).int(), minlength=self.bins)
            # uint8 sums are several times faster than count_nonzero
            counts[0] -= (magnitudes == 0).view(torch.uint8).sum()
        self.zeros += values.numel() - int(counts.sum())
        self.counts = self.counts + counts.cpu()  # not in place: one of them may stem from inference mode

    def require_batches(self) -> float:
        """Insist on at least one batch.

        Returns:
            The greatest magnitude seen.

        Raises:
            CalibrationError: there was no batch.
        """
        if self.greatest is None:
            raise CalibrationError("no batch of activations was seen")
        return self.greatest

    def _widen(self, exponent: int) -> None:
        """Make the range at least 2^exponent by merging bins."""
        if exponent <= self.exponent:
            return
        merged = min(1 << (exponent - self.exponent), self.bins)  # with more doublings all lands in the first bin
        groups = self.counts.view(-1, merged).sum(1)
        self.counts = torch.zeros_like(self.counts)
        self.counts[: groups.numel()] = groups
        self.exponent = exponent
