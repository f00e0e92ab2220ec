"""The range whose grid leaves the least squared error."""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import numpy.typing as npt
from torch import Tensor

from calibration.errors import CalibrationError
from calibration.histogram import MagnitudeHistogram

__all__ = ["MseRange", "squared_error"]

BINS: Final = 8192


class MseRange:
    """The power of two whose grid of `bits` bits gives the activations the least mean squared error.

    Clipping a few large values can pay, since it halves the step for all others. The candidates run from
    twice the range seen down to one histogram bin; among equals the greatest wins.

    Args:
        bits: of the grid, from 2 to 16, the sign included.
        signed: whether the grid is signed, with codes up to 2^(bits-1) - 1 of either sign. An unsigned one
            has codes 0 .. 2^bits - 1, and negative values count as 0.

    Raises:
        CalibrationError: bits out of range.
    """

    def __init__(self, bits: int, *, signed: bool) -> None:
        if not 2 <= bits <= 16:
            raise CalibrationError(f"{bits} bits is not from 2 to 16")
        self._magnitude_bits = bits - 1 if signed else bits
        self._histogram = MagnitudeHistogram(BINS, signed=signed)

    def update(self, tensor: Tensor) -> None:
        """Take in one batch.

        Args:
            tensor: floating point, any shape: one layer's activations for one batch.

        Raises:
            CalibrationError: the batch is empty or holds NaN or Inf.
        """
        self._histogram.update(tensor)

    def result(self) -> float:
        """Choose the clip from all batches so far.

        Returns:
            A power of two, or 0 where every value was 0.

        Raises:
            CalibrationError: there was no batch.
        """
        histogram = self._histogram
        if histogram.require_batches() == 0:
            return 0.0
        edges = np.arange(BINS + 1, dtype=np.float64) * histogram.bin_width
        counts = histogram.counts.numpy().astype(np.float64)
        clips = [math.ldexp(2.0, histogram.exponent - halvings) for halvings in range(BINS.bit_length() + 1)]
        errors = [squared_error(counts, edges, clip, self._magnitude_bits) for clip in clips]
        return clips[int(np.argmin(errors))]


def squared_error(
    counts: npt.NDArray[np.float64], edges: npt.NDArray[np.float64], clip: float, magnitude_bits: int
) -> float:
    """Summed squared rounding and clipping error of a grid, values taken as spread evenly within their bin.

    In units of the step, the integral of (u - Q(u))^2 from 0 to u is j/12 + (u - j)^3/3, where j is the code
    of u: each whole rounding cell gives 1/12. It holds beyond the last code too, so one formula serves bins
    finer and coarser than the step.

    Args:
        counts: shape (n,), values in each bin.
        edges: shape (n + 1,), from 0 up.
        clip: the grid ends one step below it.
        magnitude_bits: the grid has codes 0 .. 2^magnitude_bits - 1.

    Returns:
        The sum, in squared units of the values.
    """
    step = math.ldexp(clip, -magnitude_bits)
    steps = edges / step
    codes = np.minimum(np.floor(steps + 0.5), 2**magnitude_bits - 1)
    integral = codes / 12 + (steps - codes) ** 3 / 3
    per_value = np.diff(integral) / np.diff(steps) * step**2
    return float(counts @ per_value)
