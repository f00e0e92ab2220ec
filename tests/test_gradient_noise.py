"""Gradient noise: none where quantization loses nothing, known angles, and nets that are left as they were."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from engines.errors import InputError
from faq_deploy.fixed_point import FixedPoint
from faq_deploy.gradient_noise import Batch, Walk, gradient_noise, step_noise, with_weight_bits
from faq_deploy.layers import WeightedLayer
from faq_deploy.net import QuantizedNet
from faq_deploy.products import MatrixProduct
from faq_deploy.ranks import Ranks, one_process
from faq_deploy.recipe import TrainingSection
from tests.nets import Small, with_statistics
from tests.quantized import make_recipe, quantized_net
from tests.quantized_layers import build, conv, input_nodes, quantizer

TRAINING = TrainingSection(epochs=1, lr=0.01, momentum=0.9)


@pytest.fixture(scope="module")
def ranks() -> Ranks:
    return one_process(torch.device("cpu"))


def three_layers() -> QuantizedNet:
    """Linear layers whose weights are 8-bit codes times 2^-7, with ReLUs between."""
    generator = np.random.default_rng(3)
    grid = FixedPoint(8, signed=False)
    nodes = [
        *input_nodes([4], FixedPoint(8, signed=True)),
        conv("first", "codes", kind="linear"),
        quantizer("relu1", "first", grid, relu=True),
        conv("inner", "relu1", kind="linear"),
        quantizer("relu2", "inner", grid, relu=True),
        conv("last", "relu2", kind="linear"),
    ]
    sizes = {"first": (6, 4), "inner": (6, 6), "last": (3, 6)}
    codes = {name: (generator.integers(-127, 128, size), None) for name, size in sizes.items()}
    return build(nodes, codes)


def batches(count: int) -> list[Batch]:
    """Integers, so that the input's quantizer changes nothing; three classes."""
    generator = torch.Generator().manual_seed(8)
    return [
        (torch.randint(-20, 21, (16, 4), generator=generator).float(), torch.randint(3, (16,), generator=generator))
        for _ in range(count)
    ]


def test_lossless_weights_make_no_noise(ranks: Ranks) -> None:
    found = gradient_noise(three_layers(), batches(2), [8, 3], TRAINING, ranks)
    assert found.quantized[8] == {"first": 1.0, "inner": 1.0, "last": 1.0}
    assert found.quantized[3]["inner"] < 0.999


def test_gradients_of_two_batches_are_compared_where_there_are_two(ranks: Ranks) -> None:
    one = batches(1)
    assert gradient_noise(three_layers(), one, [8], TRAINING, ranks).batches == {}
    assert gradient_noise(three_layers(), one * 2, [8], TRAINING, ranks).batches["inner"] == 1.0
    assert gradient_noise(three_layers(), batches(2), [8], TRAINING, ranks).batches["inner"] < 0.999


def test_only_inner_weights_get_the_width() -> None:
    net = three_layers()
    changed = with_weight_bits(net, 3)
    assert {name: layer.grid.bits for name, layer in changed.weighted().items()} == {"first": 8, "inner": 3, "last": 8}
    assert {layer.grid.bits for layer in net.weighted().values()} == {8}
    assert {q.grid.bits for q in changed.quantizers().values()} == {8}


def test_gradients_leave_the_net_and_its_statistics_alone(ranks: Ranks) -> None:
    net = quantized_net(with_statistics(Small()), make_recipe(bits=4)).net
    before = {name: value.clone() for name, value in net.state_dict().items()}
    images, labels = torch.randn(4, 3, 16, 16), torch.tensor([0, 1, 2, 3])
    once = gradient_noise(net, [(images, labels)], [8, 3], TRAINING, ranks)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    # a second look at the same batch sees the same: no running statistics moved in between
    twice = gradient_noise(net, [(images, labels)] * 2, [8, 3], TRAINING, ranks)
    assert twice.quantized == once.quantized
    assert set(twice.batches.values()) == {1.0}


def test_noise_grows_as_bits_fall(ranks: Ranks) -> None:
    net = quantized_net(with_statistics(Small()), make_recipe()).net
    batch = (torch.randn(16, 3, 16, 16), torch.arange(16) % 5)
    found = gradient_noise(net, [batch], [8, 4, 2], TRAINING, ranks).quantized
    means = [sum(found[bits].values()) / len(found[bits]) for bits in (8, 4, 2)]
    assert 0.98 < means[0] <= 1.0
    assert means[0] > means[1] > means[2]


def test_angle_between_the_step_called_for_and_those_taken() -> None:
    """Weights on integers: (3, 4)/8 is called for and (1, 0) done; then (0, 4)/8 is called for and (0, 1) done."""
    grid = FixedPoint(8, signed=True, narrow=True)
    layer = WeightedLayer(torch.tensor([[0.25, 0.0]]), None, MatrixProduct(), grid=grid, per_channel=False)
    layer.mode = "quantize"
    walk = Walk([layer])
    walk.start()
    layer.weight.data = torch.tensor([[0.625, 0.5]])
    first = walk.go_on().flatten().tolist()
    layer.weight.data = torch.tensor([[0.625, 1.0]])
    second = walk.go_on().cos().flatten().tolist()
    assert first == [pytest.approx(math.acos(0.6)), pytest.approx(0.0, abs=1e-7)]
    # averages 0.09, 0.1 of the weights in use and 0.03375, 0.095 of their float copies
    assert second == [pytest.approx(0.7432941, abs=1e-6), pytest.approx(0.9423016, abs=1e-6)]


def test_step_that_is_not_quantized_has_the_noise_of_the_smoothing_alone(ranks: Ranks) -> None:
    net = with_weight_bits(three_layers(), 8)
    for layer in net.weighted().values():
        layer.mode = "float"
    found = step_noise(net, batches(8), 8, TRAINING, ranks)
    assert found.quantized == found.floating
    assert 0.0 < found.floating["inner"] < 1.0


def test_coarse_weights_step_elsewhere_than_they_are_asked_to(ranks: Ranks) -> None:
    by_width = {
        bits: step_noise(with_weight_bits(three_layers(), bits), batches(40), 40, TRAINING, ranks) for bits in (8, 3)
    }
    assert by_width[8].quantized["inner"] > by_width[3].quantized["inner"]
    assert by_width[8].floating["inner"] > by_width[8].quantized["inner"]


def test_training_that_diverges_names_layer_and_width(ranks: Ranks) -> None:
    wild = TRAINING.model_copy(update={"lr": 1e30})
    with pytest.raises(InputError, match=r"first became NaN or infinite with 5-bit weights"):
        step_noise(with_weight_bits(three_layers(), 5), batches(6), 6, wild, ranks)
