"""Layers whose result a quantizer rounds, and the constant that keeps it clear of the ties of that rounding."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

__all__ = ["MARGIN", "Shifted", "mean_offset"]

# No result may lie nearer to a tie, in steps of the output: float32 functions of different libraries differ by less,
# so that all of them give the same code.
MARGIN: Final = 2.0**-11

# A float32 mean of 128 steps, divided or multiplied and shifted, is off by less than this.
_ROUNDING: Final = 2.0**-16

_LARGEST_SHIFT: Final = 3  # 2^-3 step: nobody notices it


class Shifted(nn.Module):
    """A layer that adds a constant to its result.

    Buffers:
        offset: float32 scalar in the output's units; 0 until exponents are fixed, and in a file that has none.
    """

    offset: Tensor

    def __init__(self) -> None:
        super().__init__()
        self._offset = 0.0  # the buffer's value as a number
        self.register_buffer("offset", torch.zeros(()))

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: object) -> None:
        state_dict.setdefault(f"{prefix}offset", torch.zeros(()))  # average pools had none in earlier versions
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._offset = float(self.offset)

    def shift_by(self, offset: float) -> None:
        """Choose the constant."""
        self._offset = offset
        self.offset.fill_(offset)

    def shifted(self, result: Tensor) -> Tensor:
        """The result with the constant added."""
        return result + self._offset if self._offset else result


def mean_offset(sizes: Iterable[int], read: int, written: Sequence[int]) -> float:
    """The smallest shift of an average pool's means that keeps all of them clear of rounding ties.

    The mean of N codes is a multiple of 2^read / N, and a tie is an odd multiple of half the step that it is rounded
    to. Where the one can be the other, the code depends on how an engine divides: a multiplication by 1/N may leave
    the tie by a last bit. A shift of a fraction of 2^read / N moves every mean off the ties, and no other way of
    dividing moves it back. The sums themselves are exact. Means over a power of two are exact, as are their ties.

    Args:
        sizes: N, of all the pool's windows.
        read: exponent of the codes that are averaged.
        written: exponents of the quantizers that read the means.

    Returns:
        m·2^(l - k), l the finest exponent of `written`, |m| as small as can be; 0 where no mean can tie. Windows of
        more than 1024 values have means so near to each other that they get less room than `MARGIN`: what there is.
        0 again where that is less than float32 needs, with more than 32,768 values.
    """
    if not written:
        return 0.0
    finest = min(written)
    pairs = [(size, exponent) for size in set(sizes) for exponent in set(written)]
    spacings = [(_parts_of_a_step(size, read - exponent), exponent - finest) for size, exponent in pairs]
    tied = [parts % 2 == 0 and size & (size - 1) for (parts, _), (size, _) in zip(spacings, pairs, strict=True)]
    if not any(tied):
        return 0.0
    bits = max((8 * max(parts for parts, _ in spacings)).bit_length(), -round(math.log2(MARGIN)))
    order = np.arange(1, 2 ** (bits - _LARGEST_SHIFT) + 1)
    shifts = np.stack([order, -order], 1).reshape(-1)
    room = np.min([_room(shifts, parts, bits + coarser) for parts, coarser in spacings], axis=0)
    if room.max() < _ROUNDING:
        return 0.0
    chosen = int(np.argmax(room >= min(MARGIN, 0.75 * float(room.max()))))
    return math.ldexp(float(shifts[chosen]), finest - bits)


def _parts_of_a_step(size: int, finer: int) -> int:
    """D, where the means of `size` codes are all multiples of 1/D of a step that is 2^finer times finer."""
    return (Fraction(2) ** finer / size).denominator


def _room(shifts: npt.NDArray[np.int64], parts: int, bits: int) -> npt.NDArray[np.float64]:
    """Distance in steps of the nearest multiple of 1/parts, shifted by 2^-bits of a step, to the nearest tie."""
    unit = 2**bits
    rest = (unit // 2 - shifts) * parts % unit
    distance: npt.NDArray[np.float64] = np.minimum(rest, unit - rest) / (unit * parts)
    return distance
