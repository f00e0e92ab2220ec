"""The operators of our ONNX files in exact integer arithmetic: what each one does to a FixedTensor."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Final

import numpy as np
import numpy.typing as npt

from engines.fixed_tensor import (
    FixedTensor,
    IntArray,
    Refused,
    add,
    aligned,
    divided,
    from_floats,
    multiply,
    on_one_grid,
    round_half_even,
    times,
)
from engines.qdq_graph import Attribute
from engines.windows import Pool, convolve, pool_of, pooled_max, pooled_sum, product

__all__ = ["OPERATORS", "Attributes", "Operator", "Value", "fixed"]

# What flows along an edge: floats (the graph input, float constants), raw codes as stored, or exact values.
Value = npt.NDArray[np.generic] | FixedTensor
Attributes = Mapping[str, Attribute]
Operator = Callable[[Sequence[Value | None], Attributes], Value]

_STORAGE: Final[Mapping[str, tuple[int, int]]] = {"int8": (-128, 127), "uint8": (0, 255)}
_LARGEST_FACTOR: Final = 127  # batch-norm multipliers have 7 bits and a sign (paper 2.1)


def fixed(value: Value) -> FixedTensor:
    """An operand as exact values; float constants are dyadic, so nothing is lost."""
    return value if isinstance(value, FixedTensor) else from_floats(value)


def _quantize(inputs: Sequence[Value | None], attributes: Attributes) -> Value:
    x, point = _given(inputs, 0), _array(inputs, 2)
    low, high = _storage(np.dtype(np.uint8) if point is None else point.dtype)
    factor, exponent = _grid(inputs, attributes, _rank(x))
    if not (factor == 1).all():
        raise Refused("its scale is not a power of two")
    zero = _on_axis(_zero(point), attributes, _rank(x))
    if isinstance(x, FixedTensor):
        saturated: IntArray = np.clip(round_half_even(x, exponent) + zero, low, high)
        return saturated
    # the graph input: division by a power of two is exact in float32, and rint rounds half to even, as ONNX says
    with np.errstate(over="ignore"):
        nearest = np.rint(np.asarray(x, np.float32) / np.ldexp(np.float32(1), exponent))
    return np.clip(nearest, low - zero, high - zero).astype(np.int64) + zero


def _dequantize(inputs: Sequence[Value | None], attributes: Attributes) -> Value:
    raw = _given(inputs, 0)
    if isinstance(raw, FixedTensor) or raw.dtype.kind not in "iu":
        raise Refused("it reads values that are not integer codes")
    factor, exponent = _grid(inputs, attributes, raw.ndim)
    codes = raw.astype(np.int64) - _on_axis(_zero(_array(inputs, 2)), attributes, raw.ndim)
    return FixedTensor(codes if (factor == 1).all() else codes * factor, exponent)


def _clip(inputs: Sequence[Value | None], attributes: Attributes) -> Value:
    x = _given(inputs, 0)
    for bound, pick in ((_array(inputs, 1), np.maximum), (_array(inputs, 2), np.minimum)):
        if bound is None or np.isinf(bound).all():
            continue
        if isinstance(x, FixedTensor):
            codes, limit, exponent, divisor = aligned(x, from_floats(bound))
            x = FixedTensor(pick(codes, limit), exponent, divisor)
        else:  # raw codes, or the graph input
            x = pick(x, bound.astype(x.dtype))
    return x


def _relu(inputs: Sequence[Value | None], attributes: Attributes) -> Value:
    x = fixed(_given(inputs, 0))
    return replace(x, codes=np.maximum(x.codes, 0))


def _add(inputs: Sequence[Value | None], attributes: Attributes) -> Value:
    return add(fixed(_given(inputs, 0)), fixed(_given(inputs, 1)))


def _mul(inputs: Sequence[Value | None], attributes: Attributes) -> Value:
    return multiply(fixed(_given(inputs, 0)), fixed(_given(inputs, 1)))


def _concat(inputs: Sequence[Value | None], attributes: Attributes) -> Value:
    parts = [fixed(part) for part in inputs if part is not None]
    axis = _whole(attributes, "axis", 1)
    divisor = math.lcm(*(part.divisor for part in parts))
    codes = np.concatenate([times(part.codes, divisor // part.divisor) for part in parts], axis)
    exponents = [part.exponent for part in parts]
    if all(np.array_equal(exponent, exponents[0]) and exponent.size == 1 for exponent in exponents):
        return FixedTensor(codes, exponents[0], divisor)
    shapes = []
    for part in parts:
        shape = list(np.broadcast_shapes((1,) * part.codes.ndim, *(exponent.shape for exponent in exponents)))
        shape[axis] = part.codes.shape[axis]
        shapes.append(shape)
    spread = [np.broadcast_to(exponent, shape) for exponent, shape in zip(exponents, shapes, strict=True)]
    return FixedTensor(codes, np.concatenate(spread, axis), divisor)


def _max_pool(inputs: Sequence[Value | None], attributes: Attributes) -> Value:
    x = on_one_grid(fixed(_given(inputs, 0)), axis=1)
    return replace(x, codes=pooled_max(x.codes, _pool(x, attributes)))


def _average_pool(inputs: Sequence[Value | None], attributes: Attributes) -> Value:
    return _average(inputs, lambda x: _pool(x, attributes), bool(attributes.get("count_include_pad", 0)))


def _global_average_pool(inputs: Sequence[Value | None], attributes: Attributes) -> Value:
    return _average(inputs, lambda x: pool_of({}, x.codes.shape[2:], x.codes.shape[2:]), include_pad=False)


def _flatten(inputs: Sequence[Value | None], attributes: Attributes) -> Value:
    x = _given(inputs, 0)
    shape = x.codes.shape if isinstance(x, FixedTensor) else x.shape
    axis = _whole(attributes, "axis", 1)
    return _reshaped(x, (math.prod(shape[:axis]), math.prod(shape[axis:])))


def _reshape(inputs: Sequence[Value | None], attributes: Attributes) -> Value:
    x, wanted = _given(inputs, 0), _array(inputs, 1)
    if wanted is None:
        raise Refused("its shape is not a constant")
    shape = x.codes.shape if isinstance(x, FixedTensor) else x.shape
    copied = [shape[i] if size == 0 else int(size) for i, size in enumerate(wanted.tolist())]
    return _reshaped(x, tuple(copied))


def _conv(inputs: Sequence[Value | None], attributes: Attributes) -> Value:
    x, weight = on_one_grid(fixed(_given(inputs, 0))), on_one_grid(fixed(_given(inputs, 1)), axis=0)
    if x.codes.ndim != 4:
        raise Refused(f"it reads a tensor of rank {x.codes.ndim}; only images (N, C, H, W) are supported")
    pool = pool_of(attributes, weight.codes.shape[2:], x.codes.shape[2:])
    codes = convolve(x.codes, weight.codes, pool, _whole(attributes, "group", 1))
    exponent = x.exponent + weight.exponent.reshape((1, -1, 1, 1) if weight.exponent.size > 1 else ())
    return _with_bias(FixedTensor(codes, exponent, x.divisor), inputs)


def _gemm(inputs: Sequence[Value | None], attributes: Attributes) -> Value:
    if attributes.get("alpha", 1.0) != 1.0 or attributes.get("beta", 1.0) != 1.0 or _whole(attributes, "transA", 0):
        raise Refused("alpha, beta and transA other than 1, 1 and 0 are not supported")
    x, weight = on_one_grid(fixed(_given(inputs, 0))), fixed(_given(inputs, 1))
    if not _whole(attributes, "transB", 0):
        exponent = weight.exponent if weight.exponent.size == 1 else weight.exponent.T
        weight = FixedTensor(weight.codes.T, exponent, weight.divisor)
    weight = on_one_grid(weight, axis=0)
    codes = product(x.codes, weight.codes)
    exponent = x.exponent + weight.exponent.reshape((1, -1) if weight.exponent.size > 1 else ())
    return _with_bias(FixedTensor(codes, exponent, x.divisor), inputs)


def _identity(inputs: Sequence[Value | None], attributes: Attributes) -> Value:
    return _given(inputs, 0)


OPERATORS: Final[Mapping[str, Operator]] = {
    "Add": _add,
    "AveragePool": _average_pool,
    "Clip": _clip,
    "Concat": _concat,
    "Conv": _conv,
    "DequantizeLinear": _dequantize,
    "Flatten": _flatten,
    "Gemm": _gemm,
    "GlobalAveragePool": _global_average_pool,
    "Identity": _identity,
    "MaxPool": _max_pool,
    "Mul": _mul,
    "QuantizeLinear": _quantize,
    "Relu": _relu,
    "Reshape": _reshape,
}


def _with_bias(sums: FixedTensor, inputs: Sequence[Value | None]) -> FixedTensor:
    if len(inputs) < 3 or inputs[2] is None:
        return sums
    bias = fixed(inputs[2])
    shape = (1, -1) + (1,) * (sums.codes.ndim - 2)
    exponent = np.broadcast_to(bias.exponent, bias.codes.shape)
    return add(sums, FixedTensor(bias.codes.reshape(shape), exponent.reshape(shape), bias.divisor))


def _average(inputs: Sequence[Value | None], pool: Callable[[FixedTensor], Pool], include_pad: bool) -> Value:
    x = on_one_grid(fixed(_given(inputs, 0)), axis=1)
    sums, counts = pooled_sum(x.codes, pool(x), include_pad)
    # windows at the border may hold fewer elements: all sums go to one common denominator
    common = math.lcm(*np.unique(counts).tolist())
    shares = FixedTensor(common // counts, np.zeros((), np.int64))
    return divided(multiply(replace(x, codes=sums), shares), common)


def _grid(inputs: Sequence[Value | None], attributes: Attributes, rank: int) -> tuple[IntArray, IntArray]:
    """A scale as odd factor and exponent, both broadcasting along the axis it belongs to."""
    scale = _array(inputs, 1)
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
    axis = _whole(attributes, "axis", 1)
    if not -rank <= axis < rank:
        raise Refused(f"its scales lie on axis {axis}, but its input has {rank} dimensions")
    shape = [1] * rank
    shape[axis] = vector.size
    return vector.reshape(shape)


def _zero(point: npt.NDArray[np.generic] | None) -> IntArray:
    return np.zeros((), np.int64) if point is None else point.astype(np.int64)


def _storage(dtype: np.dtype[np.generic]) -> tuple[int, int]:
    if dtype.name not in _STORAGE:
        raise Refused(f"it quantizes to {dtype}; only int8 and uint8 are supported")
    return _STORAGE[dtype.name]


def _reshaped(x: Value, shape: tuple[int, ...]) -> Value:
    if not isinstance(x, FixedTensor):
        return x.reshape(shape)
    per_value = x.exponent.size > 1
    exponent = np.broadcast_to(x.exponent, x.codes.shape).reshape(shape) if per_value else x.exponent.reshape(())
    return replace(x, codes=x.codes.reshape(shape), exponent=exponent)


def _pool(x: FixedTensor, attributes: Attributes) -> Pool:
    kernel = attributes.get("kernel_shape")
    if x.codes.ndim != 4 or not isinstance(kernel, Sequence) or isinstance(kernel, str):
        raise Refused("only two-dimensional windows are supported")
    return pool_of(attributes, tuple(kernel), x.codes.shape[2:])


def _given(inputs: Sequence[Value | None], index: int) -> Value:
    value = inputs[index]
    if value is None:
        raise Refused(f"its input {index} is absent")
    return value


def _array(inputs: Sequence[Value | None], index: int) -> npt.NDArray[np.generic] | None:
    value = inputs[index] if len(inputs) > index else None
    if isinstance(value, FixedTensor):
        raise Refused(f"its input {index} is computed; only constants are supported there")
    return value


def _rank(x: Value) -> int:
    return x.codes.ndim if isinstance(x, FixedTensor) else x.ndim


def _whole(attributes: Attributes, name: str, default: int) -> int:
    value = attributes.get(name, default)
    return value if isinstance(value, int) else default
