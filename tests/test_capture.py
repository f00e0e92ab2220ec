"""The float graph keeps eager semantics."""

from __future__ import annotations

import re

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engines.errors import InputError
from faq_deploy.capture import capture
from faq_deploy.graph import Graph
from faq_deploy.recipe import Recipe, load_recipe
from faq_deploy.rewrite import rewrite
from tests.nets import Block, InPlaceSkip, Inverted, PreActivation, Small, with_statistics

NETS = [Small, PreActivation, Inverted]


def recipe() -> Recipe:
    return load_recipe("faq-8bit")


def images(count: int = 4, size: int = 16, seed: int = 5) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("make", NETS)
def test_float_mode_equals_the_model_in_float64(make: type[nn.Module]) -> None:
    model = with_statistics(make()).double()
    net = rewrite(model, images(), recipe()).double()
    with torch.inference_mode():
        wanted, found = model(images().double()), net(images().double())
    assert float((wanted - found).abs().max() / wanted.abs().max()) < 1e-6


@pytest.mark.parametrize("kind", ["module", "method", "function", "clamp"])
def test_in_place_relu_changes_the_skip(kind: str) -> None:
    torch.manual_seed(0)
    model = InPlaceSkip(kind).eval()
    net = rewrite(model, images(), recipe())
    with torch.inference_mode():
        x = model.stem(images())
        outside = model.fc((model.conv(F.relu(x)) + x).mean((2, 3)))
        wanted, found = model(images()), net(images())
    assert float((wanted - found).abs().max()) < 1e-6
    assert float((wanted - outside).abs().max()) > 1e-2


def test_graph_survives_json() -> None:
    graph = capture(with_statistics(Small()), images()).graph
    assert Graph.from_json(graph.to_json()) == graph


@pytest.mark.parametrize("damage", ["{", '{"nodes": []}', '{"nodes": [{"name": "a"}], "outputs": []}'])
def test_damaged_graph_is_refused(damage: str) -> None:
    with pytest.raises(InputError, match="stored graph"):
        Graph.from_json(damage)


def test_relu_called_twice_becomes_two_nodes() -> None:
    graph = capture(with_statistics(Small()), images()).graph
    assert [n.name for n in graph if n.kind == "relu"] == [
        "relu",
        "blocks_0_relu",
        "blocks_0_relu_1",
        "blocks_1_relu",
        "blocks_1_relu_1",
    ]


class _Forward(nn.Module):
    def __init__(self, call: str) -> None:
        super().__init__()
        self.call = call
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if self.call == "roll":
            return torch.roll(x, 1, 2)
        if self.call == "batch":
            return torch.cat([x, x], 0)
        if self.call == "view":
            return x.view(-1, 14)
        if self.call == "assign":
            x[:, :2] = 0
            return x
        if self.call == "attention":
            return torch.softmax(x @ x.transpose(2, 3), 3) @ x
        assert self.call == "branch"
        return x if x.sum() > 0 else -x


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ("roll", "roll is not supported"),
        ("batch", "cat that mixes the images of a batch is not supported"),
        ("view", "view that mixes the images of a batch is not supported"),
        ("assign", "fill is not supported"),
        ("attention", "attention is not supported"),
        ("branch", "`return x if x.sum() > 0 else -x` depends on the values of a tensor"),
    ],
)
def test_unsupported_op_is_named_with_its_line(call: str, words: str) -> None:
    with pytest.raises(InputError, match=re.escape(words)) as caught:
        capture(_Forward(call), images())
    assert re.search(r"test_capture\.py:\d+", caught.value.what)
    assert caught.value.remedy


def test_batch_statistics_at_inference_are_refused() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, track_running_stats=False), nn.ReLU())
    with pytest.raises(InputError, match="statistics of the current batch"):
        capture(model, images())


@pytest.mark.parametrize("where", ["root", "before"])
def test_hooks_are_honoured(where: str) -> None:
    model = with_statistics(Small())
    block = model.blocks[0]
    assert isinstance(block, Block)
    plain = model(images())
    if where == "root":
        model.register_forward_hook(lambda m, i, o: o * 2)
    else:
        block.conv1.register_forward_pre_hook(lambda m, i: (i[0] + 1,))
    net = rewrite(model, images(), recipe())
    with torch.inference_mode():
        wanted, found = model(images()), net(images())
    assert float((wanted - found).abs().max()) < 1e-5
    assert float((wanted - plain).abs().max()) > 1e-2


def test_nan_weight_is_named() -> None:
    model = with_statistics(Small())
    with torch.no_grad():
        model.stem.weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(InputError, match=r"stem\.weight holds NaN"):
        rewrite(model, images(), recipe())


def test_net_without_weights_is_refused() -> None:
    with pytest.raises(InputError, match="no convolution or linear layer"):
        rewrite(nn.Sequential(nn.ReLU(), nn.Flatten()), images(), recipe())


def test_wrong_input_size_is_one_sentence() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 9), nn.Flatten(), nn.Linear(4 * 64, 2))
    with pytest.raises(InputError, match="fails on an example input"):
        capture(model, images(size=32))


def test_functional_convolution_with_module_weights_is_a_layer() -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 3, 3, 3))
            self.head = nn.Parameter(torch.randn(2, 4))

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(F.relu(F.conv2d(x, self.weight, None, stride=2)).mean((2, 3)), self.head)

    model = Functional().eval()
    net = rewrite(model, images(), recipe())
    assert set(net.weighted()) == {"conv2d", "linear"}
    with torch.inference_mode():
        assert float((net(images()) - model(images())).abs().max()) < 1e-5
