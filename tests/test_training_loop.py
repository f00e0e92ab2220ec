"""Steps and epochs: what a step computes, what is kept, and what stops the loop."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from engines.errors import InputError
from engines.run_folder import RunFolder
from faq_deploy.checkpoint import CHECKPOINT, load_state
from tests.training_jobs import (
    DECAY,
    STEPS,
    Batches,
    Job,
    Scores,
    copy_of,
    same_weights,
    tiny_net,
)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """Two epochs without interruption."""
    job = Job(tmp_path_factory.mktemp("reference"))
    job()
    return job


def test_training_learns(reference: Job) -> None:
    losses = [line["loss"] for line in reference.lines("step")]
    assert np.mean(losses[-10:]) < 0.7 * np.mean(losses[:10])


def test_every_step_uses_sgd_with_momentum_and_weight_decay_on_every_parameter(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    weight, bias = (p.detach().clone().requires_grad_() for p in net.parameters())
    job = Job(tmp_path, epochs=1, train=Batches(steps_per_epoch=3), net=net)
    job()
    velocity = [torch.zeros_like(weight), torch.zeros_like(bias)]
    for images, labels in Batches(steps_per_epoch=3).batches(0, 0):
        loss = nn.functional.cross_entropy(images.flatten(1) @ weight.T + bias, labels)
        gradients = torch.autograd.grad(loss, [weight, bias])
        with torch.no_grad():
            for value, gradient, v in zip((weight, bias), gradients, velocity, strict=True):
                v.mul_(0.9).add_(gradient + DECAY * value)
                value.sub_(0.01 * v)
    for found, wanted in zip(net.parameters(), (weight, bias), strict=True):
        torch.testing.assert_close(found.detach(), wanted.detach(), rtol=1e-6, atol=1e-7)


def test_the_learning_rate_of_every_step_is_the_schedules(reference: Job) -> None:
    assert [line["lr"] for line in reference.lines("step")] == [0.01] * STEPS + [0.005] * STEPS


def test_an_epochs_loss_is_the_mean_of_its_steps(reference: Job) -> None:
    steps, epochs = reference.lines("step"), reference.lines("epoch")
    for epoch in (0, 1):
        losses = [line["loss"] for line in steps if line["epoch"] == epoch]
        assert epochs[epoch]["loss"] == pytest.approx(np.mean(losses), rel=1e-12)
    assert 30 < epochs[0]["train_top1"] < epochs[1]["train_top1"] < 100


def test_the_same_training_twice_gives_the_same_weights_and_another_seed_others(reference: Job, tmp_path: Path) -> None:
    again, other = Job(tmp_path / "again"), Job(tmp_path / "other", changes={"training.seed": 1})
    again()
    other()
    assert same_weights(again.net, reference.net)
    assert not same_weights(other.net, reference.net)  # dropout differs


def test_best_and_last_weights_are_both_kept_and_the_earlier_of_equals_wins(tmp_path: Path) -> None:
    seen: list[dict[str, Tensor]] = []
    job = Job(tmp_path, epochs=4, train=Batches(steps_per_epoch=2))
    job.val = Scores((40.0, 60.0, 60.0, 50.0), before=lambda: seen.append(copy_of(job.net)))
    result = job()
    assert (result.best_epoch, result.best_top1, result.last_top1) == (2, 60.0, 50.0)
    assert (result.epochs_done, result.steps, result.nothing_to_do) == (4, 8, False)
    assert all(torch.equal(result.best_state[key], seen[1][key]) for key in seen[1])
    saved = load_state(RunFolder(tmp_path))
    assert all(torch.equal(saved.best[key], seen[1][key]) for key in seen[1])
    assert all(torch.equal(saved.net[key], seen[3][key]) for key in seen[3])
    assert [line["best"] for line in job.lines("epoch")] == [True, True, False, False]


def test_validation_sees_eval_mode_and_training_sees_train_mode(tmp_path: Path) -> None:
    modes: list[tuple[str, bool]] = []
    job = Job(tmp_path, epochs=1, train=Batches(steps_per_epoch=2))
    job.before_step = lambda frozen: modes.append(("step", job.net.training))
    job.val = Scores(before=lambda: modes.append(("val", job.net.training)))
    job()
    assert modes == [("step", True), ("step", True), ("val", False)]
    assert not job.net.training


def test_before_step_changes_are_seen_by_the_forward_of_the_same_step(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))

    def zero(frozen: bool) -> None:
        with torch.no_grad():
            for weight in net.parameters():
                weight.zero_()

    job = Job(tmp_path, epochs=1, train=Batches(steps_per_epoch=5), net=net, before_step=zero)
    job()
    assert [line["loss"] for line in job.lines("step")] == pytest.approx([math.log(3)] * 5, abs=1e-6)


def test_time_alone_makes_a_checkpoint(tmp_path: Path) -> None:
    def look(step: int) -> None:
        if step == 12:
            seen.append(load_state(RunFolder(tmp_path)).global_step)

    seen: list[int] = []
    Job(tmp_path, epochs=1, train=Batches(before=look), checkpoint_seconds=0.0)()
    assert seen == [12]


def test_images_that_end_early_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="ended after 4 of 30 batches"):
        Job(tmp_path, train=Batches(yields=4))()


def test_a_nan_loss_names_its_step_and_the_last_good_checkpoint(tmp_path: Path) -> None:
    net = tiny_net()

    def spoil(step: int) -> None:
        if step == STEPS + 4:
            with torch.no_grad():
                next(net.parameters()).fill_(math.nan)

    with pytest.raises(InputError, match=f"loss is nan at step {STEPS + 4}") as caught:
        Job(tmp_path, net=net, train=Batches(before=spoil))()
    assert CHECKPOINT in caught.value.remedy and f"step {STEPS})" in caught.value.remedy
    state = load_state(RunFolder(tmp_path))
    assert state.global_step == STEPS and all(bool(value.isfinite().all()) for value in state.net.values())


@pytest.mark.parametrize("checkpoint_seconds", [0.0, 60.0])
def test_weights_that_overflow_in_the_last_step_are_never_saved(tmp_path: Path, checkpoint_seconds: float) -> None:
    net = tiny_net()

    def overflow(step: int) -> None:  # an endless gradient: the loss of this step is still finite
        if step == STEPS - 1:
            next(net.parameters()).register_hook(lambda gradient: gradient + math.inf)  # type: ignore[no-untyped-call]

    job = Job(tmp_path, net=net, train=Batches(before=overflow), val=Scores((99.0,)))
    job.checkpoint_seconds = checkpoint_seconds
    with pytest.raises(InputError, match=f"0\\.weight holds NaN or Inf after step {STEPS - 1}"):
        job()
    state = load_state(RunFolder(tmp_path))
    assert state.global_step == (0 if checkpoint_seconds else STEPS - 1)
    assert all(bool(value.isfinite().all()) for value in state.net.values())


def test_the_callers_random_state_and_settings_come_back(tmp_path: Path) -> None:
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    inside: list[bool] = []
    job = Job(tmp_path, epochs=1, train=Batches(steps_per_epoch=2), net=nn.Sequential(nn.Flatten(), nn.Linear(16, 3)))
    torch.manual_seed(5)
    job.before_step = lambda frozen: inside.append(torch.are_deterministic_algorithms_enabled())
    job()
    assert torch.equal(torch.rand(3), wanted)
    assert inside == [True, True] and not torch.are_deterministic_algorithms_enabled()


def test_no_value_is_read_off_the_device_within_a_window_of_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[str] = []

    def counted(name: str) -> Callable[[Tensor], object]:
        original = getattr(Tensor, name)

        def read(tensor: Tensor) -> object:
            reads.append(name)
            return original(tensor)

        return read

    for name in ("item", "tolist", "cpu", "numpy", "__float__", "__bool__", "__int__"):
        monkeypatch.setattr(Tensor, name, counted(name))
    counts: list[int] = []
    job = Job(tmp_path, epochs=1, before_step=lambda frozen: counts.append(len(reads)))
    job()
    assert counts[19] == counts[0] and counts[29] == counts[0] + 1
