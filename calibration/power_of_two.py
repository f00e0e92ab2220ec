"""From a measured range to the power of two that the grid ends at."""

from __future__ import annotations

import math

from calibration.errors import CalibrationError

__all__ = ["power_of_two_ceiling", "waste"]


def power_of_two_ceiling(y: float, even_exponents: bool = False) -> int:
    """The exponent e of ymax = 2^e, the least power of two that is at least y.

    A power of two stays as it is. A layer that was always 0 gets e = 0, so that its step size is defined.

    Args:
        y: measured range, finite and >= 0.
        even_exponents: round e up to an even number (1, 4, 16, ...), the other reading of the paper.

    Returns:
        e, exactly: no logarithm is taken.

    Raises:
        CalibrationError: y is negative, NaN or Inf.

    Source:
        FAQ, section 3.1: ymax is "rounded up to the next even power of two".
    """
    if not math.isfinite(y) or y < 0:
        raise CalibrationError(f"a range of {y} is not a finite number from 0 up")
    if y == 0:
        return 0
    mantissa, exponent = math.frexp(y)  # y = mantissa * 2^exponent, 0.5 <= mantissa < 1
    if mantissa == 0.5:
        exponent -= 1
    return exponent + exponent % 2 if even_exponents else exponent


def waste(y: float, exponent: int) -> float:
    """The share of the range that rounding up left unused: 1 - y / 2^exponent.

    Args:
        y: measured range, from 0 to 2^exponent.
        exponent: as `power_of_two_ceiling` returned it.

    Returns:
        0 (y is the power of two) up to 1 (y is 0); below 0.5 unless exponents are even or y is 0.

    Raises:
        CalibrationError: y lies outside 0 .. 2^exponent.
    """
    share = math.ldexp(y, -exponent)
    if not 0 <= share <= 1:
        raise CalibrationError(f"a range of {y} lies outside 0 .. 2^{exponent}")
    return 1 - share
