"""A weight that is scaled by a batch norm's factors and quantized, in one pass over memory forward and backward."""

from __future__ import annotations

import torch
from torch import Tensor

from faq_deploy.fixed_point import (
    FixedPoint,
    has_rows,
    in_blocks,
    in_rows,
    keep_for_gradient,
    quantize_weight,
    weight_on_grid,
)

__all__ = ["quantize_scaled_weight"]


class _ScaledWeight(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx, weight: Tensor, factors: Tensor, exponent: Tensor, grid: FixedPoint
    ) -> Tensor:
        keep_for_gradient(ctx, weight, exponent, grid, factors)
        return weight_on_grid(weight, exponent, grid, factors)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        weight, factors = ctx.saved_tensors  # type: ignore[attr-defined]
        of_weight, of_factors = torch.empty_like(weight), torch.empty_like(factors)
        if gradient.stride() != weight.stride():
            gradient = torch.empty_like(weight).copy_(gradient)
        for few, given, out, factor, total in in_blocks(
            in_rows(weight), in_rows(gradient), in_rows(of_weight), factors.unsqueeze(1), of_factors
        ):
            torch.mul(given, few, out=out)
            torch.sum(out, 1, out=total)
            torch.mul(given, factor, out=out)
        return of_weight, of_factors, None, None


def quantize_scaled_weight(weight: Tensor, factors: Tensor, exponent: Tensor, grid: FixedPoint) -> Tensor:
    """`quantize_weight` of `weight` times `factors`, the same bits, with the gradients of both.

    Args:
        weight: float32, output channel first, of at least two dimensions.
        factors: float32, (channels,).
        exponent: int32, of (channels,) or one, whatever its shape.
        grid: the codes.
    """
    if not has_rows(weight):
        return quantize_weight(weight * factors.reshape(-1, *[1] * (weight.dim() - 1)), exponent, grid)
    result: Tensor = _ScaledWeight.apply(weight, factors, exponent, grid)
    return result
