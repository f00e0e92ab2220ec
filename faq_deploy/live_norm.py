"""Batch norm that is folded into the weights at every step and still normalizes by the batch in training."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from faq_deploy.batch_statistics import NormalizesBatches, batch_statistics, unbiased
from faq_deploy.fixed_point import Clip, widened
from faq_deploy.fused import Through, normalized
from faq_deploy.passes import Passes

__all__ = ["LiveNorm"]


class LiveNorm(NormalizesBatches):
    """The batch norm behind a layer whose weights are quantized *after* a = γ/√(σ²+ε) was multiplied into them.

    At inference nothing of it is left: the layer computes w·a and β - μ·a. In training the layer's output, scaled by
    the running statistics, is corrected to what the statistics of the batch would have given, so that training goes
    on as the float net's did.

    Args:
        weight, bias, mean, var: γ, β, running mean and variance, float32, shape (channels,).
        eps, momentum: as in torch.

    Source: design 4 (live folding); paper 3.3 ("no other changes are made to the original training parameters").
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor, *, eps: float, momentum: float) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)
        self.eps, self.momentum = eps, momentum
        self.register_buffer("running_mean", mean)
        self.register_buffer("running_var", var)
        self._var_before: Tensor | None = None  # the running variance that the latest forward pass in training found

    def factor(self) -> Tensor:
        """a from the running variance, shape (channels,); in a pass for gradient checkpointing the first pass' a."""
        var = self._var_before if self.repeats() and self._var_before is not None else self.running_var
        return self.weight / torch.sqrt(var + self.eps)

    def constants(self) -> tuple[Tensor, Tensor]:
        """a and c = β - μ·a from the running statistics, shape (channels,)."""
        a = self.factor()
        return a, self.bias - self.running_mean * a

    def forward(self, scaled: Tensor, clip: Clip | None = None, other: Tensor | None = None) -> Tensor:
        """The layer's output in training.

        Args:
            scaled: float32, (N, channels, ...), computed with weights w·a and no bias.
            clip: quantize the result.
            other: what is added before that.
        """
        scaled = widened(scaled)
        with torch.no_grad():
            mean, var, count = batch_statistics(scaled, synchronized=self.synchronized)
            a = self.factor()
            alive = a.abs() > torch.finfo(a.dtype).tiny ** 0.5  # else a² is no normal number
            a = torch.where(alive, a, 1.0)
            square = a.square()
            if not self.repeats():
                self._var_before = self.running_var.clone()
                factor = self.momentum * alive
                self.running_mean.lerp_(mean / a, factor)
                self.running_var.lerp_(var / square * unbiased(count), factor)
            # of the layer's plain output the batch norm would divide by √(var/a² + ε), and |a|·√(σ²+ε) is |γ|
            var += square * self.eps
        weight = self.weight.abs()
        norm = _BatchNorm(weight.detach(), self.bias.detach(), mean, var, self.synchronized)
        return normalized(scaled, weight, self.bias, norm, clip, other)


@dataclass(frozen=True)
class _BatchNorm:
    """(x - mean)/√var·weight + bias with torch's batch norm kernels; mean and var are x's own (var with its ε)."""

    weight: Tensor
    bias: Tensor
    mean: Tensor
    var: Tensor
    synchronized: bool

    def into(self, x: Tensor, out: Tensor) -> None:
        unused = x.new_empty(0), x.new_empty(0)
        torch.ops.aten.native_batch_norm.out(
            x,
            self.weight,
            self.bias,
            self.mean,
            self.var,
            False,
            0.0,
            0.0,
            out=out,
            save_mean=unused[0],
            save_invstd=unused[1],
        )

    def coefficients(self, passes: Passes, step: float = 1.0) -> tuple[Tensor, Tensor]:
        return passes.batch_norm_coefficients(self.weight, self.bias, self.mean, self.var, step)

    def in_steps(self, step: float) -> _BatchNorm:
        return replace(self, weight=self.weight / step, bias=self.bias / step)

    def gradient(self, through: Through) -> tuple[Tensor, Tensor, Tensor]:
        return through(self.weight, self.mean, torch.rsqrt(self.var))
