"""One step of the optimizer from several batches: the big batch's gradient, in the memory of a small one."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from faq_deploy.finetune import Interrupted
from faq_deploy.net import QuantizedNet
from faq_deploy.ranks import one_process
from faq_deploy.recipe import TrainingSection
from faq_deploy.update_step import UpdateStep, memory_format_of
from tests.nets import Small, with_statistics
from tests.quantized import images, make_recipe, quantized_net
from tests.training_jobs import DECAY, STEPS, Batches, Job, assert_whole, signal_at

CPU = torch.device("cpu")
SHORT = 12  # steps in an epoch of a quantized net


@dataclass(frozen=True)
class Parts:
    """Noise in batches of these sizes, the same in every epoch."""

    sizes: Sequence[int]
    dtype: torch.dtype = torch.float32
    side: int = 8

    @property
    def steps_per_epoch(self) -> int:
        return len(self.sizes)

    def images_in(self, step: int) -> int:
        return self.sizes[step]

    def batches(self, epoch: int, start_step: int) -> Iterator[tuple[Tensor, Tensor]]:
        for step in range(start_step, len(self.sizes)):
            generator = torch.Generator().manual_seed(step)
            noise = torch.randn(self.sizes[step], 1, self.side, self.side, generator=generator, dtype=self.dtype)
            yield noise, torch.randint(3, (self.sizes[step],), generator=generator)

    def together(self, steps: range) -> tuple[Tensor, Tensor]:
        """These batches as one."""
        found = list(self.batches(0, 0))[steps.start : steps.stop]
        return torch.cat([x for x, _ in found]), torch.cat([y for _, y in found])


def section(**choices: object) -> TrainingSection:
    return TrainingSection.model_validate({"epochs": 4, "lr": 0.01, **choices})


def plain_net(side: int = 8) -> nn.Module:
    """No batch norm: nothing but the loss ties images together."""
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(6 * side * side, 3))


def update_of(net: nn.Module, training: TrainingSection | None = None, **choices: object) -> UpdateStep:
    optimizer = torch.optim.SGD(net.parameters(), 0.01)
    return UpdateStep(net, optimizer, training or section(), one_process(CPU), **choices)  # type: ignore[arg-type]


def gradients_of(net: nn.Module) -> list[Tensor]:
    return [weight.grad.clone() for weight in net.parameters() if weight.grad is not None]


@pytest.mark.parametrize("sizes", [(5, 5, 5), (5, 5, 3), (8, 1), (7,)])
def test_the_gradient_of_micro_batches_is_that_of_one_batch(sizes: tuple[int, ...]) -> None:
    parts = Parts(sizes, torch.float64)
    net = plain_net().double()
    update = update_of(net)
    update.begin(0)
    for number, (x, y) in enumerate(parts.batches(0, 0)):
        update.add(*update.on_device(x, y), sum(sizes), last=number == len(sizes) - 1)
    found = gradients_of(net)
    net.zero_grad()
    x, y = parts.together(range(len(sizes)))
    F.cross_entropy(net(x), y).backward()  # type: ignore[no-untyped-call]
    for one, other in zip(found, gradients_of(net), strict=True):
        assert float((one - other).abs().max() / other.abs().max()) < 2e-15


def test_a_training_in_growing_batches_is_that_of_the_big_batches(tmp_path: Path) -> None:
    """Batches of 6, then 12, then 24 images; the last step of each epoch has fewer."""
    parts = Parts((6, 6, 6, 6, 6, 4), torch.float64, side=4)
    job = Job(tmp_path, epochs=3, train=parts, net=plain_net(4).double(), changes={"training.batch_doublings": [1, 2]})
    job()
    net = plain_net(4).double()
    optimizer = torch.optim.SGD(net.parameters(), 0.01, 0.9, weight_decay=DECAY)
    for epoch, together in enumerate((1, 2, 4)):
        optimizer.param_groups[0]["lr"] = 0.01 * 0.5**epoch
        for start in range(0, 6, together):
            x, y = parts.together(range(start, min(start + together, 6)))
            optimizer.zero_grad()
            F.cross_entropy(net(x), y).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    for found, wanted in zip(job.net.parameters(), net.parameters(), strict=True):
        assert float((found - wanted).detach().abs().max() / wanted.detach().abs().max()) < 1e-14
    assert [line["step"] for line in job.lines("step")] == list(range(18))


def test_batch_norms_take_each_micro_batchs_statistics(tmp_path: Path) -> None:
    parts = Parts((8, 8, 4))
    net = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(64, 3))
    job = Job(tmp_path, epochs=2, train=parts, net=net, changes={"training.batch_doublings": [1]})
    job()
    alone = nn.BatchNorm2d(1)
    for _ in range(2):
        for x, _ in parts.batches(0, 0):
            alone(x)
    norm = net[0]
    assert isinstance(norm, nn.BatchNorm2d)
    assert torch.equal(norm.running_mean, alone.running_mean) and torch.equal(norm.running_var, alone.running_var)  # type: ignore[arg-type]
    assert int(norm.num_batches_tracked) == 6  # type: ignore[arg-type]


def test_exponents_are_prepared_once_a_step_of_the_optimizer(tmp_path: Path) -> None:
    seen: list[bool] = []
    changes: dict[str, object] = {"training.batch_doublings": [1], "training.freeze_exponents": 1}
    job = Job(tmp_path, epochs=3, train=Parts((8,) * 5, side=4), before_step=seen.append, changes=changes)
    job()
    assert seen == [False] * 5 + [False] * 3 + [True] * 3


def test_a_training_with_growing_batches_resumes_between_steps_of_the_optimizer(tmp_path: Path) -> None:
    changes: dict[str, object] = {"training.batch_doublings": [1]}
    whole = Job(tmp_path / "whole", changes=changes)
    whole()
    stopped = Job(tmp_path / "stopped", changes=changes, train=signal_at(STEPS + 6))
    with pytest.raises(Interrupted, match=f"after step {STEPS + 8} of {2 * STEPS}"):
        stopped()
    job = Job(tmp_path / "stopped", changes=changes)
    job(resume=True)
    assert_whole(job, whole)


def peak_bytes(work: Callable[[], object]) -> int:
    """The most bytes that torch held at once of those it took during `work`."""
    cpu = torch.profiler.ProfilerActivity.CPU
    with torch.profiler.profile(activities=[cpu], profile_memory=True) as profile:
        work()
    assert profile.profiler is not None
    held = most = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most


def test_a_virtual_batch_of_2048_takes_the_memory_of_256_and_the_gradients(tmp_path: Path) -> None:
    def training(name: str, sizes: Sequence[int], doublings: Sequence[int]) -> Callable[[], object]:
        job = Job(tmp_path / name, epochs=4, train=Parts(sizes), net=plain_net())
        job.changes = {"training.batch_doublings": list(doublings)}
        return job

    small = peak_bytes(training("256", (256,) * 8, ()))
    virtual = peak_bytes(training("virtual", (256,) * 8, (1, 2, 3)))
    whole = peak_bytes(training("2048", (2048,), ()))
    gradients = sum(4 * weight.numel() for weight in plain_net().parameters())
    assert virtual <= small + gradients
    assert whole > 6 * small  # the measure would show it


def test_quantized_nets_train_in_channels_last_and_come_back(tmp_path: Path) -> None:
    net = quantized_net(with_statistics(Small()), make_recipe()).net
    stem = net.layers["stem"]
    assert memory_format_of(net, section()) is torch.channels_last
    assert memory_format_of(plain_net(), section()) is torch.contiguous_format
    assert memory_format_of(plain_net(), section(memory_format="channels_last")) is torch.channels_last
    assert memory_format_of(net, section(memory_format="contiguous")) is torch.contiguous_format
    update = update_of(net)
    assert isinstance(stem.weight, Tensor) and stem.weight.is_contiguous(memory_format=torch.channels_last)
    shown, _ = update.on_device(images(), torch.zeros(8, dtype=torch.int64))
    assert shown.is_contiguous(memory_format=torch.channels_last) and torch.equal(shown, images())
    update.close()
    assert stem.weight.is_contiguous()


@pytest.mark.parametrize(("target", "batch_norm"), [("tensorrt", "fold"), ("tensorrt", "fit"), ("paper", "paper")])
def test_codes_are_the_same_in_both_layouts(target: str, batch_norm: str) -> None:
    net = quantized_net(with_statistics(Small(width=64)), make_recipe(target, 4, batch_norm), images(64)).net
    data = images(64, seed=9)
    with torch.inference_mode():
        wanted, logits = net.codes(data)
    assert max(codes.numel() for codes in wanted.values()) > 2**18  # quantized in pieces
    net.to(memory_format=torch.channels_last)
    with torch.inference_mode():
        found, others = net.codes(data.contiguous(memory_format=torch.channels_last))
    assert found.keys() == wanted.keys()
    for name, codes in wanted.items():
        assert torch.equal(found[name], codes), name
    assert isinstance(logits, Tensor) and isinstance(others, Tensor)
    torch.testing.assert_close(others, logits, rtol=1e-5, atol=1e-5)


def quantized_job(folder: Path, **changes: object) -> Job:
    """Two epochs of a quantized net on noise in 3 colours."""
    torch.manual_seed(6)
    net = quantized_net(with_statistics(Small(classes=3)), make_recipe()).net
    job = Job(folder, train=Colours(SHORT), net=net, before_step=net.before_step)
    job.changes = {f"training.{key}": value for key, value in changes.items()}
    return job


class Colours(Batches):
    """3x16x16 images of three classes."""

    def batches(self, epoch: int, start_step: int) -> Iterator[tuple[Tensor, Tensor]]:
        for x, y in super().batches(epoch, start_step):
            yield x.repeat(1, 3, 4, 4), y


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"precision": "bf16"},
        {"precision": "fp16"},
        {"freeze_exponents": 1},
        {"freeze_batch_norm": 1},
        {"ema_decay": 0.9},
        {"ema_decay": 0.9, "freeze_exponents": 1},
    ],
)
def test_a_quantized_training_resumes_to_the_same_weights_exponents_and_log(
    tmp_path: Path, changes: dict[str, object]
) -> None:
    whole = quantized_job(tmp_path / "whole", **changes)
    whole()
    stopped = quantized_job(tmp_path / "stopped", **changes)
    stopped.train = Colours(SHORT, signal_at(SHORT + 5).before)
    with pytest.raises(Interrupted):
        stopped()
    job = quantized_job(tmp_path / "stopped", **changes)
    job(resume=True)
    assert_whole(job, whole)
    kept = ("similarity", "least_similarity", "least_similar_layer", "exponent_flips", "loss")
    wanted = [{key: line[key] for key in kept} for line in whole.lines("epoch")]
    assert [{key: line[key] for key in kept} for line in job.lines("epoch")] == wanted


def test_frozen_exponents_stay_and_others_move(tmp_path: Path) -> None:
    seen: list[list[Tensor]] = []

    def job(name: str, frozen: int) -> list[float]:
        seen.clear()
        job = quantized_job(tmp_path / name, freeze_exponents=frozen, lr=0.05, schedule="constant")
        net = job.net
        assert isinstance(net, QuantizedNet)
        seen.append([layer.weight_exponent.clone() for layer in net.weighted().values()])

        def step(frozen: bool) -> None:
            net.before_step(frozen)
            seen.append([layer.weight_exponent.clone() for layer in net.weighted().values()])

        job.before_step = step
        job()
        return [line["exponent_flips"] for line in job.lines("epoch")]

    flips = job("moving", 0)
    changed = [sum(int((a != b).sum()) for a, b in zip(one, two, strict=True)) for one, two in pairwise(seen)]
    assert flips[0] == sum(changed[:SHORT]) > 0
    assert flips[1] >= sum(changed[SHORT + 1 :]) > 0  # its first step is compared with what validation certified
    flips = job("frozen", 1)
    assert flips[0] > 0 and flips[1] == 0
    for exponents in seen[SHORT + 2 :]:
        assert all(torch.equal(a, b) for a, b in zip(exponents, seen[SHORT + 1], strict=True))


@pytest.mark.parametrize(("target", "batch_norm"), [("tensorrt", "fold"), ("tensorrt", "fit"), ("paper", "paper")])
def test_frozen_batch_norms_train_on_the_logits_of_evaluation(target: str, batch_norm: str) -> None:
    """The running statistics stay as they are, for nets of our layers and for others."""
    net = quantized_net(with_statistics(Small()), make_recipe(target, 4, batch_norm)).net
    update = update_of(net, section(epochs=3, freeze_batch_norm=2))
    x, y = update.on_device(images(), torch.zeros(8, dtype=torch.int64))
    statistics = [buffer for name, buffer in net.named_buffers() if name.rpartition(".")[2].startswith("running_")]
    assert statistics

    def step(epoch: int) -> tuple[Tensor, bool]:
        """Logits of a step in training, and whether it moved the statistics."""
        before = [buffer.clone() for buffer in statistics]
        update.train(epoch)
        update.begin(epoch)
        _, logits = update.add(x, y, 8, last=True)
        assert all(weight.grad is not None for name, weight in net.named_parameters() if name.endswith("weight"))
        return logits, any(not torch.equal(a, b) for a, b in zip(before, statistics, strict=True))

    _, moved = step(0)
    assert moved
    for epoch in (1, 2):
        logits, moved = step(epoch)
        assert not moved
        net.eval()
        with torch.no_grad():
            assert torch.equal(net(x), logits)


def test_frozen_batch_norms_of_a_float_net_keep_their_statistics(tmp_path: Path) -> None:
    job = Job(tmp_path, epochs=3, changes={"training.freeze_batch_norm": 2})
    seen: list[int] = []

    def count(frozen: bool) -> None:
        norm = job.net[1]  # type: ignore[index]
        assert isinstance(norm, nn.BatchNorm2d) and norm.num_batches_tracked is not None
        seen.append(int(norm.num_batches_tracked))

    job.before_step = count
    job()
    assert seen == [*range(STEPS), *[STEPS] * 2 * STEPS]


def test_batches_can_be_smaller_than_planned(tmp_path: Path) -> None:
    """5 images at a batch of 8, doubled: one partial batch is a whole epoch."""
    job = Job(tmp_path, epochs=2, train=Parts((5,), side=4), changes={"training.batch_doublings": [1]})
    assert job().steps == 2
    assert [line["step"] for line in job.lines("step")] == [0, 1]


def test_precision_changes_products_alone() -> None:
    net = quantized_net(with_statistics(Small()), make_recipe()).net
    update = update_of(net, section(precision="bf16"))
    seen: dict[str, torch.dtype] = {}
    for name, layer in net.layers.items():
        layer.register_forward_hook(lambda m, i, o, name=name: seen.__setitem__(name, o.dtype))
    update.net.train()
    update.begin(0)
    x, y = update.on_device(images(), torch.zeros(8, dtype=torch.int64))
    loss, logits = update.add(x, y, 8, last=True)
    assert set(seen.values()) == {torch.float32} and loss.dtype == logits.dtype == torch.float32
    assert {weight.grad.dtype for weight in net.parameters() if weight.grad is not None} == {torch.float32}
    exact = copy.deepcopy(net)
    with torch.no_grad():
        assert not torch.equal(exact(x), logits)  # products were computed in 16 bits
