"""The numbers of a fixed-point tensor: the codes that it may have, and where a quantizer clips."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Clip", "FixedPoint"]


@dataclass(frozen=True)
class Clip:
    """How an activation is rounded, and where its gradient passes.

    Attributes:
        step: size of one, a power of two.
        codes: lowest and highest code.
        passing: the gradient passes between these values.

    Source: paper 3.2 and 3.3; A25.
    """

    step: float
    codes: tuple[int, int]
    passing: tuple[float, float]

    def into(self, values: Tensor, out: Tensor) -> None:
        """Put float32 values on the grid; `out` may be they themselves."""
        torch.mul(values, 1 / self.step, out=out)  # a power of two: the reciprocal is exact
        self.round_(out)

    def round_(self, steps: Tensor) -> None:
        """The same in place for values in units of the step."""
        steps.round_().clamp_(*self.codes).mul_(self.step)


@dataclass(frozen=True)
class FixedPoint:
    """The integer codes of a tensor.

    Attributes:
        bits: width of a code.
        signed: two's complement if true; else 0..2^bits - 1.
        narrow: leave out the lowest signed code, so that a sign flip loses nothing (paper 3.1).
    """

    bits: int
    signed: bool
    narrow: bool = False

    @property
    def min_code(self) -> int:
        """Lowest code."""
        if not self.signed:
            return 0
        return -(1 << (self.bits - 1)) + int(self.narrow)

    @property
    def max_code(self) -> int:
        """Highest code."""
        return (1 << (self.bits - int(self.signed))) - 1

    @property
    def magnitude_bits(self) -> int:
        """Bits without the sign: ymax = 2^(exponent + magnitude_bits)."""
        return self.bits - int(self.signed)
