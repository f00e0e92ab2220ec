"""How codes are counted: shares, entropy and the ends of a grid, in numbers that can be checked by hand."""

from __future__ import annotations

import numpy as np
import torch

from faq_deploy.code_occupancy import (
    Occupancy,
    activation_occupancy,
    exponent_counts,
    occupancy_of,
    weight_occupancy,
)
from faq_deploy.fixed_point import FixedPoint
from tests.quantized_layers import build, conv, input_nodes

SIGNED = FixedPoint(2, signed=True, narrow=True)  # codes -1, 0, 1
UNSIGNED = FixedPoint(2, signed=False)  # codes 0 to 3


def test_codes_that_all_occur_as_often_have_all_their_bits() -> None:
    found = occupancy_of(torch.tensor([5, 5, 5, 5]), "relu", UNSIGNED, -3, -3)
    assert found == Occupancy("relu", 2, -3, -3, used=1.0, entropy=2.0, clipped=0.25, zero=0.25)


def test_single_code_has_no_entropy() -> None:
    found = occupancy_of(torch.tensor([0, 8, 0]), "conv", SIGNED, -5, -4)
    assert found == Occupancy("conv", 2, -5, -4, used=1 / 3, entropy=0.0, clipped=0.0, zero=1.0)


def test_both_ends_of_a_signed_grid_count_as_clipped() -> None:
    found = occupancy_of(torch.tensor([1, 2, 1]), "conv", SIGNED, 0, 0)
    assert (found.clipped, found.zero, found.entropy) == (0.5, 0.5, 1.5)


def test_lowest_code_of_an_unsigned_grid_is_zero_and_not_clipped() -> None:
    found = occupancy_of(torch.tensor([3, 0, 0, 1]), "relu", UNSIGNED, 0, 0)
    assert (found.clipped, found.zero, found.used) == (0.25, 0.75, 0.5)


def test_tensors_of_a_net_are_counted_over_all_batches() -> None:
    nodes = [*input_nodes([2], UNSIGNED), conv("layer", "codes", kind="linear")]
    net = build(nodes, {"layer": (np.array([[127, -127], [0, 1]]), None)})
    weights = weight_occupancy(net)
    activations = activation_occupancy(net, [torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 9.0]])])
    assert [(w.name, w.used, w.entropy, w.clipped) for w in weights] == [("layer", 4 / 255, 2.0, 0.5)]
    assert activations == [Occupancy("codes", 2, 0, 0, used=0.75, entropy=1.5, clipped=0.25, zero=0.25)]
    assert exponent_counts(net) == ({-7: 2}, {0: 1})
