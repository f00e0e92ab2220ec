"""ONNX Resize in the golden model: nearest moves codes, linear is exact where its weights are dyadic."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Final

import numpy as np

from engines.fixed_tensor import Refused, on_one_grid
from engines.reference_shapes import moved
from engines.reference_values import Attributes, Inputs, Rounded, Value, array, fixed, floats, given, integers, shape_of
from engines.windows import product

__all__ = ["resize"]

# place of output element i in the input: (i, input size, output size, output size / input size)
Coordinate = Callable[[int, int, int, Fraction], Fraction]
_HALF: Final = Fraction(1, 2)
_EXACT_BITS: Final = 16  # of a weight: beyond it sums of codes would leave float32

_COORDINATES: Final[Mapping[str, Coordinate]] = {
    "align_corners": lambda i, old, new, scale: Fraction(i * (old - 1), new - 1) if new > 1 else Fraction(0),
    "asymmetric": lambda i, old, new, scale: i / scale,
    "half_pixel": lambda i, old, new, scale: (i + _HALF) / scale - _HALF,
    "pytorch_half_pixel": lambda i, old, new, scale: (i + _HALF) / scale - _HALF if new > 1 else Fraction(0),
}
_NEAREST: Final[Mapping[str, Callable[[Fraction], int]]] = {
    "ceil": math.ceil,
    "floor": math.floor,
    "round_prefer_ceil": lambda place: math.floor(place + _HALF),
    "round_prefer_floor": lambda place: math.ceil(place - _HALF),
}
_DEFAULTS: Final[Mapping[str, str]] = {
    "mode": "nearest",
    "coordinate_transformation_mode": "half_pixel",
    "nearest_mode": "round_prefer_floor",
}


def resize(inputs: Inputs, attributes: Attributes) -> Value:
    """ONNX Resize by nearest or linear interpolation, in fractions: no coordinate is ever rounded.

    Args:
        inputs: values, roi (unused), scales, sizes; one of the last two.
        attributes: mode, coordinate_transformation_mode, nearest_mode.

    Returns:
        Exact values where all weights are dyadic, else float32 rounded once.

    Raises:
        Refused: cubic interpolation, cropping, or antialiasing.
    """
    mode, coordinate, nearest = (attributes.get(name, default) for name, default in _DEFAULTS.items())
    if attributes.get("antialias", 0) or attributes.get("exclude_outside", 0) or mode not in ("nearest", "linear"):
        raise Refused("only plain nearest and linear interpolation are supported")
    if coordinate not in _COORDINATES or nearest not in _NEAREST:
        raise Refused(f"coordinates {coordinate} and {nearest} are not supported")
    x = given(inputs, 0)
    places = _places(shape_of(x), inputs, _COORDINATES[str(coordinate)])
    if mode == "nearest":
        pick = _NEAREST[str(nearest)]
        for axis, row in places.items():
            last = shape_of(x)[axis] - 1
            indices = np.array([min(max(pick(place), 0), last) for place in row], np.int64)
            x = _taken(x, indices, axis)
        return x
    return _interpolated(x, {axis: _weights(row, shape_of(x)[axis]) for axis, row in places.items()})


def _places(old: Sequence[int], inputs: Inputs, coordinate: Coordinate) -> dict[int, list[Fraction]]:
    """For each axis that changes: the place in the input of every output element."""
    sizes, scales = integers(inputs, 3), array(inputs, 2)
    if sizes:
        factors = [Fraction(new, before) for new, before in zip(sizes, old, strict=True)]
    elif scales is not None and scales.size == len(old):
        factors = [Fraction(scale) for scale in scales.astype(np.float64).tolist()]
        sizes = tuple(math.floor(before * factor) for before, factor in zip(old, factors, strict=True))
    else:
        raise Refused("it has neither scales nor sizes for each dimension")
    return {
        axis: [coordinate(i, old[axis], sizes[axis], factor) for i in range(sizes[axis])]
        for axis, factor in enumerate(factors)
        if factor != 1
    }


def _weights(places: Sequence[Fraction], size: int) -> list[list[Fraction]]:
    """Interpolation matrix of one axis, (output, input): each row holds one or two weights that sum to 1."""
    rows = []
    for place in places:
        inside = min(max(place, Fraction(0)), Fraction(size - 1))
        low = math.floor(inside)
        row = [Fraction(0)] * size
        row[low] += 1 - (inside - low)
        row[min(low + 1, size - 1)] += inside - low
        rows.append(row)
    return rows


def _interpolated(x: Value, matrices: Mapping[int, list[list[Fraction]]]) -> Value:
    commons = {
        axis: math.lcm(*(weight.denominator for row in rows for weight in row)) for axis, rows in matrices.items()
    }
    dyadic = all(common & (common - 1) == 0 for common in commons.values())
    if isinstance(x, Rounded) or not dyadic or math.prod(commons.values()) > 2**_EXACT_BITS:
        wide = floats(x).astype(np.float64)
        for axis, rows in matrices.items():
            wide = np.moveaxis(np.moveaxis(wide, axis, -1) @ np.array(rows, np.float64).T, -1, axis)
        return Rounded(wide.astype(np.float32))
    exact = on_one_grid(fixed(x))
    for axis, rows in matrices.items():
        units = np.array([[int(weight * commons[axis]) for weight in row] for row in rows], np.int64)
        lines = np.moveaxis(exact.codes, axis, -1)
        sums = product(lines.reshape(-1, lines.shape[-1]), units).reshape(*lines.shape[:-1], len(rows))
        exponent = exact.exponent - (commons[axis].bit_length() - 1)
        exact = replace(exact, codes=np.moveaxis(sums, -1, axis), exponent=exponent)
    return exact


def _taken(x: Value, indices: np.ndarray[tuple[int, ...], np.dtype[np.int64]], axis: int) -> Value:
    return moved(x, lambda values: np.take(values, indices, axis))
