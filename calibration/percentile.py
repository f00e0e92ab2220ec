"""The exact percentile of activations, at any size and at the speed of reading them."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction
from typing import Final

import numpy as np
import torch
from torch import Tensor

from calibration.errors import CalibrationError
from calibration.values import flat_values, peak, require_finite

__all__ = ["PercentileRange", "kth_largest"]

MAX_ROW: Final = 128  # longer rows make the reduction no faster, and the selection slower
MIN_ROW: Final = 8  # with shorter rows the row peaks are no smaller problem than the values
ROWS_PER_RANK: Final = 4  # rows for each wanted rank: 4 leaves at most a quarter of the values to look at


class PercentileRange:
    """The greatest, over the batches, of each batch's percentile.

    The percentile of n values is the k-th smallest, k = ceil(n * percent / 100) in exact rational
    arithmetic: a value that occurs, with no interpolation. (`torch.quantile` interpolates, sorts, and in
    some versions refuses more than 2^24 values.)

    Args:
        percent: over 0, up to 100. A float counts as the decimal that Python prints: 99.99 is 9999/100.
        signed: take magnitudes, because the grid is signed. Otherwise negative values count as 0.

    Raises:
        CalibrationError: percent isn't a number over 0 and up to 100.

    Source:
        FAQ, section 3.1: "the maximum across all batches of the 99.99th percentile of the batch of
        activation tensor".
    """

    def __init__(self, percent: Decimal | str | float, *, signed: bool = False) -> None:
        try:
            self._share = Fraction(str(percent)) / 100
        except ValueError as error:
            raise CalibrationError(f"percentile {percent!r} is not a number") from error
        if not 0 < self._share <= 1:
            raise CalibrationError(f"percentile {percent} is not over 0 and up to 100")
        self._signed = signed
        self._greatest: float | None = None

    def update(self, tensor: Tensor) -> None:
        """Take in one batch.

        Args:
            tensor: floating point, any shape: one layer's activations for one batch.

        Raises:
            CalibrationError: the batch is empty or holds NaN or Inf.
        """
        values = flat_values(tensor)
        count = values.numel()
        k = -(-count * self._share.numerator // self._share.denominator)
        batch = kth_largest(values, count - k + 1, signed=self._signed)
        self._greatest = max(batch, self._greatest or 0.0)

    def result(self) -> float:
        """The greatest of the batches' percentiles so far.

        Returns:
            y >= 0.

        Raises:
            CalibrationError: there was no batch.
        """
        if self._greatest is None:
            raise CalibrationError("no batch of activations was seen")
        return self._greatest


def kth_largest(values: Tensor, rank: int, *, signed: bool) -> float:
    """The value that stands at `rank` when all are sorted from the top.

    The values are cut into rows. The `rank`-th greatest row peak is a lower bound of the answer, since `rank`
    rows hold a value that reaches it; and what exceeds the bound lies in fewer than `rank` rows. So only
    those rows are searched, and one pass over the values finds the peaks, NaN and Inf together.

    Args:
        values: 1-D floating point, not empty.
        rank: 1 for the greatest, up to the number of values.
        signed: rank magnitudes. Otherwise the values as they are.

    Returns:
        The value, exactly.

    Raises:
        CalibrationError: NaN or Inf among the values.
    """
    count = values.numel()
    width = min(MAX_ROW, count // (ROWS_PER_RANK * rank))
    if width < MIN_ROW:
        peak(values, signed=signed)  # refuses NaN and Inf
        return _select(values.abs() if signed else values, rank)

    whole = count - count % width
    rows, rest = values[:whole].view(-1, width), values[whole:]
    lows, highs = rows.amin(1), rows.amax(1)
    require_finite(lows.min(), highs.max())
    if rest.numel():
        peak(rest, signed=signed)

    row_peaks = torch.maximum(highs, -lows) if signed else highs
    bound = _select(row_peaks, rank)
    candidates = torch.cat((rows[row_peaks > bound].flatten(), rest))
    candidates = candidates.abs() if signed else candidates
    above = candidates[candidates > bound]
    return _select(above, rank) if above.numel() >= rank else bound


def _select(values: Tensor, rank: int) -> float:
    if values.device.type != "cpu":
        return float(values.kthvalue(values.numel() - rank + 1).values.item())
    # on a CPU torch's kthvalue takes quadratic time on some orders (descending, for one), and NumPy's partition
    # is slow where many values tie for least, as after a ReLU
    array = values.numpy()
    least = array.min()
    above = array[array > least]
    if above.size < rank:
        return float(least)
    return float(np.partition(above, above.size - rank)[above.size - rank])
