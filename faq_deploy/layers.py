"""Quantizers and weighted layers of a net. Each works in one of three modes: float, observe, quantize."""

from __future__ import annotations

from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from faq_deploy.fixed_point import (
    Clip,
    FixedPoint,
    clip_of,
    codes_of,
    quantize_activation,
    quantize_weight,
    step_size,
    widened,
)
from faq_deploy.live_norm import LiveNorm
from faq_deploy.made_again import made_again
from faq_deploy.products import Convolution, MatrixProduct, Product
from faq_deploy.scaled_weight import quantize_scaled_weight

__all__ = ["ActivationQuantizer", "FloatLayer", "Mode", "Observer", "WeightedLayer"]

Mode = Literal["float", "observe", "quantize"]


class Observer(Protocol):
    """A range estimator of package `calibration`."""

    def update(self, tensor: Tensor) -> None:
        """Take in one batch."""
        ...

    def result(self) -> float:
        """The range found."""
        ...


class ActivationQuantizer(nn.Module):
    """ReLU (if `clip` says so) and fixed-point quantizer of one tensor.

    Args:
        grid: the codes.
        clip: `relu` for the output of a ReLU, `none` for any other tensor.
        cap: upper bound of a clipped ReLU (6 for ReLU6), in the tensor's units.

    Buffers:
        exponent: int32 scalar, fixed at calibration (paper 3.2).
    """

    exponent: Tensor

    def __init__(self, grid: FixedPoint, clip: Literal["relu", "none"], cap: float | None) -> None:
        super().__init__()
        self.grid, self.clip, self.cap = grid, clip, cap
        self.mode: Mode = "float"
        self.observer: Observer | None = None
        self._exponent = 0  # the buffer's value as a number
        self.top_code = grid.max_code  # lower where a cap ends below the top of the grid
        self.register_buffer("exponent", torch.zeros((), dtype=torch.int32))

    def set_exponent(self, exponent: int) -> None:
        """Fix the step size to 2^exponent."""
        self.exponent.fill_(exponent)
        self._read_exponent()

    @property
    def exponent_number(self) -> int:
        """The exponent, without a look at the device."""
        return self._exponent

    def _read_exponent(self) -> None:
        self._exponent = int(self.exponent)
        self.top_code = self.grid.max_code
        if self.cap is not None:
            self.top_code = min(self.top_code, round(self.cap * 2.0**-self._exponent))

    def _load_from_state_dict(self, *args: object, **kwargs: object) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._read_exponent()

    @property
    def rounding(self) -> Clip:
        """What it does in mode `quantize`."""
        return clip_of(self._exponent, self.grid, None if self.cap is None else self.top_code)

    def forward(self, x: Tensor) -> Tensor:
        """Any float32 tensor to values on the grid (or through the plain ReLU in float mode)."""
        if self.mode == "quantize":
            return quantize_activation(x, self._exponent, self.grid, None if self.cap is None else self.top_code)
        y = x
        if self.clip == "relu":
            y = F.relu(x) if self.cap is None else F.hardtanh(x, 0.0, self.cap)
        if self.mode == "observe" and self.observer is not None:
            self.observer.update(y.detach())
        return y

    def codes(self, values: Tensor) -> Tensor:
        """Integer codes (int64) of values that are on the grid."""
        return (values * step_size(-self.exponent)).to(torch.int64)


class FloatLayer(nn.Module):
    """A convolution or linear layer with float weights (`--skip`, `--leaf`), and what quantized ones share.

    Args:
        weight, bias: float32; the weight's layout is the product's.
        product: what the layer does with them.
        norm: a live batch norm behind it.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, product: Product, norm: LiveNorm | None = None) -> None:
        super().__init__()
        self.norm, self.product = norm, product
        self.weight = nn.Parameter(weight)
        self.bias = None if bias is None else nn.Parameter(bias)

    def folded(self) -> tuple[Tensor, Tensor | None]:
        """Float weight and bias, a live batch norm multiplied into them: what gets quantized."""
        if self.norm is None:
            return self.weight, self.bias
        a, c = self.norm.constants()
        return self.product.scaled(self.weight, a), c

    def constants(self) -> tuple[Tensor, Tensor | None]:
        """Weight and bias as the net uses them."""
        return self.folded()

    def before_norm(self, x: Tensor) -> Tensor:
        """What a live batch norm is given in training: (N, C, ...) float32 to (N, channels, ...)."""
        weight = self.used_weight()
        with made_again(weight):
            return self.product(x, weight, None)

    def used_weight(self) -> Tensor:
        """The weight as the net uses it."""
        return self.weight if self.norm is None else self.product.scaled(self.weight, self.norm.factor())

    def float_bias(self) -> Tensor | None:
        """The bias before it is rounded."""
        return self.bias if self.norm is None else self.norm.constants()[1]

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, ...) float32 to (N, channels, ...)."""
        if self.norm is not None and self.norm.training:
            normalized: Tensor = self.norm(self.before_norm(x))
            return normalized
        weight, bias = self.constants()
        with made_again(weight):
            return widened(self.product(x, weight, bias))


class WeightedLayer(FloatLayer):
    """A layer with fixed-point weights and a bias on the accumulator's grid.

    Args:
        weight, bias, product, norm: see `FloatLayer`.
        grid: of the weights.
        per_channel: one weight exponent a slice of axis 0, else one in all.

    Buffers:
        weight_exponent: int32, (channels,) or (1,); follows the weights in training, else frozen (A10).
        input_exponent: int32 scalar, of the tensor it reads.
    """

    weight_exponent: Tensor
    input_exponent: Tensor

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        product: Product,
        norm: LiveNorm | None = None,
        *,
        grid: FixedPoint,
        per_channel: bool,
    ) -> None:
        super().__init__(weight, bias, product, norm)
        self.grid, self.per_channel = grid, per_channel
        self.mode: Mode = "float"
        self.register_buffer("weight_exponent", torch.zeros(len(weight) if per_channel else 1, dtype=torch.int32))
        self.register_buffer("input_exponent", torch.zeros((), dtype=torch.int32))

    def _exponent_for(self, tensor: Tensor) -> Tensor:
        return self.weight_exponent.reshape(-1, *[1] * (tensor.dim() - 1))

    @property
    def accumulator_exponent(self) -> Tensor:
        """int32, (channels,) or (1,): a product of codes, and so the bias, has step 2^this."""
        return self.weight_exponent + self.input_exponent

    def constants(self) -> tuple[Tensor, Tensor | None]:
        """Weight and bias as the net uses them: on their grids, straight-through gradients."""
        weight, bias = self.used_weight(), self.float_bias()
        if bias is None or self.mode != "quantize":
            return weight, bias
        return weight, quantize_weight(bias, self.accumulator_exponent, FixedPoint(32, True))

    def used_weight(self) -> Tensor:
        """The weight on its grid, with a straight-through gradient."""
        if self.mode != "quantize":
            return super().used_weight()
        exponent = self._exponent_for(self.weight)
        if self.norm is not None and isinstance(self.product, Convolution | MatrixProduct):  # channels on axis 0
            return quantize_scaled_weight(self.weight, self.norm.factor(), exponent, self.grid)
        return quantize_weight(super().used_weight(), exponent, self.grid)

    def weight_codes(self) -> Tensor:
        """int8 weight codes, shape of the weight."""
        weight = self.folded()[0].detach()
        return codes_of(weight, self._exponent_for(weight), self.grid).to(torch.int8)

    def bias_codes(self) -> Tensor:
        """int32 bias codes in units of 2^accumulator_exponent, shape (channels,)."""
        bias = self.folded()[1]
        assert bias is not None
        return codes_of(bias.detach(), self.accumulator_exponent, FixedPoint(32, True)).to(torch.int32)
