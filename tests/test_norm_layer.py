"""Norms over codes: the value of the formula, the same bits in NumPy, gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from engines.errors import InputError
from faq_deploy.norm_layer import ExactNorm, fits_one_sum
from tests.hand_graphs import noise


def norm(channels: int, groups: int, spatial: bool, largest: int = 128, eps: float = 1e-5) -> ExactNorm:
    weight, bias = noise(channels, seed=1) + 1, noise(channels, seed=2)
    return ExactNorm(weight, bias, groups=groups, spatial=spatial, eps=eps, largest_code=largest).eval()


def quantized(layer: ExactNorm, exponent: int) -> ExactNorm:
    layer.mode = "quantize"
    layer.input_exponent.fill_(exponent)
    return layer


def codes(*shape: int, seed: int = 3) -> Tensor:
    return torch.randint(-128, 128, shape, generator=torch.Generator().manual_seed(seed)).float()


@pytest.mark.parametrize(("groups", "spatial"), [(1, False), (1, True), (3, True), (6, True)])
@pytest.mark.parametrize("shape", [(4, 6), (4, 6, 9), (4, 6, 5, 7), (4, 6, 2, 3, 4)])
def test_exact_form_is_the_norm(groups: int, spatial: bool, shape: tuple[int, ...]) -> None:
    if groups == 6 and len(shape) == 2:
        groups = 2  # a norm over one value is none
    layer = norm(6, groups, spatial)
    x = codes(*shape) * 2.0**-5
    with torch.no_grad():
        wanted = layer.double()(x.double()).float()
        found = quantized(layer.float(), -5)(x)
    assert torch.allclose(found, wanted, atol=2e-5, rtol=1e-5)


def in_numpy(x: np.ndarray, layer: ExactNorm) -> np.ndarray:
    """The contract's steps over (N, groups, elements), each in float32, sums of squares in Python integers."""
    n = np.float32(x.shape[2])
    integers = x.astype(np.int64)
    mean = integers.sum(2, keepdims=True).astype(np.float32) / n
    square = integers**2
    total = (square >> 7).sum(2, keepdims=True) * 128
    both = total.astype(np.float32) + (square & 127).sum(2, keepdims=True).astype(np.float32)
    if fits_one_sum(x.shape[2], layer.largest_code):
        both = square.sum(2, keepdims=True).astype(np.float32)
    variance = np.maximum(both / n - mean * mean, np.float32(0))
    result: np.ndarray = (x - mean) / np.sqrt(variance + layer.scaled_eps().numpy())
    return result


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10**6), st.integers(-12, 2), st.sampled_from([7, 64, 1000, 1024, 1030, 5000]))
def test_every_bit_is_that_of_numpys_single_steps(seed: int, exponent: int, elements: int) -> None:
    layer = quantized(norm(2, 2, True), exponent)
    x = codes(2, 2, elements, seed=seed)
    with torch.no_grad():
        found = layer(x * 2.0**exponent)
    weight, bias = (t.detach().numpy().reshape(1, 2, 1) for t in (layer.weight, layer.bias))
    wanted = in_numpy(x.numpy(), layer) * weight + bias
    assert wanted.dtype == np.float32
    assert np.array_equal(found.numpy(), wanted)


def test_constant_input_gives_the_bias() -> None:
    layer = quantized(norm(4, 2, True, eps=0.0), -40)
    found = layer(torch.full((2, 4, 8, 8), 37 * 2.0**-40))
    assert torch.equal(found, layer.bias.reshape(1, 4, 1, 1).expand_as(found))


def test_too_many_elements_are_refused() -> None:
    layer = quantized(norm(1, 1, True), 0)
    assert layer.elements((1, 1, 2**17)) == 2**17
    with pytest.raises(InputError, match="a norm over 131073 values cannot be summed exactly"):
        layer(torch.zeros(1, 1, 2**17 + 1))


@pytest.mark.parametrize("elements", [64, 4096])
def test_gradients_are_those_of_the_float_norm(elements: int) -> None:
    """Splitting squares into parts must not lose the gradient of the parts."""
    layer = norm(2, 2, True)
    grads = []
    for mode in ("float", "quantize"):
        layer.mode = mode
        layer.input_exponent.fill_(-5)
        x = (codes(2, 2, elements) * 2.0**-5).requires_grad_()
        (layer(x) * noise(2, 2, elements, seed=7)).sum().backward()
        assert x.grad is not None
        grads.append(x.grad)
    assert float((grads[0] - grads[1]).abs().amax()) < 1e-4 * float(grads[0].abs().amax())
