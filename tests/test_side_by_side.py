"""Tests of running a net in float and quantized side by side."""

from __future__ import annotations

import torch

from faq_deploy.activation_exponents import calibrate
from faq_deploy.layers import Mode, WeightedLayer
from faq_deploy.net import QuantizedNet
from faq_deploy.rewrite import rewrite
from faq_deploy.side_by_side import Seen, mean_output, mean_tensor, shift_bias, walk_side_by_side
from tests.nets import Inverted, PreActivation, Small, with_statistics
from tests.quantized import images, make_recipe


def _calibrated(model: torch.nn.Module) -> QuantizedNet:
    recipe, data = make_recipe(), images(16)
    net = rewrite(model, data, recipe)
    calibrate(net, [data], recipe.calibration, recipe.target)
    return net


def test_every_layer_is_seen_once_in_graph_order_with_float_and_quantized_inputs() -> None:
    net, data = _calibrated(with_statistics(Inverted())), images(16)
    seen: dict[WeightedLayer, Seen] = {}
    walk_side_by_side(net, [data[:10], data[10:]], lambda layer, inputs: seen.update({layer: inputs}))
    assert list(seen) == list(net.weighted().values())
    cases: tuple[tuple[Mode, str], ...] = (("float", "exact"), ("quantize", "quantized"))
    for mode, kept in cases:
        found: dict[WeightedLayer, torch.Tensor] = {}
        hooks = [
            layer.register_forward_pre_hook(lambda layer, inputs, found=found: found.update({layer: inputs[0]}))
            for layer in seen
        ]
        net.set_mode(mode)
        with torch.no_grad():
            net(data[:10])
        for hook in hooks:
            hook.remove()
        for layer, inputs in seen.items():
            assert [len(batch) for batch in getattr(inputs, kept)] == [10, 6]
            assert torch.equal(getattr(inputs, kept)[0], found[layer])


def test_a_correction_is_seen_by_the_layers_behind_and_not_by_the_float_net() -> None:
    net, data = _calibrated(with_statistics(Small())), images(8)
    plain: list[Seen] = []
    walk_side_by_side(net, [data], lambda _, inputs: plain.append(inputs))
    corrected: list[Seen] = []

    def first_layer_moves(layer: WeightedLayer, inputs: Seen) -> None:
        if not corrected:
            shift_bias(layer, torch.full((len(layer.weight),), 0.5))
        corrected.append(inputs)

    walk_side_by_side(net, [data], first_layer_moves)
    assert torch.equal(plain[1].exact[0], corrected[1].exact[0])
    assert not torch.equal(plain[1].quantized[0], corrected[1].quantized[0])


def test_a_concat_chain_can_be_walked_and_leaves_the_net_quantized() -> None:
    net, data = _calibrated(with_statistics(PreActivation())), images(4)
    before = net(data)
    walk_side_by_side(net, [data], lambda layer, inputs: None)
    assert torch.equal(net(data), before)


def test_the_mean_output_is_that_of_the_mean_input() -> None:
    net, data = _calibrated(with_statistics(Small())), images(16)
    layer = net.weighted()["stem"]
    weight, _ = layer.folded()
    outputs = layer.product(data.double(), weight.double(), None)
    found = mean_output(layer, mean_tensor([data[:5], data[5:]]), weight)
    assert torch.allclose(found, outputs.mean((0, 2, 3)), rtol=0, atol=1e-12)
