"""Scaling and quantizing a weight at once: the bits of one after the other."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from faq_deploy.fixed_point import FixedPoint, quantize_weight
from faq_deploy.scaled_weight import quantize_scaled_weight
from tests.hand_graphs import noise

FOUR = FixedPoint(4, signed=True, narrow=True)
SHAPES = [(6, 5), (8, 3, 3), (16, 8, 3, 3), (300, 200, 3, 3), (8, 1, 3, 3), (4, 3, 2, 3, 3)]
LAYOUTS = [torch.contiguous_format, torch.channels_last]


def gradients(result: Tensor, *leaves: Tensor) -> list[Tensor]:
    seed = noise(*result.shape, seed=3).contiguous()
    return list(torch.autograd.grad(result, leaves, seed))


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_the_weights_gradient_have_the_same_bits(
    shape: tuple[int, ...], layout: torch.memory_format, per_channel: bool
) -> None:
    weight, factors = noise(*shape, seed=1), noise(shape[0], seed=2)
    if len(shape) == 4:
        weight = weight.contiguous(memory_format=layout)
    weight.requires_grad_()
    factors.requires_grad_()
    column = (-1, *[1] * (len(shape) - 1))
    exponent = (torch.arange(shape[0] if per_channel else 1) % 4 - 4).to(torch.int32).reshape(column)
    together = quantize_scaled_weight(weight, factors, exponent, FOUR)
    apart = quantize_weight(weight * factors.reshape(column), exponent, FOUR)
    assert together.equal(apart)
    assert together.stride() == weight.stride()
    (of_weight, of_factors), (wanted, wanted_sums) = (gradients(y, weight, factors) for y in (together, apart))
    assert of_weight.equal(wanted)
    exact = (noise(*shape, seed=3).double() * weight.detach().double()).flatten(1).sum(1)
    for sums in (of_factors, wanted_sums):  # in another order, so not to the bit
        assert float((sums - exact).abs().amax()) < 1e-5 * float(exact.abs().amax())


def test_a_weight_laid_out_as_nobody_does_is_quantized_too() -> None:
    weight, factors = noise(6, 4, 3, 3, seed=1).transpose(2, 3).flip(1)[:, ::2], noise(6, seed=2)
    exponent = torch.full((1,), -3, dtype=torch.int32)
    wanted = quantize_weight((weight * factors.reshape(-1, 1, 1, 1)).contiguous(), exponent, FOUR)
    assert quantize_scaled_weight(weight, factors, exponent, FOUR).equal(wanted)
