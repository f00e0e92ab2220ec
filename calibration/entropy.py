"""The range that keeps most of the activations' distribution, by Kullback-Leibler divergence."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
from torch import Tensor

from calibration.errors import CalibrationError
from calibration.histogram import MagnitudeHistogram

__all__ = ["EntropyRange", "divergences"]

BINS: Final = 2048


class EntropyRange:
    """The clip after which the quantized distribution diverges least from the one seen.

    For every number of bins i that could be kept: P is the first i bins with everything beyond them counted
    in the last, Q the same bins (nothing added) cut into as many levels as the grid has, each level spread
    evenly over its bins that aren't empty. The i of least KL(P || Q) is taken; among equals the least.

    Details that the source leaves open: exact zeros are left out, since every grid holds 0 and after a ReLU
    they would outweigh all else. Where values lie beyond the kept bins, an i is skipped if its last bin is
    empty (the divergence is infinite), or if fewer of its bins are filled than the grid has levels (a single
    filled bin would always match perfectly), unless all are kept. The range is the kept bins' right edge, at
    most the greatest magnitude seen, rather than half a bin more, which would push a full range over its
    power of two.

    Args:
        bits: of the grid, from 2 to 11, the sign included.
        signed: whether the grid is signed. Otherwise negative values count as 0.

    Raises:
        CalibrationError: bits out of range.

    Source:
        S. Migacz, "8-bit Inference with TensorRT", GTC 2017: 2048 bins, 128 levels.
    """

    def __init__(self, bits: int, *, signed: bool) -> None:
        if not 2 <= bits <= 11:
            raise CalibrationError(f"{bits} bits is not from 2 to 11")
        self._levels = 1 << (bits - 1 if signed else bits)
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
        """Choose the range from all batches so far.

        Returns:
            y > 0, or 0 where every value was 0.

        Raises:
            CalibrationError: there was no batch.
        """
        greatest = self._histogram.require_batches()
        if greatest == 0:
            return 0.0
        counts = self._histogram.counts.numpy().astype(np.float64)
        kept = self._levels + int(np.argmin(divergences(counts, self._levels)))
        return min(kept * self._histogram.bin_width, greatest)


def divergences(counts: npt.NDArray[np.float64], levels: int) -> npt.NDArray[np.float64]:
    """KL(P || Q) for every number of kept bins, all at once from running sums.

    Args:
        counts: shape (n,), values in each bin; their sum is over 0.
        levels: of the grid, at most n.

    Returns:
        Shape (n - levels + 1,): element t is for i = levels + t kept bins; inf where i is skipped.
    """
    kept = np.arange(levels, counts.size + 1)
    total = counts.sum()
    running = np.concatenate(([0.0], np.cumsum(counts)))
    running_filled = np.concatenate(([0.0], np.cumsum(counts > 0)))
    running_entropy = np.concatenate(([0.0], np.cumsum(_x_log_x(counts))))

    # level k holds the bins j with floor(j * levels / i) == k
    edges = -(-np.arange(levels + 1) * kept[:, None] // levels)
    level_sums = np.diff(running[edges])
    level_log = _log(level_sums) - _log(np.diff(running_filled[edges])) - _log(running[kept])[:, None]

    last = counts[kept - 1]
    beyond = total - running[kept]
    p_log_p = running_entropy[kept - 1] + _x_log_x(last + beyond) - total * np.log(total)
    p_log_q = (level_sums * level_log).sum(1) + beyond * level_log[:, -1]
    too_few = running_filled[kept] < min(levels, running_filled[-1])
    skipped = (beyond > 0) & ((last == 0) | too_few)
    return np.where(skipped, np.inf, (p_log_p - p_log_q) / total)


def _log(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Natural logarithm, with 0 for 0: such terms are multiplied by 0."""
    return np.log(np.where(x > 0, x, 1.0))


def _x_log_x(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return x * _log(x)
