"""Layers and pools of the golden model: exact sums of codes, or float64 rounded once where a part stays float.

Weights behind DequantizeLinear give the true integer, however large. Plain float constants on a grid of few bits (the
0/1 matrices of an adaptive pool) are exact as well; other floats make a float layer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from engines.fixed_tensor import (
    FixedTensor,
    IntArray,
    Refused,
    add,
    divided,
    from_floats,
    multiply,
    on_one_grid,
    rounded_to_float32,
)
from engines.reference_values import Attributes, Inputs, Rounded, Value, fixed, floats, given, shape_of, whole
from engines.transposed_convolution import convolve_transposed, convolve_transposed_floats, spread_of
from engines.windows import (
    Pool,
    WideArray,
    convolve,
    convolve_floats,
    exact_dtype,
    pool_of,
    pooled_max,
    pooled_sum,
    product,
)

__all__ = [
    "average_pool",
    "convolution",
    "gemm",
    "global_average_pool",
    "matrix_product",
    "max_pool",
    "transposed_convolution",
]

_GRID_BITS: Final = 16  # a float constant whose values span no more than this was meant to lie on a grid


def convolution(inputs: Inputs, attributes: Attributes) -> Value:
    """ONNX Conv in one to three dimensions."""
    x, weight, groups = given(inputs, 0), given(inputs, 1), whole(attributes, "group", 1)
    pool = pool_of(attributes, shape_of(weight)[2:], shape_of(x)[2:])
    if _is_float_layer(x, weight):
        return _float_sums(convolve_floats(_wide(x), _wide(weight), pool, groups), inputs)
    a, w = on_one_grid(fixed(x)), on_one_grid(fixed(weight), axis=0)
    codes = convolve(a.codes, w.codes, pool, groups)
    return _sums(codes, a, w.exponent.reshape(-1), inputs)


def transposed_convolution(inputs: Inputs, attributes: Attributes) -> Value:
    """ONNX ConvTranspose in one to three dimensions, one weight exponent or one for each output channel (axis 1)."""
    x, weight, groups = given(inputs, 0), given(inputs, 1), whole(attributes, "group", 1)
    spread = spread_of(attributes, shape_of(weight)[2:], shape_of(x)[2:])
    if _is_float_layer(x, weight):
        return _float_sums(convolve_transposed_floats(_wide(x), _wide(weight), spread, groups), inputs)
    a, w = on_one_grid(fixed(x)), on_one_grid(fixed(weight), axis=1)
    codes = convolve_transposed(a.codes, w.codes, spread, groups)
    exponent = w.exponent.reshape(-1)
    return _sums(codes, a, np.tile(exponent, groups) if exponent.size > 1 else exponent, inputs)


def gemm(inputs: Inputs, attributes: Attributes) -> Value:
    """ONNX Gemm with alpha = beta = 1 and A not transposed."""
    if attributes.get("alpha", 1.0) != 1.0 or attributes.get("beta", 1.0) != 1.0 or whole(attributes, "transA", 0):
        raise Refused("alpha, beta and transA other than 1, 1 and 0 are not supported")
    x, weight, turned = given(inputs, 0), given(inputs, 1), not whole(attributes, "transB", 0)
    if _is_float_layer(x, weight):
        matrix = _wide(weight)
        return _float_sums(_wide(x) @ (matrix if turned else matrix.T), inputs)
    a, w = on_one_grid(fixed(x)), fixed(weight)
    if turned:
        w = FixedTensor(w.codes.T, w.exponent if w.exponent.size == 1 else w.exponent.T, w.divisor)
    w = on_one_grid(w, axis=0)
    return _sums(product(a.codes, w.codes), a, w.exponent.reshape(-1), inputs)


def matrix_product(inputs: Inputs, attributes: Attributes) -> Value:
    """ONNX MatMul: of activations and a constant on either side, or of two activations."""
    a, b = given(inputs, 0), given(inputs, 1)
    if min(len(shape_of(a)), len(shape_of(b))) < 2:
        raise Refused("it multiplies vectors; only matrices and stacks of them are supported")
    if _is_float_layer(a, b) or _is_float_layer(b, a):
        return Rounded((_wide(a) @ _wide(b)).astype(np.float32))
    # rows of the left and columns of the right may keep grids of their own: nothing is summed over them
    left, right = on_one_grid(fixed(a), axis=-2), on_one_grid(fixed(b), axis=-1)
    columns = np.moveaxis(right.codes, -1, 0).reshape(right.codes.shape[-1], -1)
    dtype = exact_dtype(left.codes, columns)  # a bound: it adds the columns of all matrices in a stack
    codes = np.matmul(left.codes.astype(dtype), right.codes.astype(dtype)).astype(np.int64)
    return _from_file(FixedTensor(codes, left.exponent + right.exponent, left.divisor * right.divisor), a, b)


def max_pool(inputs: Inputs, attributes: Attributes) -> Value:
    """ONNX MaxPool in one to three dimensions."""
    x = given(inputs, 0)
    pool = _pool(x, attributes)
    if isinstance(x, Rounded):
        return Rounded(pooled_max(x.values, pool))
    x = on_one_grid(fixed(x), axis=1)
    return replace(x, codes=pooled_max(x.codes, pool))


def average_pool(inputs: Inputs, attributes: Attributes) -> Value:
    """ONNX AveragePool in one to three dimensions."""
    x = given(inputs, 0)
    return _average(x, _pool(x, attributes), bool(attributes.get("count_include_pad", 0)))


def global_average_pool(inputs: Inputs, attributes: Attributes) -> Value:
    """ONNX GlobalAveragePool."""
    x = given(inputs, 0)
    return _average(x, pool_of({}, shape_of(x)[2:], shape_of(x)[2:]), include_pad=False)


def _is_float_layer(x: Value, weight: Value) -> bool:
    if isinstance(x, Rounded) or isinstance(weight, Rounded):
        return True
    if isinstance(weight, FixedTensor):
        return False
    if not np.isfinite(weight).all():
        raise Refused("its weight holds NaN or infinity")
    parts = from_floats(weight)
    live = parts.codes != 0
    if not live.any():
        return False
    highest = np.frexp(np.abs(weight.astype(np.float64)).max())[1]
    return bool(highest - parts.exponent[live].min() > _GRID_BITS)


def _wide(value: Value) -> WideArray:
    return floats(value).astype(np.float64)


def _sums(codes: IntArray, x: FixedTensor, exponent: IntArray, inputs: Inputs) -> Value:
    """Sums of a layer with its bias; `exponent` of the weight: one, or one for each output channel."""
    shape = (1, -1) + (1,) * (codes.ndim - 2) if exponent.size > 1 else ()
    sums = FixedTensor(codes, x.exponent + exponent.reshape(shape), x.divisor)
    if len(inputs) > 2 and inputs[2] is not None:
        bias = fixed(inputs[2])
        shape = (1, -1) + (1,) * (codes.ndim - 2)
        exponents = np.broadcast_to(bias.exponent, bias.codes.shape).reshape(shape)
        sums = add(sums, FixedTensor(bias.codes.reshape(shape), exponents, bias.divisor))
    return _from_file(sums, given(inputs, 1))


def _from_file(sums: FixedTensor, *operands: Value) -> FixedTensor:
    """With a plain float constant a layer returns float32; integer layers return the true integer."""
    constant = any(not isinstance(operand, FixedTensor) for operand in operands)
    return rounded_to_float32(sums) if constant else sums


def _float_sums(sums: WideArray, inputs: Inputs) -> Value:
    if len(inputs) > 2 and inputs[2] is not None:
        bias = _wide(inputs[2])
        sums = sums + bias.reshape((1, -1) + (1,) * (sums.ndim - 2))
    return Rounded(sums.astype(np.float32))


def _average(x: Value, pool: Pool, include_pad: bool) -> Value:
    if isinstance(x, Rounded):
        totals, sizes = pooled_sum(x.values.astype(np.float64), pool, include_pad)
        return Rounded((totals / sizes).astype(np.float32))
    x = on_one_grid(fixed(x), axis=1)
    sums, counts = pooled_sum(x.codes, pool, include_pad)
    # windows at the border may hold fewer elements: all sums go to one common denominator
    common = math.lcm(*np.unique(counts).tolist())
    shares = FixedTensor(common // counts, np.zeros((), np.int64))
    return divided(multiply(replace(x, codes=sums), shares), common)


def _pool(x: Value, attributes: Attributes) -> Pool:
    kernel = attributes.get("kernel_shape")
    if not isinstance(kernel, Sequence) or isinstance(kernel, str):
        raise Refused("it has no kernel_shape")
    return pool_of(attributes, tuple(kernel), shape_of(x)[2:])
