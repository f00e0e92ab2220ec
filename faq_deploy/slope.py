"""ReLUs with a slope below zero: PReLU and LeakyReLU."""

from __future__ import annotations

from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from faq_deploy.fixed_point import FixedPoint, quantize_weight
from faq_deploy.layers import Mode

__all__ = ["SlopedRelu"]

_BITS: Final = 15  # with 8-bit codes products have at most 23 bits, which fp32 holds
_SMALLEST: Final = -60  # exponent of slopes that count


class SlopedRelu(nn.Module):
    """x where it is positive, else x times the slope.

    In mode `quantize` slopes are rounded to 15 significant bits, so that their products with codes are exact.

    Args:
        slope: float32, shape (channels,) or (1,).
        trainable: a PReLU's slope is, a LeakyReLU's is not.
    """

    weight: Tensor

    def __init__(self, slope: Tensor, trainable: bool) -> None:
        super().__init__()
        self.mode: Mode = "float"
        if trainable:
            self.weight = nn.Parameter(slope)
        else:
            self.register_buffer("weight", slope)

    def slopes(self) -> Tensor:
        """The slopes as the net uses them, straight-through gradient, shape of the weight."""
        if self.mode != "quantize":
            return self.weight
        exponent = torch.frexp(self.weight.detach())[1].clamp_(min=_SMALLEST) - _BITS
        return quantize_weight(self.weight, exponent, FixedPoint(_BITS + 2, signed=True))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, ...) float32, same shape out."""
        return F.prelu(x, self.slopes())
