"""Tests of bias correction."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest
import torch
from torch import Tensor, nn

from faq_deploy.activation_exponents import calibrate
from faq_deploy.bias_correction import correct_biases_analytically, correct_biases_empirically
from faq_deploy.net import QuantizedNet
from faq_deploy.recipe import override
from faq_deploy.rewrite import rewrite
from tests.nets import Inverted, with_statistics
from tests.quantized import images, make_recipe

Correct = Callable[[QuantizedNet, Iterable[Tensor]], None]
BOTH = pytest.mark.parametrize("correct", [correct_biases_analytically, correct_biases_empirically])


def _calibrated(model: nn.Module, data: Tensor) -> QuantizedNet:
    recipe = override(make_recipe(), {"quantizer.granularity": "tensor"})
    net = rewrite(model, data, recipe)
    calibrate(net, [data], recipe.calibration, recipe.target)
    return net


def _on_the_input_grid(count: int = 24) -> Tensor:
    """Images that the input quantizer leaves as they are, with a mean that isn't 0."""
    codes = torch.randint(-40, 127, (count, 3, 9, 9), generator=torch.Generator().manual_seed(3))
    return codes.float() / 64


@BOTH
@pytest.mark.parametrize("padding", [0, 1])
def test_one_layers_mean_output_is_the_float_nets_up_to_half_a_bias_step(correct: Correct, padding: int) -> None:
    torch.manual_seed(1)
    model = nn.Conv2d(3, 6, 3, 2, padding).eval()
    data = _on_the_input_grid()
    net = _calibrated(nn.Sequential(model, nn.AdaptiveAvgPool2d(1), nn.Flatten()), data)
    layer = next(iter(net.weighted().values()))
    seen: list[Tensor] = []
    layer.register_forward_hook(lambda layer, inputs, output: seen.append(output))

    def error() -> Tensor:
        with torch.no_grad():
            net(data)
            off: Tensor = seen[-1] - model(data)
        return off.double().mean((0, 2, 3)).abs()

    before = error()
    correct(net, [data[:10], data[10:]])
    half_step = 2.0 ** (layer.accumulator_exponent.double() - 1)
    assert bool((error() <= half_step + 1e-6).all())
    assert float(before.amax()) > 10 * float(half_step)


@BOTH
def test_weights_keep_their_codes(correct: Correct) -> None:
    data = images(16)
    net = _calibrated(with_statistics(Inverted()), data)
    before = {name: layer.weight_codes() for name, layer in net.weighted().items()}
    correct(net, [data])
    assert all(torch.equal(layer.weight_codes(), before[name]) for name, layer in net.weighted().items())


@BOTH
def test_batch_norms_that_take_the_correction_stay_live(correct: Correct) -> None:
    data = images(16)
    net = _calibrated(with_statistics(Inverted()), data)
    norms = [layer.norm for layer in net.weighted().values() if layer.norm is not None]
    biases = [norm.bias.detach().clone() for norm in norms]
    correct(net, [data])
    assert len(norms) == 6
    assert not any(torch.equal(norm.bias, bias) for norm, bias in zip(norms, biases, strict=True))


def test_the_empirical_correction_makes_good_what_earlier_layers_do() -> None:
    data = images(32)
    model = with_statistics(Inverted())
    errors = []
    for correct in (correct_biases_analytically, correct_biases_empirically):
        net = _calibrated(model, data)
        correct(net, [data])
        errors.append(float((net(data) - model(data)).mean(0).detach().abs().amax()))
    step = 2.0 ** int(net.weighted()["classifier_1"].accumulator_exponent.amax())
    assert errors[1] <= step < errors[0]
