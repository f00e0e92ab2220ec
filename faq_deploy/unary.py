"""Functions of one value. On 8-bit codes each is a table of at most 256 entries, kept clear of rounding ties."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from faq_deploy.shifted import MARGIN, Shifted

__all__ = [
    "FUNCTIONS",
    "MARGIN",
    "SELU_ALPHA",
    "SELU_SCALE",
    "CodeRange",
    "Function",
    "Shape",
    "Unary",
    "settle_offset",
]

Array = npt.NDArray[np.float64]

_OFFSETS_A_STEP: Final = 2**10  # an entry excludes at most one of them, and a table has 256 entries


@dataclass(frozen=True)
class Shape:
    """A function's numbers.

    Attributes:
        alpha: of elu and celu; beta of softplus.
        low, high: of clip; None where it has no such bound.
    """

    alpha: float | None = None
    low: float | None = None
    high: float | None = None

    @property
    def slope(self) -> float:
        """`alpha`, 1 where none was given."""
        return 1.0 if self.alpha is None else self.alpha


@dataclass(frozen=True)
class Function:
    """One function, as torch computes it in float32 and as NumPy does in float64."""

    values: Callable[[Tensor, Shape], Tensor]
    exact: Callable[[Array, Shape], Array]


@dataclass(frozen=True)
class CodeRange:
    """A grid: its step is 2^exponent, its codes lie between `low` and `high`."""

    exponent: int
    low: int
    high: int

    def values(self) -> Array:
        """All values of the grid."""
        return np.ldexp(np.arange(self.low, self.high + 1, dtype=np.float64), self.exponent)


def _erf(x: Array) -> Array:
    return np.array([math.erf(value) for value in x.reshape(-1)]).reshape(x.shape)


def _sigmoid(x: Array) -> Array:
    result: Array = np.where(x < 0, np.exp(np.minimum(x, 0)), 1.0) / (1 + np.exp(-np.abs(x)))
    return result


def _softplus(x: Array) -> Array:
    return np.logaddexp(0.0, x)


def _gelu_tanh(x: Array) -> Array:
    result: Array = 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return result


def _elu(x: Array, alpha: float) -> Array:
    return np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0)))


SELU_ALPHA: Final = 1.6732632423543772
SELU_SCALE: Final = 1.0507009873554805

FUNCTIONS: Final[dict[str, Function]] = {
    "silu": Function(lambda x, s: F.silu(x), lambda x, s: x * _sigmoid(x)),
    "sigmoid": Function(lambda x, s: torch.sigmoid(x), lambda x, s: _sigmoid(x)),
    "tanh": Function(lambda x, s: torch.tanh(x), lambda x, s: np.tanh(x)),
    "hardswish": Function(lambda x, s: F.hardswish(x), lambda x, s: x * np.clip(x + 3, 0, 6) / 6),
    "hardsigmoid": Function(lambda x, s: F.hardsigmoid(x), lambda x, s: np.clip(x + 3, 0, 6) / 6),
    "gelu": Function(lambda x, s: F.gelu(x), lambda x, s: 0.5 * x * (1 + _erf(x / math.sqrt(2)))),
    "gelu_tanh": Function(lambda x, s: F.gelu(x, approximate="tanh"), lambda x, s: _gelu_tanh(x)),
    "mish": Function(lambda x, s: F.mish(x), lambda x, s: x * np.tanh(_softplus(x))),
    "softplus": Function(lambda x, s: F.softplus(x, s.slope), lambda x, s: _softplus(x * s.slope) / s.slope),
    "elu": Function(lambda x, s: F.elu(x, s.slope), lambda x, s: _elu(x, s.slope)),
    "selu": Function(lambda x, s: F.selu(x), lambda x, s: SELU_SCALE * _elu(x, SELU_ALPHA)),
    "celu": Function(lambda x, s: F.celu(x, s.slope), lambda x, s: s.slope * _elu(x / s.slope, 1.0)),
    "exp": Function(lambda x, s: torch.exp(x), lambda x, s: np.exp(x)),
    "log": Function(lambda x, s: torch.log(x), lambda x, s: np.log(x)),
    "sqrt": Function(lambda x, s: torch.sqrt(x), lambda x, s: np.sqrt(x)),
    "rsqrt": Function(lambda x, s: torch.rsqrt(x), lambda x, s: 1 / np.sqrt(x)),
    "reciprocal": Function(lambda x, s: torch.reciprocal(x), lambda x, s: 1 / x),
    "abs": Function(lambda x, s: torch.abs(x), lambda x, s: np.abs(x)),
    "neg": Function(lambda x, s: torch.neg(x), lambda x, s: -x),
    "square": Function(lambda x, s: x * x, lambda x, s: x * x),
    "clip": Function(lambda x, s: torch.clamp(x, s.low, s.high), lambda x, s: np.clip(x, s.low, s.high)),
    "softsign": Function(lambda x, s: F.softsign(x), lambda x, s: x / (1 + np.abs(x))),
    "logsigmoid": Function(lambda x, s: F.logsigmoid(x), lambda x, s: -_softplus(-x)),
    "sin": Function(lambda x, s: torch.sin(x), lambda x, s: np.sin(x)),
    "cos": Function(lambda x, s: torch.cos(x), lambda x, s: np.cos(x)),
}

# Their slope at 0 is infinite, and codes are 0 often.
_STEEP_AT_ZERO: Final = frozenset({"log", "sqrt", "rsqrt", "reciprocal"})


class Unary(Shifted):
    """gain·f(x) + offset, elementwise.

    Args:
        function: a key of `FUNCTIONS`.
        shape: its numbers.
        gain: multiplies the result.

    Buffers:
        offset: see `settle_offset`.
    """

    def __init__(self, function: str, shape: Shape, gain: float) -> None:
        super().__init__()
        self.function, self.shape, self.gain = function, shape, gain

    def settle(self, read: CodeRange, written: Sequence[CodeRange]) -> None:
        """Choose the offset for the grid that is read and those that quantize the result."""
        self.shift_by(settle_offset(self.function, self.shape, self.gain, read, written))

    def forward(self, x: Tensor) -> Tensor:
        """Any float32 tensor, same shape out."""
        values = FUNCTIONS[self.function].values
        if self.function in _STEEP_AT_ZERO:
            zero = x == 0  # -0 too: 1/-0 is not what 1/0 is, and codes know no -0
            at_zero = values(x.new_zeros(()), self.shape)
            y = torch.where(zero, at_zero, values(torch.where(zero, 1.0, x), self.shape))
        else:
            y = values(x, self.shape)
        if self.gain != 1.0:
            y = y * self.gain
        return self.shifted(y)


def settle_offset(function: str, shape: Shape, gain: float, read: CodeRange, written: Sequence[CodeRange]) -> float:
    """The smallest shift of a function's table that keeps all its entries clear of rounding ties.

    A quantizer rounds gain·f(x) to a code. Where that lies next to a tie, libraries whose float32 results differ in
    the last bit would give different codes. The table is small, so a shift that no one notices (at most 1/8 of a
    step) is found by trying. Entries for which torch's own float32 result is less accurate get more room, if there is
    any.

    Args:
        function, shape, gain: see `Unary`.
        read: the input's grid.
        written: grids of the quantizers that read the result; entries outside them saturate and cannot tie.

    Returns:
        m·2^(l - 10), l the finest exponent of `written`, |m| as small as can be; 0 if nobody quantizes the result.
    """
    if not written:
        return 0.0
    values = read.values()
    with np.errstate(all="ignore"):
        exact = FUNCTIONS[function].exact(values, shape) * gain
        single = FUNCTIONS[function].values(torch.from_numpy(values).float(), shape).double().numpy() * gain
    finite = np.isfinite(exact)
    exact, single = exact[finite], single[finite]
    if exact.size == 0:
        return 0.0
    unit = math.ldexp(1.0, min(grid.exponent for grid in written)) / _OFFSETS_A_STEP
    order = np.arange(1, _OFFSETS_A_STEP // 2 + 1)
    offsets = np.concatenate([[0], np.stack([order, -order], 1).reshape(-1)]) * unit
    room = np.full(len(offsets), np.inf)
    safe_room = np.full(len(offsets), np.inf)
    for grid in written:
        step = math.ldexp(1.0, grid.exponent)
        # float32 may overflow where float64 does not: beyond the grid all values are alike
        ends = (grid.low - 1) * step, (grid.high + 1) * step
        inside, error = np.clip(exact, *ends), np.abs(np.clip(single, *ends) - np.clip(exact, *ends))
        steps = (inside + offsets[:, None]) / step
        ties = np.clip(np.floor(steps), grid.low, grid.high - 1) + 0.5
        distance = np.abs(steps - ties)
        room = np.minimum(room, distance.min(1))
        safe_room = np.minimum(safe_room, (distance - 2 * error / step).min(1))
    if (safe_room >= MARGIN).any():
        return float(offsets[np.argmax(safe_room >= MARGIN)])
    clear = room >= MARGIN if (room >= MARGIN).any() else np.full(len(offsets), True)
    return float(offsets[np.argmax(np.where(clear, safe_room, -np.inf))])
