"""Functions that no integers hold (sigmoid, erf, square root): float32 results, each rounded once."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Final

import numpy as np

from engines.fixed_tensor import FixedTensor
from engines.reference_values import Attributes, Inputs, Operator, Rounded, Value, floats, given
from engines.runner import FloatArray
from engines.windows import WideArray

__all__ = ["FUNCTIONS"]

Function = Callable[[WideArray, float], WideArray]


def _function(formula: Function, alpha: float = 1.0) -> Operator:
    """An operator that computes a formula in float64 and rounds it to float32.

    Args:
        formula: of an array and of the attribute alpha.
        alpha: where the node has none.

    Returns:
        The operator.
    """

    def operator(inputs: Inputs, attributes: Attributes) -> Value:
        slope = attributes.get("alpha", alpha)
        factor = float(slope) if isinstance(slope, int | float) else alpha

        def nearest(values: FloatArray) -> FloatArray:
            with np.errstate(all="ignore"):  # log(0) is minus infinity, which saturates
                return formula(values.astype(np.float64), factor).astype(np.float32)

        return Rounded(_each(given(inputs, 0), nearest))

    return operator


def _each(x: Value, nearest: Callable[[FloatArray], FloatArray]) -> FloatArray:
    """The function of every element; of every code once, where there are fewer codes than elements."""
    if isinstance(x, FixedTensor) and x.exponent.size == 1 and x.codes.size:
        low, high = int(x.codes.min()), int(x.codes.max())
        if high - low < x.codes.size:
            codes = FixedTensor(np.arange(low, high + 1), x.exponent.reshape(()), x.divisor)
            return nearest(floats(codes))[x.codes - low]
    return nearest(floats(x))


def _sigmoid(x: WideArray, _: float) -> WideArray:
    small = np.exp(-np.abs(x))  # never above 1, so that nothing overflows
    return np.where(x < 0, small, 1.0) / (1.0 + small)


def _erf(x: WideArray, _: float) -> WideArray:
    return np.fromiter(map(math.erf, x.reshape(-1).tolist()), np.float64, x.size).reshape(x.shape)


def _softplus(x: WideArray, _: float) -> WideArray:
    return np.maximum(x, 0.0) + np.log1p(np.exp(-np.abs(x)))


def _elu(x: WideArray, alpha: float) -> WideArray:
    return np.where(x < 0, alpha * np.expm1(np.minimum(x, 0.0)), x)


def _sqrt(inputs: Inputs, attributes: Attributes) -> Value:
    """A root is rounded in any case, so that its operand may be (in norms that were kept in float)."""
    x = given(inputs, 0)
    if isinstance(x, FixedTensor):
        wide = np.ldexp(x.codes.astype(np.float64), x.exponent) / x.divisor
    else:
        wide = floats(x).astype(np.float64)
    return Rounded(np.sqrt(wide.astype(np.float32).astype(np.float64)).astype(np.float32))


FUNCTIONS: Final[Mapping[str, Operator]] = {
    "Cos": _function(lambda x, _: np.cos(x)),
    "Elu": _function(_elu),
    "Erf": _function(_erf),
    "Exp": _function(lambda x, _: np.exp(x)),
    "Log": _function(lambda x, _: np.log(x)),
    "Reciprocal": _function(lambda x, _: 1.0 / x),  # of float32: rounding twice does no harm
    "Sigmoid": _function(_sigmoid),
    "Sin": _function(lambda x, _: np.sin(x)),
    "Softplus": _function(_softplus),
    "Softsign": _function(lambda x, _: x / (1.0 + np.abs(x))),
    "Sqrt": _sqrt,
    "Tanh": _function(lambda x, _: np.tanh(x)),
}
