"""The choices of `[calibration] method`, all in one place."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, Literal, Protocol

from torch import Tensor

from calibration.entropy import EntropyRange
from calibration.errors import CalibrationError
from calibration.percentile import PercentileRange
from calibration.squared_error import MseRange

__all__ = ["ESTIMATORS", "Method", "RangeEstimator", "make_estimator"]

Method = Literal["percentile", "max", "mse", "entropy"]


class RangeEstimator(Protocol):
    """Sees one layer's activations batch by batch, then tells the range y >= 0 that its grid should cover."""

    def update(self, tensor: Tensor) -> None:
        """Take in one batch.

        Args:
            tensor: floating point, any shape: one layer's activations for one batch.

        Raises:
            CalibrationError: the batch is empty or holds NaN or Inf.
        """
        ...

    def result(self) -> float:
        """Choose the range from all batches so far.

        Returns:
            y >= 0.

        Raises:
            CalibrationError: there was no batch.
        """
        ...


ESTIMATORS: Final[Mapping[Method, Callable[[int, bool, float], RangeEstimator]]] = {
    "percentile": lambda bits, signed, percent: PercentileRange(percent, signed=signed),
    "max": lambda bits, signed, percent: PercentileRange(100, signed=signed),
    "mse": lambda bits, signed, percent: MseRange(bits, signed=signed),
    "entropy": lambda bits, signed, percent: EntropyRange(bits, signed=signed),
}


def make_estimator(method: Method, *, bits: int, signed: bool, percent: float) -> RangeEstimator:
    """A fresh estimator for one activation tensor.

    Args:
        method: how to choose the range.
        bits: of the tensor's grid (used by `mse` and `entropy`).
        signed: whether the grid is signed: magnitudes count then, otherwise negative values count as 0.
        percent: over 0, up to 100 (used by `percentile`).

    Returns:
        An estimator that has seen no batch yet.

    Raises:
        CalibrationError: an unknown method, or bits or percent out of range.
    """
    if method not in ESTIMATORS:
        raise CalibrationError(f"calibration method {method!r} is none of {', '.join(ESTIMATORS)}")
    return ESTIMATORS[method](bits, signed, percent)
