"""What a training notices about itself."""

from __future__ import annotations

import math
from io import StringIO
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import nn

from faq_deploy.net import QuantizedNet
from faq_deploy.progress import LineReporter
from faq_deploy.watch import Closeness, OverflowWatch, WeightExponents
from tests.nets import Small, with_statistics
from tests.quantized import make_recipe, quantized_net
from tests.training_jobs import Job


def small() -> QuantizedNet:
    return quantized_net(with_statistics(Small()), make_recipe()).net


def test_changed_exponents_are_counted() -> None:
    net = small()
    exponents = WeightExponents(net)
    exponents.count()
    assert exponents.take() == 0
    first = net.weighted()["stem"].weight_exponent
    first[:3] += 1
    exponents.count()
    first[0] += 1
    exponents.count()
    exponents.count()
    assert (exponents.take(), exponents.take()) == (4, 0)
    first[1] += 1
    exponents.go_on()
    exponents.count()
    assert exponents.take() == 0


def test_ranks_agree_on_the_largest_exponents() -> None:
    net = small()
    others = {name: layer.weight_exponent + index % 2 for index, (name, layer) in enumerate(net.weighted().items())}
    flat = torch.cat([value - (value % 3) for value in others.values()])
    wanted = torch.maximum(torch.cat([layer.weight_exponent for layer in net.weighted().values()]), flat)
    WeightExponents(net).agree(lambda own: torch.maximum(own, flat))
    assert torch.equal(torch.cat([layer.weight_exponent for layer in net.weighted().values()]), wanted)


def test_float_nets_have_no_exponents_to_count() -> None:
    exponents = WeightExponents(nn.Linear(2, 2))
    exponents.agree(lambda own: own)
    exponents.count()
    exponents.go_on()
    assert exponents.take() == 0


def test_closeness_names_the_layer_that_left_once() -> None:
    first, second = nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False)
    net = nn.Sequential(first, second)
    with torch.no_grad():
        first.weight.copy_(torch.eye(2))
        second.weight.copy_(torch.tensor([[3.0, 0.0]]))
    close = Closeness(net, pretrained=True)
    assert close.facts() == {"similarity": 1.0, "least_similarity": 1.0, "least_similar_layer": "0"}
    assert close.warning(close.facts()) is None
    with torch.no_grad():
        second.weight.copy_(torch.tensor([[3.0, 4.0]]))
    facts = close.facts()
    assert facts["similarity"] == pytest.approx((1 + 1 + 0.6) / 3)
    assert facts["least_similar_layer"] == "1" and facts["least_similarity"] == pytest.approx(0.6)
    warning = close.warning(facts)
    assert warning is not None and "layer 1 has left its float weights (mean cosine 0.600)" in warning
    assert close.warning(facts) is None  # said once
    assert Closeness(nn.BatchNorm2d(2), pretrained=True).facts() == {}


def test_random_weights_may_leave_their_start(tmp_path: Path) -> None:
    def said(pretrained: bool) -> str:
        text = StringIO()
        job = Job(tmp_path / str(pretrained), epochs=1, pretrained=pretrained, changes={"training.lr": 1.0})
        job.reporter = LineReporter(Console(file=text))
        job()
        line = job.lines("epoch")[0]
        assert line["least_similarity"] < 0.9 and line["least_similarity"] <= line["similarity"]
        return text.getvalue()

    assert "has left its float weights" in said(pretrained=True)
    assert "has left" not in said(pretrained=False)


def test_overflow_is_found_in_training_alone_and_only_once() -> None:
    last = nn.Linear(1, 1)
    net = nn.Sequential(nn.Linear(1, 1), nn.ReLU(), last)
    watch = OverflowWatch(net)
    assert watch.first(lambda flags: flags) is None  # nothing was computed
    with torch.no_grad():
        last.weight.fill_(math.inf)
    net.eval()(torch.ones(1, 1))
    assert watch.first(lambda flags: flags) is None
    net.train()(torch.ones(1, 1))
    assert watch.first(torch.ones_like) == "0"  # another process saw it in the first layer
    net(torch.ones(1, 1))
    net(torch.ones(1, 1))
    assert watch.first(lambda flags: flags) == "2"
    assert watch.first(lambda flags: flags) is None
    watch.close()
    assert all(not module._forward_hooks for module in net.modules())
