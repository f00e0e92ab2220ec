"""Tests of error-compensated rounding."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from faq_deploy.activation_exponents import calibrate
from faq_deploy.bias_correction import correct_biases_empirically
from faq_deploy.fixed_point import FixedPoint
from faq_deploy.net import QuantizedNet
from faq_deploy.recipe import override
from faq_deploy.rewrite import rewrite
from faq_deploy.rounding import compensate, rounded
from faq_deploy.weight_moments import Moments
from tests.nets import Inverted, Small, with_statistics
from tests.quantized import images, make_recipe

INT4 = FixedPoint(4, signed=True, narrow=True)


def _calibrated(model: nn.Module, data: Tensor, granularity: str = "channel") -> QuantizedNet:
    recipe = override(make_recipe(), {"quantizer.granularity": granularity})
    net = rewrite(model, data, recipe)
    calibrate(net, [data], recipe.calibration, recipe.target)
    return net


def _loss(rows: Tensor, weight: Tensor, seen: Moments) -> Tensor:
    linear = weight @ seen.crossed
    return ((rows @ seen.quantized - 2 * linear) * rows).sum(2)


@given(
    seed=st.integers(0, 10**6),
    groups=st.integers(1, 3),
    rows=st.integers(1, 4),
    size=st.integers(1, 80),
    samples=st.integers(2, 200),
    exponent=st.integers(-4, 0),
    noise=st.floats(0, 1),
)
def test_no_row_is_worse_than_rounded_to_nearest(
    seed: int, groups: int, rows: int, size: int, samples: int, exponent: int, noise: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(groups, size, size, generator=generator, dtype=torch.float64)
    x = mix @ torch.randn(groups, size, samples, generator=generator, dtype=torch.float64)
    y = x + noise * torch.randn(x.shape, generator=generator, dtype=torch.float64)
    x, y = (t - t.mean(2, keepdim=True) for t in (x, y))
    seen = Moments(y @ y.transpose(1, 2) / samples, x @ y.transpose(1, 2) / samples, samples)
    weight = torch.randn(groups, rows, size, generator=generator, dtype=torch.float64)
    found = rounded(weight, seen, torch.full((groups, rows), exponent, dtype=torch.int32), INT4)
    codes = found * 2.0**-exponent
    assert torch.equal(codes, codes.round())
    assert int(codes.abs().amax()) <= 7
    nearest = (weight * 2.0**-exponent).round().clamp(-7, 7) * 2.0**exponent
    assert bool((_loss(found, weight, seen) <= _loss(nearest, weight, seen)).all())


def test_two_equal_inputs_share_what_rounding_loses() -> None:
    ones = torch.ones(1, 2, 2, dtype=torch.float64)
    seen = Moments(ones, ones, 1000)
    weight = torch.tensor([[[0.4, 0.4], [1.4, 1.3], [-0.3, -0.4]]], dtype=torch.float64)
    found = rounded(weight, seen, torch.zeros(1, 3, dtype=torch.int32), INT4)
    assert found.sum(2).tolist() == [[1.0, 3.0, -1.0]]  # to nearest: 0, 2, 0


def test_independent_inputs_leave_the_nearest_codes() -> None:
    unit = torch.eye(6, dtype=torch.float64).unsqueeze(0) * torch.arange(1, 7)
    weight = torch.randn(1, 5, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3
    found = rounded(weight, Moments(unit, unit, 1000), torch.zeros(1, 5, dtype=torch.int32), INT4)
    assert torch.equal(found, weight.round().clamp(-7, 7))


def test_inputs_that_are_always_0_leave_the_nearest_codes() -> None:
    nothing = torch.zeros(2, 3, 3, dtype=torch.float64)
    weight = torch.randn(2, 1, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3
    found = rounded(weight, Moments(nothing, nothing, 9), torch.zeros(2, 1, dtype=torch.int32), INT4)
    assert torch.equal(found, weight.round().clamp(-7, 7))


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("granularity", ["channel", "tensor"])
def test_refresh_finds_the_chosen_codes_again(granularity: str, bits: int) -> None:
    data = images(16)
    net = _calibrated(with_statistics(Inverted()), data, granularity)
    if bits == 4:
        net.rules[4] = "mse"
        for layer in list(net.weighted().values())[1:-1]:
            layer.grid = INT4
        net.refresh()
    nearest = net(data).detach()
    compensate(net, [data[:8], data[8:]])
    values = {name: layer.constants()[0].detach().clone() for name, layer in net.weighted().items()}
    found = net(data).detach()
    net.refresh()
    assert all(torch.equal(layer.constants()[0], values[name]) for name, layer in net.weighted().items())
    assert all(torch.equal(layer.folded()[0], values[name]) for name, layer in net.weighted().items())
    assert torch.equal(net(data), found)
    assert not torch.equal(found, nearest)


@pytest.mark.parametrize(("stride", "padding", "groups"), [(1, 1, 1), (2, 0, 1), (1, 1, 3)])
def test_a_layers_output_error_is_not_larger_than_with_nearest_codes_and_the_best_bias(
    stride: int, padding: int, groups: int
) -> None:
    torch.manual_seed(2)
    conv = nn.Conv2d(3, 6, 3, stride, padding, groups=groups).eval()
    coarse = torch.randint(-40, 127, (40, 3, 3, 3), generator=torch.Generator().manual_seed(3))
    data = nn.functional.interpolate(coarse.float(), (9, 9)) / 64  # neighbours are alike, and on the input's grid
    model = nn.Sequential(conv, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    errors = []
    for correct in (correct_biases_empirically, compensate):
        net = _calibrated(model, data, "tensor")
        layer = next(iter(net.weighted().values()))
        correct(net, [data])
        with torch.no_grad():
            y = layer(data)
            errors.append((y - conv(data)).double().square().mean((0, 2, 3)))
    step = 2.0 ** float(layer.accumulator_exponent.amax())
    assert bool((errors[1] <= errors[0] + step**2).all())
    assert float(errors[1].sum()) < 0.7 * float(errors[0].sum())


def test_it_brings_a_4_bit_net_nearer_to_float() -> None:
    data = images(64)
    model = with_statistics(Small())
    errors = []
    for correct in (correct_biases_empirically, compensate):
        net = _calibrated(model, data)
        net.rules[4] = "mse"
        for layer in list(net.weighted().values())[1:-1]:
            layer.grid = INT4
        net.refresh()
        correct(net, [data])
        errors.append(float((net(data) - model(data)).detach().square().mean()))
    assert errors[1] < 0.7 * errors[0]


def test_training_goes_on_with_the_same_batch_norm() -> None:
    data = images(16)
    net = _calibrated(with_statistics(Inverted()), data)
    layer = net.weighted()["stem_0"]
    assert layer.norm is not None
    a, c = (t.detach().clone() for t in layer.norm.constants())
    compensate(net, [data])
    ones, _ = layer.norm.constants()
    assert torch.equal(ones, torch.ones(8))
    # of weights multiplied by a, the statistics are those of outputs multiplied by a
    layer.mode = "float"
    layer.train()
    normalized = layer(data)
    assert torch.allclose(normalized.mean((0, 2, 3)), layer.norm.bias, atol=1e-5)
    assert a.shape == c.shape == (8,)


def test_a_transposed_convolution_keeps_the_nearest_codes() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.ConvTranspose2d(4, 5, 2, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    data = images(16)
    net = _calibrated(model.eval(), data)
    codes = net.weighted()["_2"].weight_codes()
    compensate(net, [data])
    assert torch.equal(net.weighted()["_2"].weight_codes(), codes)
