"""Operators of the golden model that only move elements: the same codes, in other places."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Final

import numpy as np
import numpy.typing as npt

from engines.fixed_tensor import FixedTensor, Refused, aligned, from_floats, on_one_grid, times
from engines.reference_values import (
    Array,
    Attributes,
    Inputs,
    Rounded,
    Value,
    array,
    fixed,
    floats,
    given,
    integers,
    is_rounded,
    shape_of,
    whole,
)
from engines.windows import Number

__all__ = [
    "concat",
    "expand",
    "flatten",
    "gather",
    "identity",
    "moved",
    "pad",
    "reshape",
    "shape",
    "slices",
    "squeeze",
    "transpose",
    "unsqueeze",
]

_PAD_MODES: Final = {"constant": "constant", "edge": "edge", "reflect": "reflect"}
Move = Callable[[Array], Array]


def moved(x: Value, move: Move) -> Value:
    """The same move for elements and, where they differ, for their exponents."""
    if isinstance(x, Rounded):
        return Rounded(_same_type(move, x.values))
    if not isinstance(x, FixedTensor):
        return move(x)
    codes = _same_type(move, x.codes)
    if x.exponent.size == 1:
        return replace(x, codes=codes, exponent=x.exponent.reshape(()))
    return replace(x, codes=codes, exponent=_same_type(move, np.broadcast_to(x.exponent, x.codes.shape)))


def identity(inputs: Inputs, attributes: Attributes) -> Value:
    """ONNX Identity, and Dropout at inference."""
    return given(inputs, 0)


def flatten(inputs: Inputs, attributes: Attributes) -> Value:
    """ONNX Flatten."""
    x = given(inputs, 0)
    sizes, axis = shape_of(x), whole(attributes, "axis", 1)
    wanted = (math.prod(sizes[:axis]), math.prod(sizes[axis:]))
    return moved(x, lambda values: values.reshape(wanted))


def reshape(inputs: Inputs, attributes: Attributes) -> Value:
    """ONNX Reshape; a size of 0 copies the input's."""
    x, wanted = given(inputs, 0), integers(inputs, 1)
    if wanted is None:
        raise Refused("its shape is absent")
    sizes = shape_of(x)
    copied = [sizes[i] if size == 0 else size for i, size in enumerate(wanted)]
    return moved(x, lambda values: values.reshape(copied))


def transpose(inputs: Inputs, attributes: Attributes) -> Value:
    """ONNX Transpose."""
    order = attributes.get("perm")
    if isinstance(order, int | float | str):
        raise Refused(f"its perm is {order}")
    return moved(given(inputs, 0), lambda values: values.transpose(order))


def squeeze(inputs: Inputs, attributes: Attributes) -> Value:
    """ONNX Squeeze, its axes as an input (opset 13)."""
    axes = integers(inputs, 1)
    return moved(given(inputs, 0), lambda values: np.squeeze(values, axes))


def unsqueeze(inputs: Inputs, attributes: Attributes) -> Value:
    """ONNX Unsqueeze, its axes as an input (opset 13)."""
    axes = integers(inputs, 1) or ()
    return moved(given(inputs, 0), lambda values: np.expand_dims(values, axes))


def slices(inputs: Inputs, attributes: Attributes) -> Value:
    """ONNX Slice with constant bounds; steps may be negative."""
    x, starts, ends = given(inputs, 0), integers(inputs, 1) or (), integers(inputs, 2) or ()
    sizes = shape_of(x)
    axes, steps = integers(inputs, 3) or tuple(range(len(starts))), integers(inputs, 4) or (1,) * len(starts)
    places = [slice(None)] * len(sizes)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        places[axis] = _place(start, end, step, sizes[axis])
    return moved(x, lambda values: values[tuple(places)])


def gather(inputs: Inputs, attributes: Attributes) -> Value:
    """ONNX Gather with constant indices."""
    indices, axis = array(inputs, 1), whole(attributes, "axis", 0)
    if indices is None:
        raise Refused("its indices are absent")
    numbers = indices.astype(np.int64)
    return moved(given(inputs, 0), lambda values: np.take(values, numbers, axis))


def expand(inputs: Inputs, attributes: Attributes) -> Value:
    """ONNX Expand."""
    x, wanted = given(inputs, 0), integers(inputs, 1)
    sizes = np.broadcast_shapes(shape_of(x), wanted or ())
    return moved(x, lambda values: np.broadcast_to(values, sizes))


def shape(inputs: Inputs, attributes: Attributes) -> Value:
    """ONNX Shape, from `start` to `end` where they are given (opset 15)."""
    sizes = shape_of(given(inputs, 0))
    return np.array(sizes[whole(attributes, "start", 0) : whole(attributes, "end", len(sizes))], np.int64)


def concat(inputs: Inputs, attributes: Attributes) -> Value:
    """ONNX Concat of values, of floats, or of shapes."""
    values = [part for part in inputs if part is not None]
    axis = whole(attributes, "axis", 1)
    if is_rounded(*values):
        return Rounded(np.concatenate([floats(part) for part in values], axis))
    arrays = [part for part in values if not isinstance(part, FixedTensor | Rounded)]
    if len(arrays) == len(values):
        return np.concatenate(arrays, axis)
    parts = [fixed(part) for part in values]
    divisor = math.lcm(*(part.divisor for part in parts))
    codes = np.concatenate([times(part.codes, divisor // part.divisor) for part in parts], axis)
    exponents = [part.exponent for part in parts]
    if all(np.array_equal(exponent, exponents[0]) and exponent.size == 1 for exponent in exponents):
        return FixedTensor(codes, exponents[0], divisor)
    # exponents may differ along the axis in one part, and along others in another
    elsewhere = [list((1,) * (codes.ndim - exponent.ndim) + exponent.shape) for exponent in exponents]
    for shape in elsewhere:
        shape[axis] = 1
    common = np.broadcast_shapes(*map(tuple, elsewhere))
    spread = []
    for part, exponent in zip(parts, exponents, strict=True):
        size = list(common)
        size[axis] = part.codes.shape[axis]
        spread.append(np.broadcast_to(exponent, size))
    return FixedTensor(codes, np.concatenate(spread, axis), divisor)


def pad(inputs: Inputs, attributes: Attributes) -> Value:
    """ONNX Pad: constant, reflect or edge; negative pads cut off."""
    x, sides = given(inputs, 0), integers(inputs, 1)
    mode, rank = attributes.get("mode", "constant"), len(shape_of(x))
    if not isinstance(mode, str) or mode not in _PAD_MODES:
        raise Refused(f"it pads in mode {mode}; {', '.join(_PAD_MODES)} are supported")
    if sides is None or len(sides) != 2 * rank:
        raise Refused(f"its pads are {sides}, not {2 * rank} numbers")
    filling = array(inputs, 2)
    value = np.zeros((), np.float32) if filling is None else filling.reshape(())
    if isinstance(x, FixedTensor) and mode == "constant" and value != 0:
        codes, filling_codes, exponent, divisor = aligned(on_one_grid(x), from_floats(value))
        x = FixedTensor(codes, exponent.reshape(()), divisor)
        value = filling_codes.reshape(())
    grown = [(max(sides[i], 0), max(sides[i + rank], 0)) for i in range(rank)]
    cut = tuple(slice(max(-sides[i], 0), -max(-sides[i + rank], 0) or None) for i in range(rank))
    return moved(x, lambda values: _padded(values, grown, mode, value)[cut])


def _padded(values: Array, widths: list[tuple[int, int]], mode: str, value: Array) -> Array:
    if mode == "constant":
        return np.pad(values, widths, constant_values=value.astype(values.dtype))
    return np.pad(values, widths, "edge" if mode == "edge" else "reflect")


def _place(start: int, end: int, step: int, size: int) -> slice:
    """The slice that ONNX means: bounds beyond the ends are clamped, and INT_MIN is before the first element."""
    first = start + size if start < 0 else start
    last = end + size if end < 0 else end
    if step > 0:
        return slice(min(max(first, 0), size), min(max(last, 0), size), step)
    last = min(max(last, -1), size - 1)
    return slice(min(max(first, 0), size - 1), None if last < 0 else last, step)


def _same_type(move: Move, values: npt.NDArray[Number]) -> npt.NDArray[Number]:
    result: npt.NDArray[Number] = move(values)  # type: ignore[assignment]
    return result
