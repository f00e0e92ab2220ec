"""Cosines between weights then and now: exact where they can be, one a neuron, whatever the layout."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from faq_deploy.fixed_point import FixedPoint
from faq_deploy.layers import FloatLayer, WeightedLayer
from faq_deploy.live_norm import LiveNorm
from faq_deploy.products import MatrixProduct, TransposedConvolution
from faq_deploy.similarity import (
    cosines,
    network_similarity,
    neuron_cosines,
    neuron_similarity,
    used_weight,
    weights_of,
)


def test_neurons_at_a_known_angle_have_its_cosine() -> None:
    start = {"conv": torch.tensor([[5.0, 0.0], [1.0, 0.0]]).reshape(2, 2, 1, 1)}
    now = {"conv": torch.tensor([[3.0, 4.0], [3.0, 4.0]]).reshape(2, 2, 1, 1)}
    assert neuron_cosines(start, now)["conv"].tolist() == [0.6, 0.6]
    assert neuron_similarity(start, now) == {"conv": 0.6}


def test_weights_that_did_not_move_are_exactly_1() -> None:
    weights = {"a": torch.randn(16, 3, 3, 3), "b": 1e-3 * torch.randn(7, 50)}
    assert neuron_similarity(weights, weights) == {"a": 1.0, "b": 1.0}
    assert network_similarity(weights, weights) == 1.0


def test_network_is_the_mean_over_neurons_and_not_over_layers() -> None:
    start = {"one": torch.tensor([[1.0, 0.0]]), "three": torch.ones(3, 2)}
    now = {"one": torch.tensor([[0.0, 1.0]]), "three": torch.ones(3, 2)}
    assert neuron_similarity(start, now) == {"one": 0.0, "three": 1.0}
    assert network_similarity(start, now) == 0.75


def test_zero_weights_count_as_1_while_they_stay_and_as_0_once_they_move() -> None:
    start, now = torch.tensor([[0.0, 0.0], [0.0, 0.0], [2.0, 1.0]]), torch.tensor([[0.0, 0.0], [2.0, 1.0], [0.0, 0.0]])
    assert cosines(start, now).tolist() == [1.0, 0.0, 0.0]


def test_opposite_weights_are_minus_1() -> None:
    assert cosines(torch.tensor([[1.0, 2.0]]), torch.tensor([[-2.0, -4.0]])).tolist() == [-1.0]


@given(
    st.lists(st.tuples(st.floats(-8, 8, width=32), st.floats(-8, 8, width=32)), min_size=1, max_size=6),
    st.floats(1e-3, 1e3),
    st.integers(-20, 20),
)
def test_scale_of_weights_does_not_matter(pairs: list[tuple[float, float]], scale: float, power: int) -> None:
    a, b = torch.tensor([pairs], dtype=torch.float64).unbind(2)
    assert cosines(a * 2.0**power, b).tolist() == cosines(a, b).tolist()
    if a.abs().max() > 1e-3 and b.abs().max() > 1e-3:
        assert cosines(a * scale, b).item() == pytest.approx(cosines(a, b).item(), abs=1e-12)
    assert -1.0 <= cosines(a, b).item() <= 1.0


def test_weights_are_copies_of_every_layer_and_of_no_norm() -> None:
    first = nn.Conv2d(1, 2, 3)
    net = nn.Sequential(first, nn.BatchNorm2d(2), nn.Linear(2, 2))
    weights = weights_of(net)
    assert list(weights) == ["0", "2"]
    with torch.no_grad():
        first.weight.zero_()
    assert bool(weights["0"].any())


def test_transposed_convolution_has_its_output_channels_first() -> None:
    product = TransposedConvolution([1, 1], [0, 0], [0, 0], [1, 1], 1)
    weight = torch.arange(6.0).reshape(2, 3, 1, 1)  # 2 in, 3 out
    found = weights_of(nn.ModuleDict({"up": FloatLayer(weight, None, product)}))
    assert found["up"].flatten(1).tolist() == [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]]


def quantized_layer(weight: Tensor, norm: LiveNorm | None) -> WeightedLayer:
    """Two neurons on a grid with step 1/2."""
    grid = FixedPoint(4, signed=True, narrow=True)
    layer = WeightedLayer(weight, None, MatrixProduct(), norm, grid=grid, per_channel=False)
    layer.mode = "quantize"
    layer.weight_exponent.fill_(-1)
    return layer


def test_used_weights_lie_on_the_grid() -> None:
    layer = quantized_layer(torch.tensor([[0.6, -0.2], [1.3, 9.0]]), None)
    assert used_weight(layer).tolist() == [[0.5, 0.0], [1.5, 3.5]]


def test_folded_batch_norm_is_taken_out_of_the_used_weights() -> None:
    """γ/σ is 4 and -2, so that the grid of the plain weights has steps 1/8 and 1/4; a dead neuron has no weights."""
    var = torch.full((3,), 0.25)
    norm = LiveNorm(torch.tensor([2.0, -1.0, 0.0]), torch.zeros(3), torch.zeros(3), var, eps=0.0, momentum=0.1)
    layer = quantized_layer(torch.tensor([[0.3, 0.1], [0.3, 0.1], [0.3, 0.1]]), norm)
    assert used_weight(layer).tolist() == [[0.25, 0.125], [0.25, 0.0], [0.0, 0.0]]
