"""The moving average of weights: what it is, and that training validates, keeps and resumes it."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from faq_deploy.averaged_weights import AveragedWeights
from faq_deploy.finetune import Interrupted
from faq_deploy.net import QuantizedNet
from tests.nets import Small, with_statistics
from tests.quantized import images, make_recipe, quantized_net
from tests.test_update_step import SHORT, Colours
from tests.training_jobs import STEPS, Job, Scores, signal_at

DECAY = 0.9


def test_average_is_that_of_all_steps_and_of_the_start() -> None:
    net = nn.Sequential(nn.Linear(1, 1, bias=False), nn.BatchNorm1d(1, affine=False))
    weight, mean = net[0].weight, net[1].running_mean
    assert isinstance(weight, Tensor) and isinstance(mean, Tensor)
    with torch.no_grad():
        weight.fill_(1.0)
        average = AveragedWeights(net, DECAY)
        for value in (2.0, 4.0):
            weight.fill_(value)
            mean.fill_(-value)
            average.add()
    average.put_in()
    assert weight.item() == pytest.approx(0.81 * 1 + 0.09 * 2 + 0.1 * 4, rel=1e-6)
    assert mean.item() == pytest.approx(-0.09 * 2 - 0.1 * 4, rel=1e-6)
    average.take_out()
    assert (weight.item(), mean.item()) == (4.0, -4.0)


def test_what_changes_while_the_average_is_in_comes_back() -> None:
    net = quantized_net(with_statistics(Small()), make_recipe(bits=4)).net
    before = {name: value.clone() for name, value in net.state_dict().items()}
    average = AveragedWeights(net, DECAY)
    with torch.no_grad():
        for value in net.parameters():
            value.mul_(4.0)
    moved = {name: value.clone() for name, value in net.state_dict().items()}
    average.put_in()
    net.refresh()
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    average.take_out()
    assert all(torch.equal(value, moved[name]) for name, value in net.state_dict().items())


def averaging(folder: Path, **changes: object) -> Job:
    return Job(folder, changes={"training.ema_decay": DECAY, **changes})


def test_training_validates_and_leaves_the_average(tmp_path: Path) -> None:
    """Beside a training without it, whose weights are the same after every step."""
    plain = Job(tmp_path / "plain")
    steps: list[dict[str, Tensor]] = []

    def keep(frozen: bool) -> None:
        steps.append({name: value.detach().clone() for name, value in plain.net.named_parameters()})

    plain.before_step = keep
    plain()
    keep(False)
    job = averaging(tmp_path / "average")
    seen: list[dict[str, Tensor]] = []
    job.val = Scores(before=lambda: seen.append(copy.deepcopy(job.net.state_dict())))
    job()
    assert len(seen) == 2
    average = steps[0]
    for number, step in enumerate(steps[1:], start=1):
        average = {name: value.lerp(step[name], 1 - DECAY) for name, value in average.items()}
        if number in (STEPS, 2 * STEPS):
            validated = seen[number // STEPS - 1]
            for name, value in average.items():
                torch.testing.assert_close(validated[name], value, rtol=1e-5, atol=1e-7)
    for name, value in job.net.state_dict().items():
        assert torch.equal(value, seen[-1][name])
    last = dict(plain.net.named_parameters())
    assert any(not torch.equal(value, last[name]) for name, value in job.net.named_parameters())


def test_a_quantized_average_has_the_exponents_of_its_own_weights(tmp_path: Path) -> None:
    torch.manual_seed(6)
    net = quantized_net(with_statistics(Small(classes=3)), make_recipe(bits=4)).net
    with torch.no_grad():
        average = AveragedWeights(net, DECAY)
        for layer in net.weighted().values():
            layer.weight.mul_(8.0)
    net.refresh()
    grown = {name: layer.weight_exponent.clone() for name, layer in net.weighted().items()}
    average.put_in()
    net.refresh()
    for name, layer in net.weighted().items():
        assert torch.equal(layer.weight_exponent, grown[name] - 3), name
    average.take_out()
    assert isinstance(net, QuantizedNet)
    assert all(torch.equal(layer.weight_exponent, grown[name]) for name, layer in net.weighted().items())


@pytest.mark.parametrize("stop", [STEPS + 5, STEPS])
def test_a_training_that_was_stopped_goes_on_with_its_average(tmp_path: Path, stop: int) -> None:
    whole = averaging(tmp_path / "whole")
    whole()
    stopped = averaging(tmp_path / "stopped")
    stopped.train = signal_at(stop)
    with pytest.raises(Interrupted):
        stopped()
    job = averaging(tmp_path / "stopped")
    job(resume=True)
    for name, value in whole.net.state_dict().items():
        assert torch.equal(value, job.net.state_dict()[name]), name
    done = averaging(tmp_path / "stopped")
    assert done(resume=True).nothing_to_do
    for name, value in whole.net.state_dict().items():
        assert torch.equal(value, done.net.state_dict()[name]), name


def test_logits_of_the_net_are_those_that_were_validated(tmp_path: Path) -> None:
    """Codes and all: what is exported is what was measured."""
    torch.manual_seed(6)
    net = quantized_net(with_statistics(Small(classes=3)), make_recipe(bits=4)).net
    job = Job(tmp_path, train=Colours(SHORT), net=net, before_step=net.before_step)
    job.changes = {"training.ema_decay": DECAY, "training.lr": 0.05}
    seen: list[Tensor] = []

    def look() -> None:
        assert not net.training
        with torch.no_grad():
            seen.append(net(images()))

    job.val = Scores(before=look)
    job()
    with torch.no_grad():
        assert torch.equal(net(images()), seen[-1])
