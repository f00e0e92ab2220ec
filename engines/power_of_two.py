"""Powers of two as steps: the exponent of one, and the smallest whose codes still reach a value."""

from __future__ import annotations

import math
from typing import Final

__all__ = ["exponent_of", "fitting_exponent"]

_LOWEST: Final = -126  # of a normal float32
_HIGHEST: Final = 127


def exponent_of(step: float) -> int | None:
    """n of a step 2^n that is a normal float32; None of any other number."""
    if not (math.isfinite(step) and step > 0):
        return None
    mantissa, exponent = math.frexp(step)
    return exponent - 1 if mantissa == 0.5 and _LOWEST < exponent <= _HIGHEST + 1 else None


def fitting_exponent(top: float, codes: int) -> int:
    """The smallest exponent whose greatest code lies at most half a step under a value.

    Args:
        top: the value, over 0.
        codes: the greatest code, at least 0; as far as it, rounding to it moves a value no further than rounding does.
    """
    mantissa, exponent = math.frexp(top / (codes + 0.5))
    return min(max(exponent - 1 if mantissa == 0.5 else exponent, _LOWEST), _HIGHEST)
