"""`certify` raises the exponents of the channels that need it, of no others, and so the whole net is proven exact."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.errors import InputError
from faq_deploy.certificate import FP32_INTEGERS, certificate
from faq_deploy.fixed_point import FixedPoint
from faq_deploy.graph import Node
from faq_deploy.net import QuantizedNet
from faq_deploy.recipe import load_recipe, override, resolved
from tests.quantized_layers import WEIGHT_EXPONENT, build, conv, input_nodes, quantizer

Ints = npt.NDArray[np.int64]

SEVEN = FixedPoint(7, signed=False)  # 0..127
SIGNED = FixedPoint(8, signed=True)  # -128..127


def refreshed(net: QuantizedNet) -> dict[str, list[int]]:
    """By how much each exponent lies over the one that the layer was made with."""
    net.refresh()
    return {name: (layer.weight_exponent - WEIGHT_EXPONENT).tolist() for name, layer in net.weighted().items()}


def one_layer(weight: Ints, bias: Ints, grid: FixedPoint, *, per_channel: bool = True) -> QuantizedNet:
    nodes = [*input_nodes([weight.shape[1], 1, 1], grid), conv("layer", "codes")]
    return build(nodes, {"layer": (weight, bias)}, per_channel=per_channel, certify=True)


def rows(*values: tuple[int, int]) -> Ints:
    """1x1 kernels over 2,100 channels: the first weight is 127, so that the exponent is -7; then `count` `codes`."""
    weight = np.zeros((len(values), 2100, 1, 1), np.int64)
    weight[:, 0] = 127
    for row, (code, count) in zip(weight, values, strict=True):
        row[1 : 1 + count] = code
    return weight


def test_only_channels_over_the_bound_are_raised_and_then_all_are_proven() -> None:
    # 127·127 a product: 1,040 of them stay within 2^24, 1,041 don't
    weight = rows((127, 1039), (127, 1040), (-127, 1100), (127, 2090), (3, 2000))
    net = one_layer(weight, np.zeros(5, np.int64), SEVEN)
    assert [b.proven for b in certificate(net)] == [False]
    assert refreshed(net) == {"layer": [0, 1, 1, 2, 0]}
    assert [b.proven for b in certificate(net)] == [True]


def test_without_certify_no_exponent_changes() -> None:
    net = one_layer(rows((127, 2000)), np.zeros(1, np.int64), SEVEN)
    net.certify = False
    assert refreshed(net) == {"layer": [0]}


def test_weights_of_both_signs_need_no_raise_where_inputs_are_not_negative() -> None:
    weight = rows((127, 1000))
    weight[0, 1001:2001] = -127
    assert refreshed(one_layer(weight, np.zeros(1, np.int64), SEVEN)) == {"layer": [0]}
    assert refreshed(one_layer(weight, np.zeros(1, np.int64), SIGNED)) == {"layer": [1]}


def test_one_exponent_for_the_tensor_rises_by_what_its_worst_channel_needs() -> None:
    net = one_layer(rows((127, 100), (127, 1100)), np.zeros(2, np.int64), SEVEN, per_channel=False)
    assert refreshed(net) == {"layer": [1]}
    assert all(b.proven for b in certificate(net))


def test_a_bias_counts() -> None:
    weight = rows((127, 1000), (127, 1000))
    assert refreshed(one_layer(weight, np.array([0, 2**21]), SEVEN)) == {"layer": [0, 1]}


def residual(other: Node | None, skip_exponent: int) -> QuantizedNet:
    """A layer of 1,000 products, which needs no raise alone, and an add behind it."""
    nodes = [*input_nodes([2100, 1, 1], SEVEN), conv("layer", "codes")]
    weights = {"layer": (rows((127, 1000), (127, 500)), np.zeros(2, np.int64))}
    if other is None:
        nodes += [conv("other", "codes"), Node("total", "add", ("layer", "other"))]
        weights["other"] = (rows((127, 600), (3, 1)), np.zeros(2, np.int64))
    else:
        nodes += [conv("skipped", "codes"), other, Node("total", "add", ("layer", other.name))]
        weights["skipped"] = (rows((0, 0), (0, 0)), np.zeros(2, np.int64))
    net = build(nodes, weights, certify=True)
    if other is not None:
        net.quantizers()[other.name].set_exponent(skip_exponent)
    return net


@pytest.mark.parametrize(("shift", "wanted"), [(0, [0, 0]), (13, [1, 0]), (16, [1, 0]), (17, [1, 1]), (18, [2, 2])])
def test_room_is_left_for_the_skip_that_is_added(shift: int, wanted: list[int]) -> None:
    net = residual(quantizer("skip", "skipped", SIGNED), WEIGHT_EXPONENT + shift)
    assert refreshed(net) == {"layer": wanted, "skipped": [0, 0]}
    assert all(b.proven for b in certificate(net))


def test_two_accumulators_that_are_added_make_room_for_each_other() -> None:
    net = residual(None, 0)
    assert not all(b.proven for b in certificate(net))
    assert refreshed(net) == {"layer": [1, 0], "other": [1, 0]}
    assert all(b.proven for b in certificate(net))


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    products=st.sampled_from([600, 1200, 5000]),
    spread=st.floats(0.1, 3.0),
    per_channel=st.booleans(),
    grid=st.sampled_from([SEVEN, FixedPoint(8, signed=False), SIGNED]),
)
def test_whatever_the_weights_the_layer_is_proven_and_channels_within_the_bound_stay(
    seed: int, products: int, spread: float, per_channel: bool, grid: FixedPoint
) -> None:
    random = np.random.default_rng(seed)
    weight = random.normal(spread * random.normal(size=(4, 1, 1, 1)), 1.0, (4, products, 1, 1))
    codes = np.rint(weight * 127 / np.abs(weight).max()).astype(np.int64)
    net = one_layer(codes, random.integers(-(2**20), 2**20, 4), grid, per_channel=per_channel)
    net.certify = False
    net.refresh()
    before, over = net.weighted()["layer"].weight_exponent.clone(), not certificate(net)[0].proven
    net.certify = True
    net.refresh()
    after = net.weighted()["layer"].weight_exponent
    (bound,) = certificate(net)
    assert bound.proven
    assert bool((after >= before).all())
    assert not over or bool((after > before).any())
    assert over or bound.worst > FP32_INTEGERS * 31 // 64 or torch.equal(after, before)


def test_the_proof_holds_in_every_forward_of_training_and_in_eval_after_it() -> None:
    torch.manual_seed(0)
    net = one_layer(np.random.default_rng(0).integers(100, 128, (3, 1200, 1, 1)), np.zeros(3, np.int64), SEVEN)
    layer = net.weighted()["layer"]
    optimizer = torch.optim.SGD(net.parameters(), lr=2e-8)
    raised, proven = [], []
    for sign in [1, 1, 1, -1, -1, -1, -1, -1, -1]:  # the weights shrink, and grow again
        net.train()
        net.refresh()
        raised.append(int((layer.weight_exponent > WEIGHT_EXPONENT).sum()))
        assert certificate(net)[0].proven
        optimizer.zero_grad()
        net(torch.randint(0, 128, (8, 1200, 1, 1)).float()).square().mean().mul(sign).backward()
        optimizer.step()
        proven.append(certificate(net)[0].proven)  # new weights, exponents of the old ones
        assert certificate(net.eval())[0].proven
    assert raised[0] == 3
    assert 0 in raised  # smaller weights get their finer grid back
    assert not all(proven)  # or `eval` would have nothing to do


def test_auto_certifies_where_batch_norm_is_folded() -> None:
    recipe = load_recipe("faq-8bit")
    assert recipe.quantizer.certify == "auto"
    for mode, wanted in (("fold", True), ("paper", False), ("fit", False)):
        chosen = resolved(override(recipe, {"quantizer.batch_norm": mode}), "net")
        assert chosen.quantizer.certify is wanted
        assert resolved(chosen, "net") == chosen
    assert resolved(override(recipe, ["quantizer.certify=false"]), "net").quantizer.certify is False


@pytest.mark.parametrize("mode", ["paper", "fit"])
def test_a_kept_batch_norm_cannot_be_certified(mode: str) -> None:
    with pytest.raises(InputError, match=f"quantizer.certify is true, which needs batch_norm fold, not {mode}"):
        override(load_recipe("faq-8bit"), {"quantizer.batch_norm": mode, "quantizer.certify": True})
