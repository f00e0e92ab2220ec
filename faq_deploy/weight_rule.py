"""Which exponent a weight gets (paper 3.1.1)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final, Literal

import torch
from torch import Tensor

from faq_deploy.fast_path import fast_path
from faq_deploy.fixed_point import (
    MAX_EXPONENT,
    MIN_EXPONENT,
    FixedPoint,
    ceil_log2,
    in_blocks,
    in_rows,
    step_size,
)

__all__ = ["WeightRule", "bias_floor", "bias_floors", "weight_exponents"]

# A bias code stays below 2^22, so that bias and products together fit fp32's 24 bits (T6).
_BIAS_BITS: Final = 22

# Exponents that rule `mse` tries, by weight bits: those of `max` and below.
_CANDIDATES: Final = {2: 5, 3: 5, 4: 4, 5: 3, 6: 3, 7: 2, 8: 2}

_CONSTANT: Final = 2.0**-40  # a standard deviation below this part of the largest value is rounding in float64

WeightRule = Literal["sigma", "max", "mse"]


def weight_exponents(
    weights: Sequence[Tensor],
    grids: Sequence[FixedPoint],
    rules: Sequence[WeightRule],
    *,
    per_channel: bool,
    sigma_factor: float,
) -> list[Tensor]:
    """Exponents of all layers' weights, the logarithms of all of them in one pass.

    Args:
        weights: float32 tensors, output channel first.
        grids: signed grid of each.
        rules: `sigma` (Δ = factor·σ/(2^b - 1), l = ⌈log2 Δ⌉), `max` (no weight is clipped),
            `mse` (least squared error among `max` and the exponents under it: three at 4 bits, one at 8, where
            clipping at a quarter of the largest weight never pays).
        per_channel: one exponent an output channel, else one a tensor.
        sigma_factor: 4.12 in reading R2 of A7, 8.24 in R1.

    Returns:
        int32 tensors of shape (channels,), or (1,) per tensor. A dead (all-zero) slice counts as
        reaching 1, so that its step size is positive.

    Source: paper 3.1.1; A7 to A9.
    """
    flat = [in_rows(w.detach()) if per_channel else in_rows(w.detach()).reshape(1, -1) for w in weights]
    sizes = [len(w) for w in flat]
    steps = torch.cat([_wanted_step(w, g, r, sigma_factor) for w, g, r in zip(flat, grids, rules, strict=True)])
    found = list(torch.split(ceil_log2(steps).clamp_(MIN_EXPONENT, MAX_EXPONENT), sizes))
    searched = [i for i, rule in enumerate(rules) if rule == "mse"]
    for grid in dict.fromkeys(grids[i] for i in searched):
        alike = [i for i in searched if grids[i] == grid]
        best = _least_squares([flat[i] for i in alike], [found[i] for i in alike], grid)
        for i, exponents in zip(alike, best, strict=True):
            found[i] = exponents
    return found


def bias_floor(bias: Tensor, input_exponent: Tensor) -> Tensor:
    """Lowest weight exponent at which every bias code stays within 22 bits (near-dead channels, T6).

    Args:
        bias: float32, shape (channels,).
        input_exponent: int32, of the layer's input, a scalar or one a channel.

    Returns:
        int32, shape (channels,); MIN_EXPONENT where the bias is 0.
    """
    magnitude = bias.detach().abs()
    floor = ceil_log2(torch.where(magnitude > 0, magnitude, 1.0)) - _BIAS_BITS - input_exponent
    return torch.where(magnitude > 0, floor, MIN_EXPONENT).to(torch.int32)


def bias_floors(biases: Mapping[str, Tensor], input_exponents: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`bias_floor` of several layers in one pass.

    Args:
        biases: by layer, float32, (channels,).
        input_exponents: of the same layers, int32 scalars.

    Returns:
        By layer, int32, (channels,).
    """
    if not biases:
        return {}
    inputs = [input_exponents[name].expand(len(bias)) for name, bias in biases.items()]
    found = bias_floor(torch.cat(list(biases.values())), torch.cat(inputs))
    return dict(zip(biases, torch.split(found, [len(bias) for bias in biases.values()]), strict=True))


def _wanted_step(rows: Tensor, grid: FixedPoint, rule: WeightRule, sigma_factor: float) -> Tensor:
    return torch.cat([_wanted_step_of(few, grid, rule, sigma_factor) for (few,) in in_blocks(rows)])


def _wanted_step_of(rows: Tensor, grid: FixedPoint, rule: WeightRule, sigma_factor: float) -> Tensor:
    largest = torch.maximum(rows.amax(1), -rows.amin(1)).double()  # a third of the time of abs().amax(1)
    step = largest / grid.max_code
    if rule == "sigma":
        # population σ of the tensor (A9), a tenth of the time of torch's one-pass std
        centred = rows.double()
        centred -= centred.mean(1, keepdim=True)
        sigma = torch.linalg.vector_norm(centred, dim=1) / math.sqrt(rows.shape[1])
        # a constant tensor's is 0 but for rounding; it falls back on its largest value
        step = torch.where(sigma > _CONSTANT * largest, sigma * (sigma_factor / (2**grid.bits - 1)), step)
    return torch.where(step > 0, step, 1.0 / grid.max_code)


def _least_squares(weights: Sequence[Tensor], highest: Sequence[Tensor], grid: FixedPoint) -> Sequence[Tensor]:
    first = best = torch.cat(list(highest))
    error = _errors(weights, first, grid)
    for lower in range(1, _CANDIDATES[grid.bits]):
        exponents = (first - lower).clamp_(min=MIN_EXPONENT)
        trial = _errors(weights, exponents, grid)
        best = torch.where(trial < error, exponents, best)
        error = torch.minimum(trial, error)
    return torch.split(best, [len(w) for w in weights])


def _errors(weights: Sequence[Tensor], exponents: Tensor, grid: FixedPoint) -> Tensor:
    """Root of the squared errors of every row of every layer."""
    # in units of the step: one pass less, and sums stay in range at any exponent
    finer = torch.split(step_size(-exponents).unsqueeze(1), [len(w) for w in weights])
    norms = [
        _residual_norm(few, factor, grid)
        for rows, factors in zip(weights, finer, strict=True)
        for few, factor in in_blocks(rows, factors)
    ]
    return torch.cat(norms).double() * step_size(exponents).double()


def _residual_norm(rows: Tensor, finer: Tensor, grid: FixedPoint) -> Tensor:
    if passes := fast_path(rows):
        residuals = passes.residuals(rows, finer, grid)
    else:
        scaled = rows * finer
        residuals = scaled.round().clamp_(grid.min_code, grid.max_code).sub_(scaled)
    norm: Tensor = torch.linalg.vector_norm(residuals, dim=1)
    return norm
