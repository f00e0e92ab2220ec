"""From activations to exponents."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from engines.errors import InputError
from faq_deploy.activation_exponents import ActivationRange, calibrate
from faq_deploy.net import QuantizedNet
from faq_deploy.recipe import CalibrationSection
from faq_deploy.rewrite import rewrite
from tests.nets import Inverted, PreActivation, Small, with_statistics
from tests.quantized import images, make_recipe, quantized_net


def run(
    model: nn.Module, batches: list[Tensor], section: CalibrationSection, **choices: object
) -> tuple[QuantizedNet, list[ActivationRange]]:
    recipe = make_recipe(**choices)  # type: ignore[arg-type]
    net = rewrite(model, batches[0], recipe)
    return net, calibrate(net, batches, section, recipe.target)


def test_range_is_the_largest_percentile_over_batches_rounded_up() -> None:
    batches = [images(4, seed=s) * (1 + s) for s in range(5)]
    section = CalibrationSection(percentile_8=99.0)
    _, ranges = run(with_statistics(Small()), batches, section)
    wanted = 0.0
    for batch in batches:
        ordered = batch.abs().flatten().sort().values
        wanted = max(wanted, float(ordered[math.ceil(len(ordered) * 0.99) - 1]))
    first = ranges[0]
    assert first.name == "input_quantizer"
    assert first.y == wanted
    assert first.ymax == 2.0 ** math.ceil(math.log2(wanted))
    assert first.exponent == math.log2(first.ymax) - 7
    assert first.waste == 1 - first.y / first.ymax


def test_even_exponents_round_further_up() -> None:
    model = with_statistics(Small())
    _, next_up = run(copy.deepcopy(model), [images()], CalibrationSection())
    _, even = run(model, [images()], CalibrationSection(round_up="even"))
    for a, b in zip(next_up, even, strict=True):
        assert math.log2(b.ymax) % 2 == 0
        assert b.exponent - a.exponent in {0, 1}


def test_four_bit_relus_use_their_own_percentile() -> None:
    section = CalibrationSection(percentile_8=100.0, percentile_4=50.0)
    model = with_statistics(Small())
    _, ranges = run(copy.deepcopy(model), [images()], section, bits=4)
    by_name = {r.name: r for r in ranges}
    _, full = run(model, [images()], CalibrationSection(percentile_8=100.0, percentile_4=100.0), bits=4)
    largest = {r.name: r for r in full}
    assert by_name["relu"].y < largest["relu"].y
    assert by_name["blocks_1_relu_1"].y == largest["blocks_1_relu_1"].y  # 8 bits before the classifier


def test_exponents_stay_fixed_while_weights_train() -> None:
    net = quantized_net(with_statistics(Small()), make_recipe()).net.train()
    before = {name: int(q.exponent) for name, q in net.quantizers().items()}
    weights = {name: layer.weight_exponent.clone() for name, layer in net.weighted().items()}
    with torch.no_grad():
        for layer in net.weighted().values():
            layer.weight.mul_(8)
    net.refresh()
    assert {name: int(q.exponent) for name, q in net.quantizers().items()} == before
    assert all(
        torch.equal(layer.weight_exponent, weights[name] + 3) for name, layer in net.weighted().items() if name == "fc"
    )


def test_weight_exponents_are_frozen_in_eval() -> None:
    net = quantized_net(with_statistics(Small()), make_recipe()).net
    before = net.weighted()["stem"].weight_exponent.clone()
    with torch.no_grad():
        net.weighted()["stem"].weight.mul_(100)
    net(images())
    assert torch.equal(net.weighted()["stem"].weight_exponent, before)


def test_pooled_grid_is_no_coarser_than_what_it_pools() -> None:
    for model in (Small(), PreActivation(), Inverted()):
        net = quantized_net(with_statistics(model), make_recipe()).net
        found = {name: int(q.exponent) for name, q in net.quantizers().items()}
        pooled = [
            n for n in net.graph if n.kind == "quantize" and n.settings["pooled_from"] and not n.settings["group"]
        ]
        assert pooled
        for node in pooled:
            source = str(node.settings["pooled_from"])
            assert found[node.name] <= found.get(source, found.get(f"{source}_quantizer", -99))


def test_paper_gives_pooled_features_their_inputs_exponent() -> None:
    net = quantized_net(with_statistics(Small()), make_recipe("paper")).net
    found = {name: int(q.exponent) for name, q in net.quantizers().items()}
    assert found["adaptive_avg_pool2d_quantizer"] == found["blocks_1_relu_1"]


def test_dead_activation_has_a_defined_step() -> None:
    torch.manual_seed(0)
    model = with_statistics(Small())
    with torch.no_grad():
        model.bn.weight.zero_()
        model.bn.bias.fill_(-1.0)
    net, ranges = run(model, [images()], CalibrationSection())
    dead = next(r for r in ranges if r.name == "relu")
    assert (dead.y, dead.ymax, dead.exponent) == (0.0, 1.0, -7)
    assert bool(torch.isfinite(net(images())).all())


def test_nan_activation_names_the_layer() -> None:
    data = images()
    data[0, 0, 0, 0] = float("nan")
    model = with_statistics(Small())
    net = rewrite(model, images(), make_recipe())
    with pytest.raises(InputError, match="calibration stopped at layer input_quantizer, image number 1: "):
        calibrate(net, [data], CalibrationSection(), "tensorrt")


def test_no_batch_is_an_error() -> None:
    net = rewrite(with_statistics(Small()), images(), make_recipe())
    with pytest.raises(InputError, match="no images to calibrate on"):
        calibrate(net, [], CalibrationSection(), "tensorrt")


@pytest.mark.parametrize("method", ["percentile", "max", "mse", "entropy"])
def test_every_method_gives_a_working_net(method: str) -> None:
    model = with_statistics(Small())
    net, ranges = run(model, [images(32)], CalibrationSection(method=method))  # type: ignore[arg-type]
    assert all(r.y > 0 for r in ranges)
    with torch.inference_mode():
        wanted, found = model(images(32)), net.eval()(images(32))
    assert float((wanted - found).norm() / wanted.norm()) < 0.25


def test_relu6_never_reaches_past_its_clip() -> None:
    net = quantized_net(with_statistics(Inverted()), make_recipe(), images() * 100).net
    capped = [q for q in net.quantizers().values() if q.cap is not None]
    assert len(capped) == 4
    for quantizer in capped:
        assert quantizer.top_code * 2.0 ** int(quantizer.exponent) <= 6.0


@pytest.mark.parametrize(
    ("target", "bits", "wanted"),
    [
        ("paper", 8, {8: -4}),
        ("paper", 4, {4: -2, 8: -4}),  # the last ReLU has 8 bits
        ("tensorrt", 8, {7: -3}),
        ("tensorrt", 4, {4: -2, 7: -3}),
    ],
)
def test_fixed_exponents_look_at_no_image(target: str, bits: int, wanted: dict[int, int]) -> None:
    """A step of 2^(-b/2): ReLUs end at 2^(b/2), those of 7 bits where those of 8 do."""
    recipe = make_recipe(target, bits)
    net = rewrite(with_statistics(Small()), images(), recipe)
    ranges = calibrate(net, iter(()), CalibrationSection(method="fixed"), recipe.target)
    assert {r.name: r.exponent for r in ranges}["input_quantizer"] == -4
    relus = [q for q in net.quantizers().values() if q.clip == "relu"]
    assert {q.grid.bits: q.exponent_number for q in relus} == wanted
    ends = {4: 4.0, 7: 16.0, 8: 16.0}
    assert all(2.0 ** (q.exponent_number + q.grid.bits) == ends[q.grid.bits] for q in relus)
    with torch.inference_mode():
        assert bool(net(images()).isfinite().all())
