"""Exact numbers for the golden model: integer codes, a power of two, and the odd divisor of an average pool."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt

from engines.runner import FloatArray

__all__ = [
    "MAX_BITS",
    "FixedTensor",
    "IntArray",
    "Refused",
    "add",
    "aligned",
    "divided",
    "from_floats",
    "multiply",
    "on_one_grid",
    "round_half_even",
    "rounded_to_float32",
    "times",
    "to_float32",
]

IntArray = npt.NDArray[np.int64]

_FLOAT32_CODES: Final = 2**24  # every integer up to here is a float32
MAX_BITS: Final = 60  # codes stay below 2^60, so that a sum of two, and a doubled remainder, fit int64


class Refused(Exception):
    """Why something cannot be computed exactly. The runner turns it into an InputError that names the node."""


@dataclass(frozen=True)
class FixedTensor:
    """value = codes x 2^exponent / divisor, exactly.

    Args:
        codes: int64, any shape, |codes| <= 2^60. An odd factor of a scale is multiplied into them.
        exponent: int64, broadcasts against codes: shape () per tensor, (1, C, 1, 1) per channel.
        divisor: odd and positive; 1 except behind average pools, whose even part goes into the exponent.
    """

    codes: IntArray
    exponent: IntArray
    divisor: int = 1


def from_floats(values: npt.NDArray[np.generic]) -> FixedTensor:
    """Numbers as codes and exponents; every finite float is an integer times a power of two.

    Args:
        values: float16, float32, or integers below 2^53; any shape.

    Returns:
        Odd codes, or 0, with one exponent per element.

    Raises:
        Refused: NaN or infinity.
    """
    wide = values.astype(np.float64)
    if not np.isfinite(wide).all():
        raise Refused("it holds NaN or infinity")
    mantissa, exponent = np.frexp(wide)
    codes = np.ldexp(mantissa, 53).astype(np.int64)
    zeros = np.frexp((codes & -codes).astype(np.float64))[1] - 1  # trailing zero bits; -1 where codes is 0
    zeros = np.maximum(zeros, 0)
    exponents = np.where(codes == 0, 0, exponent.astype(np.int64) - 53 + zeros)
    return FixedTensor(codes >> zeros, exponents.astype(np.int64))


def to_float32(tensor: FixedTensor) -> FloatArray:
    """The float32 nearest to each value, rounded once.

    A float64 quotient in between does no harm: with codes below 2^53 and a divisor below 2^28, a quotient that is not
    exactly half way between two float32 is further from the half than float64 rounds.

    Args:
        tensor: any shape.

    Returns:
        float32 of the same shape.

    Raises:
        Refused: a code has more than 53 significant bits.
    """
    wide = tensor.codes.astype(np.float64)
    large = _peak(tensor.codes).max(initial=0) > 2**53
    if large and (tensor.divisor > 1 or (wide.astype(np.int64) != tensor.codes).any()):
        raise Refused("an output needs more than 53 bits")
    quotient = np.ldexp(wide, tensor.exponent) / tensor.divisor
    return quotient.astype(np.float32)


def rounded_to_float32(tensor: FixedTensor) -> FixedTensor:
    """What float32 makes of an exact result: codes of more than 24 bits lose the rest, half to even.

    Args:
        tensor: any shape.

    Returns:
        The same grid. Quotients (a divisor other than 1) stay as they are.
    """
    if tensor.divisor != 1 or _peak(tensor.codes).max(initial=0) <= _FLOAT32_CODES:
        return tensor
    return replace(tensor, codes=tensor.codes.astype(np.float32).astype(np.int64))


def round_half_even(tensor: FixedTensor, exponent: IntArray) -> IntArray:
    """Codes of the nearest points of the grid 2^exponent, ties to the even code, in integers only.

    Args:
        tensor: what to round.
        exponent: of the new grid, broadcasts against the codes.

    Returns:
        int64 codes, not saturated.

    Raises:
        Refused: the new grid is so fine that the codes do not fit.
    """
    shift = exponent - tensor.exponent
    codes = tensor.codes
    if (shift < 0).any():
        codes = _shifted(codes, np.maximum(-shift, 0))
    # |codes| <= 2^60, so a denominator of 63 bits already rounds everything to 0
    shift = np.clip(shift, 0, 63 - tensor.divisor.bit_length())
    if tensor.divisor == 1:
        return _shifted_half_even(codes, shift)
    floor, rest = np.divmod(codes, np.int64(tensor.divisor) << shift)
    other = (np.int64(tensor.divisor) << shift) - rest  # distance to the next code, in the same units as rest
    rounded: IntArray = floor + ((rest > other) | ((rest == other) & (floor & 1 == 1)))
    return rounded


def _shifted_half_even(codes: IntArray, shift: IntArray) -> IntArray:
    """codes / 2^shift, shift 0..62: half a step less one unit is added, and that unit too where the floor is odd."""
    some = shift > 0
    rounded = (codes >> shift) & some
    rounded += np.where(some, (np.int64(1) << np.maximum(shift - 1, 0)) - 1, 0)
    rounded += codes
    rounded >>= shift
    return rounded


def aligned(a: FixedTensor, b: FixedTensor) -> tuple[IntArray, IntArray, IntArray, int]:
    """Both operands in units of one grid.

    Args:
        a: one operand.
        b: the other; their shapes broadcast.

    Returns:
        Codes of a, codes of b, and the exponent and the divisor that they share.

    Raises:
        Refused: the two grids are too far apart.
    """
    divisor = math.lcm(a.divisor, b.divisor)
    left = times(a.codes, divisor // a.divisor)
    right = times(b.codes, divisor // b.divisor)
    if np.array_equal(a.exponent, b.exponent):
        return left, right, a.exponent, divisor
    # a channel of zeros lies on every grid: a dead channel's tiny step must not shift the other side out of range
    e_a = np.where(_dead(a), np.maximum(a.exponent, b.exponent), a.exponent)
    e_b = np.where(_dead(b), np.maximum(a.exponent, b.exponent), b.exponent)
    exponent = np.minimum(e_a, e_b)
    return _shifted(left, e_a - exponent), _shifted(right, e_b - exponent), exponent, divisor


def add(a: FixedTensor, b: FixedTensor) -> FixedTensor:
    """a + b.

    Args:
        a: one operand.
        b: the other; their shapes broadcast.

    Returns:
        The exact sum.

    Raises:
        Refused: the two grids are too far apart.
    """
    left, right, exponent, divisor = aligned(a, b)
    return _checked(FixedTensor(left + right, exponent, divisor))


def multiply(a: FixedTensor, b: FixedTensor) -> FixedTensor:
    """a x b.

    Args:
        a: one operand.
        b: the other; their shapes broadcast.

    Returns:
        The exact product.

    Raises:
        Refused: a product does not fit.
    """
    _demand(a.codes, _peak(a.codes).max(initial=0) * _peak(b.codes).max(initial=0))
    return FixedTensor(a.codes * b.codes, a.exponent + b.exponent, a.divisor * b.divisor)


def times(codes: IntArray, factor: int) -> IntArray:
    """codes x factor.

    Args:
        codes: int64, any shape.
        factor: a positive integer.

    Returns:
        int64; `codes` itself where the factor is 1.

    Raises:
        Refused: a product does not fit.
    """
    if factor == 1:
        return codes
    _demand(codes, _peak(codes).max(initial=0) * float(factor))
    return codes * np.int64(factor)


def divided(tensor: FixedTensor, count: int) -> FixedTensor:
    """tensor / count, count >= 1: powers of two go into the exponent, the odd rest into the divisor."""
    twos = (count & -count).bit_length() - 1
    return replace(tensor, exponent=tensor.exponent - twos, divisor=tensor.divisor * (count >> twos))


def on_one_grid(tensor: FixedTensor, axis: int | None = None) -> FixedTensor:
    """The same values with fewer exponents.

    Args:
        tensor: any shape.
        axis: keep one exponent for each of its indices; None keeps one for the tensor.

    Returns:
        Codes in units of the finest grid that was in use.

    Raises:
        Refused: the exponents are too far apart.
    """
    exponent = tensor.exponent
    if exponent.size == 1:
        return replace(tensor, exponent=exponent.reshape(()))
    exponent = exponent.reshape((1,) * (tensor.codes.ndim - exponent.ndim) + exponent.shape)
    tensor = replace(tensor, exponent=exponent)
    if axis is not None and exponent.size == exponent.shape[axis]:
        return tensor
    # zeros lie on every grid: only the exponents of other values count
    live = np.where(_dead(tensor), np.iinfo(np.int64).max, exponent)
    spread = tuple(range(exponent.ndim)) if axis is None else tuple(i for i in range(exponent.ndim) if i != axis)
    lowest = live.min(axis=spread, keepdims=axis is not None)
    lowest = np.where(lowest == np.iinfo(np.int64).max, 0, lowest)
    return replace(tensor, codes=_shifted(tensor.codes, np.where(_dead(tensor), 0, exponent - lowest)), exponent=lowest)


def _shifted(codes: IntArray, bits: IntArray) -> IntArray:
    """codes x 2^bits, bits >= 0."""
    if not bits.any():
        return np.broadcast_to(codes, np.broadcast_shapes(codes.shape, bits.shape))
    size = _peak(codes, bits.shape)
    room = np.ldexp(size.astype(np.float64), np.minimum(bits, 2000))
    if room.size and room.max() > 2.0**MAX_BITS:
        raise Refused(f"its values span more than {MAX_BITS} bits")
    return codes << np.where(size == 0, 0, bits)


def _checked(tensor: FixedTensor) -> FixedTensor:
    _demand(tensor.codes, _peak(tensor.codes).max(initial=0))
    return tensor


def _demand(codes: IntArray, largest: float) -> None:
    if codes.size and largest > 2.0**MAX_BITS:
        raise Refused(f"its values need more than {MAX_BITS} bits")


def _dead(tensor: FixedTensor) -> npt.NDArray[np.bool_]:
    """Where all values that share an exponent are zero; broadcasts like the exponent."""
    dead: npt.NDArray[np.bool_] = _peak(tensor.codes, tensor.exponent.shape) == 0
    return dead


def _peak(codes: IntArray, shape: tuple[int, ...] = ()) -> npt.NDArray[np.float64]:
    """Largest |code| among those that meet at each element of an array of `shape` that broadcasts against codes."""
    padded = (1,) * (codes.ndim - len(shape)) + shape
    wide = codes.reshape((1,) * (len(padded) - codes.ndim) + codes.shape)
    axes = tuple(i for i, size in enumerate(padded) if size == 1)
    highest = wide.max(axis=axes, keepdims=True, initial=0)
    lowest = wide.min(axis=axes, keepdims=True, initial=0)
    return np.asarray(np.maximum(highest, -lowest), np.float64)
