"""LayerNorm, GroupNorm and InstanceNorm over codes: every step one IEEE operation, the same bits everywhere."""

from __future__ import annotations

import math
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engines.errors import InputError
from faq_deploy.fixed_point import step_size
from faq_deploy.layers import Mode

__all__ = ["SPLIT", "ExactNorm", "fits_one_sum"]

# Squares are summed as high and low parts where their sum could pass 2^24: q = high·2^7 + low.
SPLIT: Final = 2**7

_MOST_ELEMENTS: Final = 2**17  # of one statistic: 2^17·2^7 is the last sum of low parts that is exact in fp32


def fits_one_sum(count: int, largest_code: int) -> bool:
    """Whether the squares of `count` codes sum up exactly in float32."""
    return count * largest_code**2 < 2**24


class ExactNorm(nn.Module):
    """(x - mean)/√(variance + ε)·γ + β per group, mean and variance of each image by itself.

    In mode `quantize` mean and variance come from exact integer sums of the input's codes, and what follows is one
    IEEE operation a step in a fixed order: division, product, difference, square root. Torch, NumPy and onnxruntime
    then give the same bits.

    Args:
        weight, bias: γ and β, float32, shape (channels,).
        groups: of channels that share a mean and a variance.
        spatial: over all positions too (GroupNorm, InstanceNorm); else at each position by itself (LayerNorm).
        eps: ε.
        largest_code: magnitude of the input's codes.
        centered: subtract the mean; else the root mean square takes the place of the deviation (RMSNorm).

    Buffers:
        input_exponent: int32 scalar, of the tensor it reads.
    """

    input_exponent: Tensor

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor,
        *,
        groups: int,
        spatial: bool,
        eps: float,
        largest_code: int,
        centered: bool = True,
    ) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)
        self.groups, self.spatial, self.eps, self.largest_code = groups, spatial, eps, largest_code
        self.centered = centered
        self.mode: Mode = "float"
        self.register_buffer("input_exponent", torch.zeros((), dtype=torch.int32))

    def scaled_eps(self) -> Tensor:
        """ε in units of squared codes, float32 scalar, never 0."""
        eps = self.eps * step_size(-self.input_exponent).double().square()
        return eps.float().clamp_min(torch.finfo(torch.float32).tiny)

    def elements(self, shape: tuple[int, ...]) -> int:
        """How many values of an input (N, C, ...) share a mean.

        Raises:
            InputError: more than their sums can hold exactly.
        """
        count = math.prod(shape[1:]) // self.groups if self.spatial else shape[1]
        if count > _MOST_ELEMENTS:
            raise InputError(
                f"a norm over {count} values cannot be summed exactly in fp32 (at most {_MOST_ELEMENTS}).",
                "use smaller images or more groups, or keep this norm in float (--skip).",
            )
        return count

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, ...) float32, same shape out."""
        inner = (-1, *[1] * (x.dim() - 2))
        weight, bias = self.weight.reshape(inner), self.bias.reshape(inner)
        if self.mode == "quantize":
            return self._normalized(x * step_size(-self.input_exponent)) * weight + bias
        if self.spatial:
            return F.group_norm(x, self.groups, self.weight, self.bias, self.eps)
        if not self.centered:
            return x / torch.sqrt(x.square().mean(1, keepdim=True) + self.eps) * weight + bias
        var, mean = torch.var_mean(x, 1, correction=0, keepdim=True)
        return (x - mean) / torch.sqrt(var + self.eps) * weight + bias

    def _normalized(self, k: Tensor) -> Tensor:
        shape, dim = k.shape, 1
        elements = self.elements(tuple(shape))
        if self.spatial:
            k, dim = k.reshape(len(k), self.groups, -1), 2
        count = k.new_full((), elements)  # a tensor: a GPU would multiply by the reciprocal of a number
        square = k * k
        if fits_one_sum(elements, self.largest_code):
            total = square.sum(dim, keepdim=True)
        else:
            high = torch.floor(square * (1 / SPLIT))
            low = square - high * SPLIT
            total = high.sum(dim, keepdim=True) * SPLIT + low.sum(dim, keepdim=True)
        variance = total / count
        if self.centered:
            mean = k.sum(dim, keepdim=True) / count
            variance = F.relu(variance - mean * mean)
            k = k - mean
        # torch's float32 root is one unit off for a sixth of all numbers; rounded from float64 it is IEEE's
        deviation = torch.sqrt((variance + self.scaled_eps()).double()).to(k.dtype)
        return (k / deviation).reshape(shape)
