"""Batch norm folded, kept, and turned into a depthwise convolution."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from faq_deploy.batch_norm import fold
from faq_deploy.capture import Captured, capture
from faq_deploy.fixed_point import step_size
from faq_deploy.graph import Graph
from faq_deploy.quantized_batch_norm import QuantizedBatchNorm
from faq_deploy.rewrite import rewrite
from tests.nets import PreActivation, Small, with_statistics
from tests.quantized import images, make_recipe, quantized_net


def _folded(captured: Captured, mode: str) -> tuple[Graph, dict[str, Tensor]]:
    return fold(captured.graph, captured.state, mode)  # type: ignore[arg-type]


def test_folded_layer_computes_what_layer_and_batch_norm_did() -> None:
    model = with_statistics(Small()).double()
    bn = model.bn
    graph, state = _folded(capture(model, images().double()), "fold")
    assert "batch_norm" not in {n.kind for n in graph}
    net = quantized_net(model.float(), make_recipe()).net.double()
    weight, bias = net.weighted()["stem"].folded()
    assert bias is not None and bn.running_var is not None and bn.running_mean is not None
    a = bn.weight.double() / torch.sqrt(bn.running_var.double() + bn.eps)
    assert torch.allclose(weight, model.stem.weight.double() * a.reshape(-1, 1, 1, 1), rtol=1e-6)
    assert torch.allclose(bias, bn.bias.double() - bn.running_mean.double() * a, rtol=1e-5, atol=1e-6)
    assert "stem.bias" not in state


def test_live_norm_trains_as_the_float_net_does() -> None:
    model = with_statistics(Small())
    net = quantized_net(model, make_recipe()).net
    net.set_mode("float")
    net.train()
    model.train()
    found, wanted = net(images(6, seed=8)), model(images(6, seed=8))
    assert torch.allclose(found, wanted, rtol=1e-3, atol=1e-4)
    found.square().sum().backward()
    wanted.square().sum().backward()
    norm = net.weighted()["stem"].norm
    assert norm is not None and model.bn.running_mean is not None and model.bn.running_var is not None
    assert torch.allclose(norm.running_mean, model.bn.running_mean, atol=1e-5)
    assert torch.allclose(norm.running_var, model.bn.running_var, rtol=1e-4)
    for ours, theirs in (
        (net.weighted()["stem"].weight.grad, model.stem.weight.grad),
        (norm.weight.grad, model.bn.weight.grad),
        (norm.bias.grad, model.bn.bias.grad),
    ):
        assert ours is not None and theirs is not None
        assert float((ours - theirs).norm() / theirs.norm()) < 1e-2


def test_live_norm_survives_a_multiplier_of_zero() -> None:
    model = with_statistics(Small())
    with torch.no_grad():
        model.bn.weight[0], model.bn.weight[1] = 0.0, 1e-30
    net = quantized_net(model, make_recipe()).net.train()
    net.refresh()
    net(images()).square().sum().backward()
    assert all(bool(torch.isfinite(p.grad).all()) for p in net.parameters() if p.grad is not None)
    assert all(bool(torch.isfinite(b).all()) for b in net.buffers())


def test_each_batch_norm_keeps_its_own_eps() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4, eps=0.5, momentum=0.03), nn.ReLU())
    bn = model[1]
    assert isinstance(bn, nn.BatchNorm2d) and bn.running_var is not None
    bn.running_var.fill_(0.01)
    (layer,) = rewrite(model.eval(), images(), make_recipe()).weighted().values()
    ratio = (layer.folded()[0] / layer.weight).detach()
    assert torch.allclose(ratio, torch.full_like(ratio, (0.01 + 0.5) ** -0.5))


@pytest.mark.parametrize("mode", ["paper", "fit"])
def test_kept_batch_norm_takes_over_the_convolutions_bias(mode: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1, bias=True), nn.BatchNorm2d(4), nn.ReLU()).eval()
    graph, state = _folded(capture(model, images()), mode)
    conv, norm = (next(n.name for n in graph if n.kind == kind) for kind in ("conv", "batch_norm"))
    assert f"{conv}.bias" not in state
    layer = model[0]
    assert isinstance(layer, nn.Conv2d) and layer.bias is not None
    assert torch.equal(state[f"{norm}.running_mean"], -layer.bias.detach())


def test_sync_batch_norm_is_a_batch_norm() -> None:
    plain = with_statistics(Small())
    synced = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(plain)).eval()  # type: ignore[no-untyped-call]
    first, second = (quantized_net(m, make_recipe()).net for m in (plain, synced))
    assert torch.equal(first(images()), second(images()))


def test_paper_constants_lie_on_their_grids() -> None:
    net = quantized_net(with_statistics(Small()), make_recipe("paper", 8, "paper")).net
    norms = [layer for layer in net.layers.values() if isinstance(layer, QuantizedBatchNorm)]
    assert len(norms) == 6
    for norm in norms:
        a, c = norm.constants(norm.running_mean, norm.running_var)
        k = a.detach() * 16
        assert torch.equal(k, k.round()) and float(k.abs().max()) <= 127
        codes = c.detach().double() / norm.bias_step(a.detach()).double()
        assert torch.equal(codes, codes.round())


def test_fit_exponent_reaches_the_largest_multiplier() -> None:
    model = with_statistics(Small())
    with torch.no_grad():
        model.bn.weight[0] = 100.0
    net = quantized_net(model, make_recipe("paper", 8, "fit")).net
    norm = net.layers["bn"]
    assert isinstance(norm, QuantizedBatchNorm)
    largest = float((norm.weight / torch.sqrt(norm.running_var + norm.eps)).detach().abs().max())
    step = float(step_size(norm.multiplier_exponent))
    assert 63 < largest / step <= 127


def test_training_updates_the_statistics_as_torch_does() -> None:
    torch.manual_seed(0)
    wanted = nn.BatchNorm2d(4, momentum=0.2)
    mean, var = torch.zeros(4), torch.ones(4)
    ours = QuantizedBatchNorm(
        torch.ones(4), torch.zeros(4), mean, var, eps=1e-5, momentum=0.2, constants="paper"
    ).train()
    x = torch.randn(6, 4, 5, 5) * 3 + 1
    assert torch.allclose(ours(x), wanted(x), atol=1e-5)
    assert wanted.running_mean is not None and wanted.running_var is not None
    assert torch.allclose(ours.running_mean, wanted.running_mean, atol=1e-6)
    assert torch.allclose(ours.running_var, wanted.running_var, atol=1e-5)


@pytest.mark.parametrize("mode", ["fold", "paper", "fit"])
def test_gradients_reach_every_parameter(mode: str) -> None:
    net = quantized_net(with_statistics(PreActivation()), make_recipe("paper", 8, mode)).net.train()
    net.refresh()
    net(images()).square().sum().backward()
    missing = [name for name, p in net.named_parameters() if p.grad is None or not bool(p.grad.abs().sum() > 0)]
    assert missing == []


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_gradients_are_those_of_the_formula(layout: torch.memory_format) -> None:
    generator = torch.Generator().manual_seed(3)
    weight, bias = torch.randn(6, generator=generator), torch.randn(6, generator=generator)
    weight[1], weight[4] = 0.001, 0.0  # a multiplier that rounds to 0, and one that is 0
    norm = QuantizedBatchNorm(
        weight, bias, torch.zeros(6), torch.ones(6), eps=1e-3, momentum=0.1, constants="paper"
    ).train()
    norm.mode = "quantize"
    values = 3 * torch.randn(16, 6, 5, 5, generator=generator) + 1
    upstream = torch.randn(16, 6, 5, 5, generator=generator)

    x = values.clone().contiguous(memory_format=layout).requires_grad_()
    norm(x).backward(upstream)
    found = x.grad, norm.weight.grad, norm.bias.grad

    norm.weight.grad = norm.bias.grad = None
    plain = values.clone().requires_grad_()
    var, mean = torch.var_mean(plain, (0, 2, 3), correction=0)
    a, c = norm.constants(mean, var)
    torch.autograd.backward(plain * a.reshape(1, -1, 1, 1) + c.reshape(1, -1, 1, 1), upstream)
    wanted = plain.grad, norm.weight.grad, norm.bias.grad
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours is not None and theirs is not None
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5)
