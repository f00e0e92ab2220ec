"""Batch norm with integer constants, for the modes that keep it (`paper`, `fit`)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, Literal

import torch
from torch import Tensor, nn

from faq_deploy.batch_statistics import NormalizesBatches, batch_statistics, unbiased
from faq_deploy.fixed_point import Clip, FixedPoint, ceil_log2, quantize_weight, step_size, widened
from faq_deploy.fused import Through, normalized
from faq_deploy.layers import Mode
from faq_deploy.passes import Passes

__all__ = ["MULTIPLIER", "QuantizedBatchNorm"]

MULTIPLIER: Final = FixedPoint(8, signed=True, narrow=True)
_PAPER_EXPONENT: Final = -4  # l = -b/2 for b = 8 (paper 3.1.1, A11)


class _StraightThrough(torch.autograd.Function):
    """Takes another value forward, passes the gradient unchanged."""

    @staticmethod
    def forward(ctx: object, value: Tensor, replaced: Tensor) -> Tensor:
        return replaced

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


class QuantizedBatchNorm(NormalizesBatches):
    """y = a·x + c per channel, a on an 8-bit grid, c on the grid of the absorbed accumulator.

    In training a comes from the batch's statistics and the running ones are updated (A14); in eval from
    the running ones. c = β - μ·a uses the quantized a, so that the mean stays where it was.

    Args:
        weight, bias, mean, var: γ, β, running mean and variance, float32, shape (channels,).
        eps, momentum: as in torch.
        mode: `paper`: a = k·2^-4; `fit`: a = k·2^l with l fitted to the layer's largest |a|.

    Buffers:
        multiplier_exponent: int32 scalar, l of a.
        accumulator_exponent: int32, (channels,) or (1,), of the layer before.

    Source: paper 2.1 and 3.1.1; A11 to A14; design 4 (absorption).
    """

    running_mean: Tensor
    running_var: Tensor
    multiplier_exponent: Tensor
    accumulator_exponent: Tensor

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor,
        mean: Tensor,
        var: Tensor,
        *,
        eps: float,
        momentum: float,
        constants: Literal["paper", "fit"],
    ) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)
        self.eps, self.momentum, self.fitted = eps, momentum, constants == "fit"
        self.mode: Mode = "float"
        self.register_buffer("running_mean", mean)
        self.register_buffer("running_var", var)
        self.register_buffer("multiplier_exponent", torch.tensor(_PAPER_EXPONENT, dtype=torch.int32))
        self.register_buffer("accumulator_exponent", torch.zeros(1, dtype=torch.int32))

    def fit_exponent(self) -> None:
        """Mode `fit`: the smallest l at which the layer's largest |a| still has a code."""
        if self.fitted:
            a = self.weight.detach() / torch.sqrt(self.running_var + self.eps)
            largest = a.abs().amax()
            step = torch.where(largest > 0, largest, 1.0).double() / MULTIPLIER.max_code
            self.multiplier_exponent.copy_(ceil_log2(step).clamp_(-30, 30))

    def constants(self, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        """a and c as the net uses them, shape (channels,), straight-through gradients."""
        a = self.weight / torch.sqrt(var + self.eps)
        if self.mode != "quantize":
            return a, self.bias - mean * a
        a = quantize_weight(a, self.multiplier_exponent, MULTIPLIER)
        c = self.bias - mean * a
        grid = self.bias_step(a.detach())
        # the division is exact up to rounding of c/grid; the product with the integer code is exact
        codes = (c.detach() / grid).round_().clamp_(-(2**31), 2**31 - 1)
        replaced: Tensor = _StraightThrough.apply(c, codes * grid)
        return a, replaced

    def bias_step(self, a: Tensor) -> Tensor:
        """Step of c per channel: accumulator step times |a|; where a = 0 the accumulator step itself."""
        return step_size(self.accumulator_exponent) * torch.where(a == 0, 1.0, a.abs())

    def forward(self, x: Tensor, clip: Clip | None = None, other: Tensor | None = None) -> Tensor:
        """(N, channels, ...) float32, same shape out.

        Args:
            x: of the layer before.
            clip: quantize the result; in training only.
            other: what is added before that.
        """
        x = widened(x)
        if not self.training:
            return _scaled(x, *self.constants(self.running_mean, self.running_var))
        with torch.no_grad():
            mean, var, count = batch_statistics(x, synchronized=self.synchronized)
            if not self.repeats():
                self.running_mean.lerp_(mean, self.momentum)
                self.running_var.lerp_(var * unbiased(count), self.momentum)
            a, c = self.constants(mean, var)
        norm = _Straight(self.weight.detach(), a, c, mean, torch.rsqrt(var + self.eps), self.synchronized)
        return normalized(x, self.weight, self.bias, norm, clip, other)


def _scaled(x: Tensor, a: Tensor, c: Tensor) -> Tensor:
    shape = (1, -1, *[1] * (x.dim() - 2))
    return torch.addcmul(c.reshape(shape), x, a.reshape(shape))


@dataclass(frozen=True)
class _Straight:
    """a·x + c, differentiated as a batch norm whose a and c pass gradients straight through their grids.

    torch's kernel for a batch norm's gradient has one factor a where ours has a before quantizing in one term and after
    it in the others: an inverse deviation scaled by the root of their ratio gives both.
    """

    weight: Tensor
    a: Tensor
    c: Tensor
    mean: Tensor
    scale: Tensor
    synchronized: bool

    def into(self, x: Tensor, out: Tensor) -> None:
        shape = (1, -1, *[1] * (x.dim() - 2))
        torch.addcmul(self.c.reshape(shape), x, self.a.reshape(shape), out=out)

    def coefficients(self, passes: Passes, step: float = 1.0) -> tuple[Tensor, Tensor]:
        return (self.a / step).contiguous(), (self.c / step).contiguous()

    def in_steps(self, step: float) -> _Straight:
        return replace(self, a=self.a / step, c=self.c / step)

    def gradient(self, through: Through) -> tuple[Tensor, Tensor, Tensor]:
        plain = self.weight * self.scale  # a before it was quantized
        small = plain.abs() < 1e-20
        used = torch.where(self.a == 0, 1e-6 * plain, self.a)
        used = torch.where(small, 1e-20, used)
        root = torch.where(small, 1.0, plain / used).abs().sqrt()
        scale = self.scale * root
        of_x, of_weight, of_bias = through(used / scale, self.mean, scale)
        return of_x, of_weight / root, of_bias
