"""Arithmetic of the golden model: exact where codes allow, else one IEEE operation in float32.

Add, Sub, Mul and Div return what float32 returns for exact operands. The exact form is kept because what reads it
(QuantizeLinear, a layer) is exact too; the values are the same in both forms.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Final

import numpy as np
import numpy.typing as npt

from engines.fixed_tensor import (
    MAX_BITS,
    FixedTensor,
    Refused,
    add,
    aligned,
    divided,
    from_floats,
    multiply,
    on_one_grid,
    rounded_to_float32,
)
from engines.reference_values import (
    Array,
    Attributes,
    Inputs,
    Rounded,
    Value,
    array,
    fits_float32,
    fixed,
    floats,
    given,
    integers,
    is_rounded,
    shape_of,
    whole,
)
from engines.runner import FloatArray

__all__ = [
    "absolute",
    "add_values",
    "clip",
    "divide",
    "floor",
    "mean",
    "multiply_values",
    "negate",
    "prelu",
    "relu",
    "subtract",
    "total",
]

_UNBOUNDED: Final = float(np.finfo(np.float32).max)  # some exporters write the largest float for "no bound"


def add_values(inputs: Inputs, attributes: Attributes) -> Value:
    """ONNX Add."""
    return _once_rounded(given(inputs, 0), given(inputs, 1), add, np.add)


def subtract(inputs: Inputs, attributes: Attributes) -> Value:
    """ONNX Sub."""
    return _once_rounded(given(inputs, 0), given(inputs, 1), lambda a, b: add(a, _negative(b)), np.subtract)


def multiply_values(inputs: Inputs, attributes: Attributes) -> Value:
    """ONNX Mul."""
    return _once_rounded(given(inputs, 0), given(inputs, 1), multiply, np.multiply)


def divide(inputs: Inputs, attributes: Attributes) -> Value:
    """ONNX Div: exact by constants that are powers of two, else one float32 division."""
    a, b = given(inputs, 0), given(inputs, 1)
    inverse = None if isinstance(b, FixedTensor | Rounded) else _inverse(b)
    if inverse is not None and not is_rounded(a):
        return _once_rounded(a, inverse, multiply, np.multiply)
    with np.errstate(all="ignore"):
        return Rounded(np.divide(floats(a), floats(b)))


def relu(inputs: Inputs, attributes: Attributes) -> Value:
    """ONNX Relu."""
    x = given(inputs, 0)
    if isinstance(x, Rounded):
        return Rounded(np.maximum(x.values, np.float32(0)))
    x = fixed(x)
    return replace(x, codes=np.maximum(x.codes, 0))


def prelu(inputs: Inputs, attributes: Attributes) -> Value:
    """ONNX PRelu: the slope is a float32 or lies on a grid, so that the product is exact before its one rounding."""
    x, slope = given(inputs, 0), given(inputs, 1)
    return _once_rounded(x, slope, _sloped, lambda a, b: np.where(a < 0, a * b, a))


def clip(inputs: Inputs, attributes: Attributes) -> Value:
    """ONNX Clip, with constant bounds; of values, or of raw codes."""
    x = given(inputs, 0)
    for bound, pick in ((array(inputs, 1), np.maximum), (array(inputs, 2), np.minimum)):
        if bound is None or (np.abs(bound.astype(np.float64)) >= _UNBOUNDED).all():
            continue
        if isinstance(x, FixedTensor):
            codes, limit, exponent, divisor = aligned(x, from_floats(bound))
            x = FixedTensor(pick(codes, limit), exponent, divisor)
        elif isinstance(x, Rounded):
            x = Rounded(pick(x.values, bound.astype(np.float32)))
        else:  # raw codes
            x = pick(x, bound.astype(x.dtype))
    return x


def absolute(inputs: Inputs, attributes: Attributes) -> Value:
    """ONNX Abs."""
    x = given(inputs, 0)
    if isinstance(x, Rounded):
        return Rounded(np.abs(x.values))
    x = fixed(x)
    return replace(x, codes=np.abs(x.codes))


def negate(inputs: Inputs, attributes: Attributes) -> Value:
    """ONNX Neg."""
    x = given(inputs, 0)
    return Rounded(-x.values) if isinstance(x, Rounded) else _negative(fixed(x))


def floor(inputs: Inputs, attributes: Attributes) -> Value:
    """ONNX Floor."""
    x = given(inputs, 0)
    if isinstance(x, Rounded) or (isinstance(x, FixedTensor) and x.divisor != 1):
        return Rounded(np.floor(floats(x)))
    x = fixed(x)
    # an arithmetic shift rounds down; |codes| <= 2^60, so 63 bits leave 0 or -1
    shift = np.clip(-x.exponent, 0, 63)
    return FixedTensor(x.codes >> shift, np.maximum(x.exponent, 0))


def total(inputs: Inputs, attributes: Attributes) -> Value:
    """ONNX ReduceSum: the true sum; of floats, one rounding of the float64 sum."""
    return _reduced(inputs, attributes)[0]


def mean(inputs: Inputs, attributes: Attributes) -> Value:
    """ONNX ReduceMean: exact as an average pool is; of floats, one rounding."""
    sums, count = _reduced(inputs, attributes)
    if isinstance(sums, Rounded):
        return Rounded(sums.values / np.float32(count))
    return divided(fixed(sums), count)


def _once_rounded(
    a: Value,
    b: Value,
    exact: Callable[[FixedTensor, FixedTensor], FixedTensor],
    ieee: Callable[[FloatArray, FloatArray], npt.NDArray[np.generic]],
) -> Value:
    """One float32 operation; on exact operands in integers, so that its result stays exact for later readers."""
    if not is_rounded(a, b):
        try:
            return rounded_to_float32(exact(fixed(a), fixed(b)))
        except Refused:  # no 60 bits hold the exact result, but float32 may hold the operands
            if not (fits_float32(a) and fits_float32(b)):
                raise
    with np.errstate(all="ignore"):
        return Rounded(ieee(floats(a), floats(b)).astype(np.float32, copy=False))


def _sloped(x: FixedTensor, slope: FixedTensor) -> FixedTensor:
    positive, negative = replace(x, codes=np.maximum(x.codes, 0)), replace(x, codes=np.minimum(x.codes, 0))
    return add(positive, multiply(negative, slope))


def _negative(x: FixedTensor) -> FixedTensor:
    return replace(x, codes=-x.codes)


def _inverse(constant: Array) -> FixedTensor | None:
    """1 / constant where that is exact: all its values are powers of two, of either sign."""
    if constant.dtype.kind != "f" or not np.isfinite(constant).all():
        return None
    parts = from_floats(constant)
    return FixedTensor(parts.codes, -parts.exponent) if (np.abs(parts.codes) == 1).all() else None


def _reduced(inputs: Inputs, attributes: Attributes) -> tuple[Value, int]:
    """Sums, and the number of elements in each."""
    x = given(inputs, 0)
    shape, axes = shape_of(x), _axes(inputs, attributes, len(shape_of(x)))
    keep = bool(whole(attributes, "keepdims", 1))
    count = math.prod(shape[axis] for axis in axes)
    if isinstance(x, Rounded):
        sums = np.asarray(x.values.sum(axis=axes, keepdims=keep, dtype=np.float64), np.float32)
        return Rounded(sums), count
    x = on_one_grid(fixed(x))
    if x.codes.size and float(np.abs(x.codes).max()) * count > 2.0**MAX_BITS:
        raise Refused(f"its sums need more than {MAX_BITS} bits")
    return replace(x, codes=np.asarray(x.codes.sum(axis=axes, keepdims=keep), np.int64)), count


def _axes(inputs: Inputs, attributes: Attributes, rank: int) -> tuple[int, ...]:
    axes = integers(inputs, 1) if len(inputs) > 1 else attributes.get("axes")
    if isinstance(axes, int | float | str):
        raise Refused(f"its axes are {axes}")
    if not axes:
        return () if whole(attributes, "noop_with_empty_axes", 0) else tuple(range(rank))
    if any(not -rank <= axis < rank for axis in axes):
        raise Refused(f"it reduces axes {axes} of {rank} dimensions")
    return tuple(axis % rank for axis in axes)
