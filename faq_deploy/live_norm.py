"""Batch norm that is folded into the weights at every step and still normalizes by the batch in training."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["LiveNorm"]


class LiveNorm(nn.Module):
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

    def constants(self) -> tuple[Tensor, Tensor]:
        """a and c = β - μ·a from the running statistics, shape (channels,)."""
        a = self.weight / torch.sqrt(self.running_var + self.eps)
        return a, self.bias - self.running_mean * a

    def forward(self, scaled: Tensor) -> Tensor:
        """The layer's output in training.

        Args:
            scaled: float32, (N, channels, ...), computed with weights w·a and no bias.
        """
        shape = (1, -1, *[1] * (scaled.dim() - 2))
        dims = [d for d in range(scaled.dim()) if d != 1]
        var, mean = torch.var_mean(scaled, dims, correction=0)
        a, _ = self.constants()
        alive = a.detach().abs() > torch.finfo(a.dtype).tiny ** 0.5  # else a² is no normal number
        square = torch.where(alive, a.square(), 1.0)
        plain = var / square  # of the output before a: what the batch norm would have seen
        with torch.no_grad():
            count = scaled.numel() / scaled.shape[1]
            factor = self.momentum * alive
            self.running_mean.lerp_(mean / torch.where(alive, a, 1.0), factor)
            running = self.running_var.clone()
            self.running_var.lerp_(plain * (count / max(count - 1, 1)), factor)
        ratio = torch.sqrt(running + self.eps) / torch.sqrt(plain + self.eps)
        return (scaled - mean.reshape(shape)) * ratio.reshape(shape) + self.bias.reshape(shape)
