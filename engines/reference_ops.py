"""The operators of our ONNX files in exact arithmetic: the table of all, and quantizing itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np

from engines import reference_arithmetic as arithmetic
from engines import reference_layers as layers
from engines import reference_shapes as shapes
from engines.fixed_tensor import FixedTensor, IntArray, Refused, from_floats, round_half_even
from engines.reference_float import FUNCTIONS
from engines.reference_resize import resize
from engines.reference_values import Array, Attributes, Inputs, Operator, Rounded, Value, array, given, shape_of, whole

__all__ = ["OPERATORS"]

_STORAGE: Final[Mapping[str, tuple[int, int]]] = {"int8": (-128, 127), "uint8": (0, 255)}
_LARGEST_FACTOR: Final = 127  # batch-norm multipliers have 7 bits and a sign (paper 2.1)


def _quantize(inputs: Inputs, attributes: Attributes) -> Value:
    x, point = given(inputs, 0), array(inputs, 2)
    low, high = _storage(np.dtype(np.uint8) if point is None else point.dtype)
    rank = len(shape_of(x))
    factor, exponent = _grid(inputs, attributes, rank)
    if not (factor == 1).all():
        raise Refused("its scale is not a power of two")
    zero = _on_axis(_zero(point), attributes, rank)
    if isinstance(x, FixedTensor):
        saturated: IntArray = np.clip(round_half_even(x, exponent) + zero, low, high)
        return saturated
    values = x.values if isinstance(x, Rounded) else x.astype(np.float32)
    if np.isnan(values).any():
        raise Refused("it quantizes NaN, which has no code")
    # floats: division by a power of two is exact in float32, and rint rounds half to even, as ONNX says
    with np.errstate(over="ignore"):
        nearest = np.rint(values / np.ldexp(np.float32(1), exponent))
    return np.clip(nearest, low - zero, high - zero).astype(np.int64) + zero


def _dequantize(inputs: Inputs, attributes: Attributes) -> Value:
    raw = given(inputs, 0)
    if isinstance(raw, FixedTensor | Rounded) or raw.dtype.kind not in "iu":
        raise Refused("it reads values that are not integer codes")
    factor, exponent = _grid(inputs, attributes, raw.ndim)
    codes = raw.astype(np.int64) - _on_axis(_zero(array(inputs, 2)), attributes, raw.ndim)
    return FixedTensor(codes if (factor == 1).all() else codes * factor, exponent)


OPERATORS: Final[Mapping[str, Operator]] = {
    **FUNCTIONS,
    "Abs": arithmetic.absolute,
    "Add": arithmetic.add_values,
    "AveragePool": layers.average_pool,
    "Clip": arithmetic.clip,
    "Concat": shapes.concat,
    "Conv": layers.convolution,
    "ConvTranspose": layers.transposed_convolution,
    "DequantizeLinear": _dequantize,
    "Div": arithmetic.divide,
    "Dropout": shapes.identity,
    "Expand": shapes.expand,
    "Flatten": shapes.flatten,
    "Floor": arithmetic.floor,
    "Gather": shapes.gather,
    "Gemm": layers.gemm,
    "GlobalAveragePool": layers.global_average_pool,
    "Identity": shapes.identity,
    "MatMul": layers.matrix_product,
    "MaxPool": layers.max_pool,
    "Mul": arithmetic.multiply_values,
    "Neg": arithmetic.negate,
    "PRelu": arithmetic.prelu,
    "Pad": shapes.pad,
    "QuantizeLinear": _quantize,
    "ReduceMean": arithmetic.mean,
    "ReduceSum": arithmetic.total,
    "Relu": arithmetic.relu,
    "Reshape": shapes.reshape,
    "Resize": resize,
    "Shape": shapes.shape,
    "Slice": shapes.slices,
    "Squeeze": shapes.squeeze,
    "Sub": arithmetic.subtract,
    "Transpose": shapes.transpose,
    "Unsqueeze": shapes.unsqueeze,
}


def _grid(inputs: Inputs, attributes: Attributes, rank: int) -> tuple[IntArray, IntArray]:
    """A scale as odd factor and exponent, both broadcasting along the axis it belongs to."""
    scale = array(inputs, 1)
    if scale is None:
        raise Refused("its scale is not a constant")
    parts = from_floats(scale)
    if not ((parts.codes > 0) & (parts.codes <= _LARGEST_FACTOR)).all():
        worst = scale.reshape(-1)[int(np.argmax(((parts.codes <= 0) | (parts.codes > _LARGEST_FACTOR)).reshape(-1)))]
        raise Refused(f"its scale {worst} is not a power of two times a factor of at most {_LARGEST_FACTOR}")
    return _on_axis(parts.codes, attributes, rank), _on_axis(parts.exponent, attributes, rank)


def _on_axis(vector: IntArray, attributes: Attributes, rank: int) -> IntArray:
    if vector.size == 1:
        return vector.reshape(())
    axis = whole(attributes, "axis", 1)
    if not -rank <= axis < rank:
        raise Refused(f"its scales lie on axis {axis}, but its input has {rank} dimensions")
    shape = [1] * rank
    shape[axis] = vector.size
    return vector.reshape(shape)


def _zero(point: Array | None) -> IntArray:
    return np.zeros((), np.int64) if point is None else point.astype(np.int64)


def _storage(dtype: np.dtype[np.generic]) -> tuple[int, int]:
    if dtype.name not in _STORAGE:
        raise Refused(f"it quantizes to {dtype}; only int8 and uint8 are supported")
    return _STORAGE[dtype.name]
