"""The quantized net: where codes come from, what stays float, what is stored."""

from __future__ import annotations

import pytest
import torch

from faq_deploy.graph import Setting
from faq_deploy.net import QuantizedNet
from faq_deploy.unary import Unary
from tests.hand_graphs import GraphBuilder, noise
from tests.hand_layers import group, head, ones, relu_conv, unary
from tests.nets import Small, with_statistics
from tests.quantized import make_recipe, quantized_net

DATA = noise(4, 4, 6, 6, seed=1)


def gated() -> GraphBuilder:
    """Two branches behind moves of codes, a function, a norm and a product."""
    g = GraphBuilder("tensorrt")
    x = relu_conv(g, g.input(4, 6, 6), 4, 4, 3, 3)
    for part in ("input_quantizer", x):
        group(g, part)
    x = g.node("pad", x, pads=[0, 1, 1, 0, 1, 1], mode="constant")
    x = g.node("slice", g.node("cat", "input_quantizer", x, name="joined"), axis=1, start=0, end=8, step=2)
    x = g.node("permute", x, perm=[0, 1, 3, 2], name="moved")
    gate = g.quantize(unary(g, x, "silu"), name="gate")
    normed = g.quantize(g.node("norm", x, name="norm", state=ones(4), groups=1, spatial=False, eps=1e-5))
    product = g.quantize(g.node("mul", gate, normed, name="product"))
    head(g, product, 144, [4, 6, 6])
    return g


def test_sources_are_found_through_moves_of_codes() -> None:
    net = gated().net(["fc"], [DATA])
    both = ["input_quantizer", "conv_2_quantizer"]
    assert net.source_quantizers("moved") == both
    assert net.source_quantizers("norm") == both
    assert net.source_quantizers("product") == ["gate", "norm_quantizer"]
    assert net.source_quantizers("fc") == ["product_quantizer"]
    assert net.source_quantizers("product_quantizer") == []


def test_norm_takes_the_exponent_of_what_it_reads() -> None:
    net = gated().net(["fc"], [DATA])
    quantizer = net.quantizers()["input_quantizer"]
    assert int(net.layers["norm"].input_exponent) == int(quantizer.exponent)  # type: ignore[arg-type]
    assert net.layers["norm"].largest_code == 128


def test_offset_is_settled_when_exponents_change_and_comes_back_from_a_file() -> None:
    net = gated().net(["fc"], [DATA])
    (layer,) = (layer for layer in net.layers.values() if isinstance(layer, Unary))
    offsets = {float(layer.offset)}
    for exponent in range(-9, -1):
        net.quantizers()["gate"].set_exponent(exponent)
        net.link_exponents()
        offsets.add(float(layer.offset))
    assert len(offsets) > 1
    again = gated().net(["fc"], [DATA])
    again.load_state_dict(net.state_dict())
    again.set_mode("quantize")
    with torch.inference_mode():
        assert torch.equal(again(DATA), net(DATA))


def test_every_parameter_of_every_kind_learns() -> None:
    g = gated()
    sloped = g.quantize(g.node("prelu", "product_quantizer", state={"weight": noise(4) * 0.2}, trainable=True))
    x = g.quantize(g.node("resize", sloped, mode="linear", input_size=[6, 6], size=[9, 7], align_corners=False))
    x = g.quantize(g.node("adaptive_avg_pool", x, input_size=[9, 7], size=[4, 5]))
    settings: dict[str, Setting] = {"stride": [2, 2], "padding": [0, 0], "output_padding": [0, 0], "dilation": [1, 1]}
    state = {"weight": noise(4, 3, 2, 2), "bias": noise(6)}
    y = g.node("conv_transpose", x, name="up", state=state, groups=2, also=settings)
    net = g.net([y, "fc"], [DATA]).train()
    net.refresh()
    sum(t.square().sum() for t in net(DATA)).backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert bool(torch.isfinite(parameter.grad).all()), name
        assert float(parameter.grad.abs().amax()) > 0, name


@pytest.mark.parametrize("function", ["log", "sqrt", "rsqrt", "reciprocal"])
def test_functions_that_are_steep_at_zero_train_without_nan(function: str) -> None:
    g = GraphBuilder("tensorrt")
    y = g.quantize(unary(g, g.input(4, 6, 6), function))
    net = g.net([y], [DATA.abs() + 1])
    x = DATA.abs().requires_grad_()
    codes = net.codes(x)[0]["input_quantizer"]
    assert bool((codes == 0).any()) and bool((codes > 0).any())
    net.train()(x).sum().backward()
    assert x.grad is not None
    assert bool(torch.isfinite(x.grad).all())
    assert bool((x.grad[codes == 0] == 0).all()) and bool((x.grad != 0).any())


def test_float_nodes_stay_float_in_every_mode() -> None:
    g = GraphBuilder("tensorrt")
    x = relu_conv(g, g.input(4, 6, 6), 4, 4, 1, 1)
    y = g.conv(x, noise(3, 4, 3, 3), name="free", float=True)
    net = g.net([y], [DATA])
    assert net.is_float("free") and not net.is_float("conv_2")
    assert list(net.weighted()) == ["conv_2"]
    held = relu_conv_values(net, x)
    wanted = torch.nn.functional.conv2d(held, noise(3, 4, 3, 3), torch.zeros(3))
    with torch.inference_mode():
        assert torch.equal(net(DATA), wanted)


def relu_conv_values(net: QuantizedNet, name: str) -> torch.Tensor:
    with torch.inference_mode():
        codes = net.codes(DATA)[0][name]
    return codes.float() * 2.0 ** int(net.quantizers()[name].exponent)


def test_net_of_float_layers_alone_has_nothing_to_refresh() -> None:
    g = GraphBuilder("tensorrt")
    y = g.conv(g.input(4, 6, 6), noise(3, 4, 3, 3), float=True)
    net = g.net([y], [DATA])
    net.refresh()
    assert net.weighted() == {}


def test_one_output_is_a_tensor_and_several_are_a_tuple() -> None:
    g = gated()
    assert isinstance(g.net(["fc"], [DATA])(DATA), torch.Tensor)
    found = g.net(["fc", "product"], [DATA])(DATA)
    assert [tuple(t.shape) for t in found] == [(4, 5), (4, 4, 6, 6)]


def test_codes_leave_out_what_is_the_same_for_all_images() -> None:
    g = GraphBuilder("tensorrt")
    x = g.input(4, 6, 6)
    c = g.quantize(g.node("constant", name="fixed", batched=False, state={"value": noise(1, 4, 1, 1)}))
    d = g.quantize(g.node("constant", name="repeated", batched=True, state={"value": noise(1, 4, 6, 6)}))
    y = g.node("add", g.node("add", x, c), d)
    net = g.net([y], [DATA])
    found, _ = net.codes(DATA)
    assert set(found) == {"input_quantizer", "repeated_quantizer"}
    assert {len(codes) for codes in found.values()} == {4}


def test_shapes_are_those_of_the_graph() -> None:
    net = gated().net(["fc"], [DATA])
    found = net.shapes()
    assert found["input"] == (4, 6, 6)
    assert found["joined"] == (8, 6, 6)
    assert found["fc"] == (5,)


def test_frozen_exponents_stay_until_a_sum_could_pass_2_to_the_24() -> None:
    net = quantized_net(with_statistics(Small(width=64)), make_recipe(bits=8)).net
    assert net.certify
    layer = net.weighted()["blocks_1_conv2"]
    net.train()
    net.before_step(frozen=False)
    before = layer.weight_exponent.clone()
    with torch.no_grad():
        layer.weight.mul_(0.3)
    net.before_step(frozen=True)
    net.eval()
    assert torch.equal(layer.weight_exponent, before)
    net.train()
    with torch.no_grad():
        layer.weight.copy_(1e3 * layer.weight.abs())  # every code at the top of its grid
    net.before_step(frozen=True)
    assert torch.equal(layer.weight_exponent, before)
    net.eval()
    assert bool((layer.weight_exponent > before).all())
    net.train()
    net.before_step(frozen=False)
    assert float((layer.weight_exponent - before).float().mean()) > 6  # they follow the weights again: 1e3 is 2^10
