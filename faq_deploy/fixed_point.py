"""Fixed-point numbers with power-of-two steps: value = code x 2^exponent (paper 3.1)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final

import torch
from torch import Tensor

from faq_deploy.fast_path import fast_path
from faq_deploy.grids import Clip, FixedPoint

__all__ = [
    "BLOCK",
    "MAX_EXPONENT",
    "MIN_EXPONENT",
    "PIECE",
    "Clip",
    "FixedPoint",
    "ceil_log2",
    "clip_of",
    "codes_of",
    "has_rows",
    "in_blocks",
    "in_rows",
    "keep_for_gradient",
    "quantize",
    "quantize_activation",
    "quantize_weight",
    "step_size",
    "weight_on_grid",
    "widened",
]

# Two exponents add up to a bias grid, which must stay a normal fp32 number (2^-126 and up).
MIN_EXPONENT: Final = -62
MAX_EXPONENT: Final = 62

# float32 numbers that a CPU works on together, so that they stay in a cache
PIECE: Final = 2**22  # of an activation: all threads share it
BLOCK: Final = 2**19  # of a weight, which goes through twenty operations


def step_size(exponent: Tensor) -> Tensor:
    """2^exponent as float32, exact: the exponent is written into the float's bits.

    Args:
        exponent: integer tensor, values -126..127.
    """
    return ((exponent.to(torch.int32) + 127) << 23).view(torch.float32)


def ceil_log2(values: Tensor) -> Tensor:
    """Smallest integer e with 2^e >= value, exact for every positive finite float; int32."""
    mantissa, exponent = torch.frexp(values.double())
    return torch.where(mantissa == 0.5, exponent - 1, exponent).to(torch.int32)


def codes_of(values: Tensor, exponent: Tensor, grid: FixedPoint) -> Tensor:
    """Codes of float values, as float32 integers.

    Rounds half to even: torch, ONNX QuantizeLinear and TensorRT agree on that.
    """
    return (values * step_size(-exponent)).round_().clamp_(grid.min_code, grid.max_code)


def quantize(values: Tensor, exponent: Tensor, grid: FixedPoint) -> Tensor:
    """Q_{b,l}(x) of paper 3.1: round to the grid, clamp to the codes, scale back. No gradient rule.

    Args:
        values: float32, any shape.
        exponent: int32, broadcastable to `values`.
        grid: the codes.
    """
    return codes_of(values, exponent, grid).mul_(step_size(exponent))


def weight_on_grid(weight: Tensor, exponent: Tensor, grid: FixedPoint, factors: Tensor | None = None) -> Tensor:
    """`quantize` of a weight, times `factors` where there are any, in one pass over memory. No gradient rule.

    Args:
        weight: float32, output channel first; with factors one that `has_rows`.
        exponent: int32, of (channels,) or one, whatever its shape.
        grid: the codes.
        factors: float32, (channels,).
    """
    if not has_rows(weight):
        return quantize(weight, exponent, grid)
    values = torch.empty_like(weight)
    rows = in_rows(weight)
    steps = step_size(exponent.reshape(-1)).expand(len(rows)).contiguous()
    columns = [steps.reciprocal(), steps]  # exact, of powers of two
    if factors is not None:
        columns.append(factors.contiguous())
    if passes := fast_path(weight, values):
        passes.quantize_rows(weight, values, grid, *columns)
        return values
    for few, out, finer, step, *factor in in_blocks(rows, in_rows(values), *(c.unsqueeze(1) for c in columns)):
        scaled = torch.mul(few, *factor, out=out) if factor else few
        torch.mul(scaled, finer, out=out)
        out.round_().clamp_(grid.min_code, grid.max_code).mul_(step)
    return values


def keep_for_gradient(
    ctx: torch.autograd.function.FunctionCtx, weight: Tensor, exponent: Tensor, grid: FixedPoint, *factors: Tensor
) -> None:
    """Let the context of a function that gives `weight_on_grid` know how `made_again` repeats it."""
    ctx.save_for_backward(weight, *factors)
    ctx.exponent, ctx.grid = exponent.clone(), grid  # type: ignore[attr-defined]
    ctx.again = _again  # type: ignore[attr-defined]


def _again(ctx: torch.autograd.function.FunctionCtx) -> Tensor:
    weight, *factors = ctx.saved_tensors  # type: ignore[attr-defined]
    return weight_on_grid(weight, ctx.exponent, ctx.grid, *factors)  # type: ignore[attr-defined]


class _StraightThroughWeight(torch.autograd.Function):
    """Quantize forward, identity backward: a clipped weight must be able to come back (A25)."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, weight: Tensor, exponent: Tensor, grid: FixedPoint) -> Tensor:
        keep_for_gradient(ctx, weight, exponent, grid)
        return weight_on_grid(weight, exponent, grid)

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gradient, None, None


def _pieces(x: Tensor, values: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Parts of two tensors of one layout that fit a CPU's cache together, so that memory is read once."""
    if x.device.type != "cpu" or x.numel() <= PIECE:
        return [(x, values)]
    if x.dim() == 4 and not x.is_contiguous():  # channels last: contiguous in another order
        x, values = x.permute(0, 2, 3, 1), values.permute(0, 2, 3, 1)
    if not (x.is_contiguous() and values.is_contiguous()):
        return [(x, values)]
    return list(zip(torch.split(x.view(-1), PIECE), torch.split(values.view(-1), PIECE), strict=True))


class _ClippedActivation(torch.autograd.Function):
    """ReLU (or signed clip) and quantizer in one pass; the gradient passes inside the clip range only."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, clip: Clip) -> Tensor:
        values = torch.empty_like(x)
        ctx.clip = clip  # type: ignore[attr-defined]
        if passes := fast_path(x, values):
            passing = torch.empty_like(x, dtype=torch.uint8) if ctx.needs_input_grad[0] else None  # type: ignore[attr-defined]
            passes.quantize_numbers(x, values, passing, clip)
            if passing is not None:
                ctx.save_for_backward(passing)
            return values
        for part, out in _pieces(x, values):
            clip.into(part, out)
        # x rather than a mask of one byte: every kernel of torch's that takes a mask is ten times slower on a CPU
        ctx.save_for_backward(x)
        return values

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> tuple[Tensor, None]:
        (kept,) = ctx.saved_tensors  # type: ignore[attr-defined]
        if kept.dtype != torch.uint8:
            return torch.ops.aten.hardtanh_backward(gradient, kept, *ctx.clip.passing), None  # type: ignore[attr-defined]
        if passes := fast_path(gradient) if gradient.stride() == kept.stride() else None:
            passed = torch.empty_like(gradient)
            passes.pass_on(gradient, kept, passed)
            return passed, None
        return torch.where(kept.bool(), gradient, 0.0), None


def has_rows(weight: Tensor) -> bool:
    """Whether `in_rows` is a view: all layouts but those that nobody gives a weight."""
    return weight.is_contiguous() or (weight.dim() == 4 and weight.is_contiguous(memory_format=torch.channels_last))


def in_rows(weight: Tensor) -> Tensor:
    """A weight as (channels, products), each row in the order of memory; a view where `has_rows`."""
    if weight.dim() < 2:
        return weight.reshape(-1, 1)
    if weight.dim() == 4 and not weight.is_contiguous():
        weight = weight.permute(0, 2, 3, 1)  # channels last
    return weight.flatten(1)


def in_blocks(rows: Tensor, *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """On a CPU a few channels of several tensors at a time, so that what is computed of them stays in the cache.

    Args:
        rows: (channels, products).
        others: of as many rows.
    """
    most = max(1, BLOCK // max(1, rows.shape[1]))
    if rows.device.type != "cpu" or len(rows) <= most:
        return iter([(rows, *others)])
    return zip(*[torch.split(t, most) for t in (rows, *others)], strict=True)


def quantize_weight(weight: Tensor, exponent: Tensor, grid: FixedPoint) -> Tensor:
    """`quantize` with a straight-through gradient, not masked (paper 3.3, A25).

    Args:
        weight: float32, any shape.
        exponent: int32, broadcastable to `weight` (per tensor or per output channel).
        grid: the codes.
    """
    result: Tensor = _StraightThroughWeight.apply(weight, exponent, grid)
    return result


def clip_of(exponent: int, grid: FixedPoint, max_code: int | None = None) -> Clip:
    """What `quantize_activation` does to a tensor; see there."""
    step = math.ldexp(1.0, exponent)
    top = grid.max_code if max_code is None else max_code
    ymax = step * (top + 1 if max_code is None else top)
    return Clip(step, (grid.min_code, top), (-ymax if grid.signed else 0.0, ymax))


def quantize_activation(x: Tensor, exponent: int, grid: FixedPoint, max_code: int | None = None) -> Tensor:
    """`quantize` with a gradient masked outside the clip range (0, ymax), or (-ymax, ymax) if signed.

    Args:
        x: float32, any shape. With an unsigned grid this is ReLU and quantizer at once.
        exponent: a number, not a tensor: it is fixed while the net trains, and a GPU need not be asked for it.
        grid: the codes.
        max_code: a lower top code (ReLU6 clips below the top of its grid).

    Source: paper 3.2 and 3.3; A25.
    """
    result: Tensor = _ClippedActivation.apply(widened(x), clip_of(exponent, grid, max_code))
    return result


def widened(x: Tensor) -> Tensor:
    """A product as mixed precision gives it, in float32: grids, batch norms and sums are never computed in 16 bits.

    Args:
        x: float16 or bfloat16; other tensors come back as they are.
    """
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
