"""The training loop: what it learns, what it keeps, and that stopping it anywhere loses nothing.

Run as a program, this file trains slowly in the folder named on its command line, to be killed by a test.
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from engines.errors import InputError
from engines.run_folder import RunFolder
from faq_deploy.checkpoint import CHECKPOINT, METRICS, load_state
from faq_deploy.finetune import FinetuneResult, Interrupted, finetune
from faq_deploy.progress import BarReporter, LineReporter, TrainingReporter, training_reporter
from faq_deploy.recipe import Recipe, dump_toml, load_recipe, override

STEPS = 30  # an epoch; more than one window of losses
DECAY = 1e-3


def tiny_net() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Dropout(0.3),
        nn.Flatten(),
        nn.Linear(64, 3),
    )


@dataclass
class Batches:
    """Random 4x4 images of three classes; `before` is called with the step about to be given."""

    steps_per_epoch: int = STEPS
    before: Callable[[int], None] = lambda step: None
    yields: int = 10**9

    def batches(self, epoch: int, start_step: int) -> Iterator[tuple[Tensor, Tensor]]:
        for step in range(start_step, min(self.steps_per_epoch, self.yields)):
            self.before(epoch * self.steps_per_epoch + step)
            generator = torch.Generator().manual_seed(1000 * epoch + step)
            labels = torch.randint(3, (8,), generator=generator)
            noise = torch.randn(8, 1, 4, 4, generator=generator)
            yield noise + labels.view(-1, 1, 1, 1) - 1.0, labels


@dataclass
class Scores:
    """Validation results in this order, then the last one again."""

    values: Sequence[float] = (50.0,)
    calls: int = 0
    before: Callable[[], None] = lambda: None

    def __call__(self) -> float:
        self.before()
        self.calls += 1
        return self.values[min(self.calls, len(self.values)) - 1]


@dataclass
class Job:
    """One training in one folder."""

    folder: Path
    epochs: int = 2
    train: Batches = field(default_factory=Batches)
    val: Callable[[], float] = field(default_factory=Scores)
    changes: dict[str, object] = field(default_factory=dict)
    net: nn.Module = field(default_factory=tiny_net)
    before_step: Callable[[], None] | None = None
    reporter: TrainingReporter = field(default_factory=lambda: LineReporter(Console(file=StringIO())))
    checkpoint_seconds: float = 60.0

    @property
    def recipe(self) -> Recipe:
        plan = {"training.lr": 0.01, "training.schedule": "exponential", "training.gamma": 0.5}
        return override(load_recipe("quick"), plan | {"training.epochs": self.epochs} | self.changes)

    def __call__(self, *, resume: bool = False) -> FinetuneResult:
        return finetune(
            self.net,
            train=self.train,
            val=self.val,
            training=self.recipe.training,
            weight_decay=DECAY,
            run=RunFolder(self.folder),
            recipe_toml=dump_toml(self.recipe),
            device=torch.device("cpu"),
            reporter=self.reporter,
            before_step=self.before_step,
            resume=resume,
            checkpoint_seconds=self.checkpoint_seconds,
        )

    def lines(self, kind: str) -> list[dict[str, float]]:
        lines = [json.loads(line) for line in (self.folder / METRICS).read_text().splitlines()]
        return [line for line in lines if line["kind"] == kind]


def signal_at(step: int, number: int = signal.SIGINT) -> Batches:
    def before(now: int) -> None:
        if now == step:
            os.kill(os.getpid(), number)

    return Batches(before=before)


def same_weights(a: nn.Module, b: nn.Module) -> bool:
    left, right = a.state_dict(), b.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


def assert_whole(job: Job, reference: Job) -> None:
    """The resumed job has the weights, the losses and the steps of the uninterrupted one, each step once."""
    assert same_weights(job.net, reference.net)
    assert job.lines("step") == reference.lines("step")
    assert [line["step"] for line in job.lines("step")] == list(range(job.epochs * STEPS))
    assert [line["epoch"] for line in job.lines("epoch")] == list(range(job.epochs))
    assert [line["loss"] for line in job.lines("epoch")] == [line["loss"] for line in reference.lines("epoch")]


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


def test_the_same_training_twice_gives_the_same_weights_and_another_seed_others(reference: Job, tmp_path: Path) -> None:
    again, other = Job(tmp_path / "again"), Job(tmp_path / "other", changes={"training.seed": 1})
    again()
    other()
    assert same_weights(again.net, reference.net)
    assert not same_weights(other.net, reference.net)  # dropout differs


def test_best_and_last_weights_are_both_kept_and_the_earlier_of_equals_wins(tmp_path: Path) -> None:
    seen: list[dict[str, Tensor]] = []
    job = Job(tmp_path, epochs=4, train=Batches(steps_per_epoch=2))
    job.val = Scores((40.0, 60.0, 60.0, 50.0), before=lambda: seen.append(_clone(job.net)))
    result = job()
    assert (result.best_epoch, result.best_top1, result.last_top1) == (2, 60.0, 50.0)
    assert (result.epochs_done, result.steps, result.nothing_to_do) == (4, 8, False)
    assert all(torch.equal(result.best_state[key], seen[1][key]) for key in seen[1])
    saved = load_state(RunFolder(tmp_path))
    assert all(torch.equal(saved.best[key], seen[1][key]) for key in seen[1])
    assert all(torch.equal(saved.net[key], seen[3][key]) for key in seen[3])
    assert [line["best"] for line in job.lines("epoch")] == [True, True, False, False]


def _clone(net: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in net.state_dict().items()}


def test_validation_sees_eval_mode_and_training_sees_train_mode(tmp_path: Path) -> None:
    modes: list[tuple[str, bool]] = []
    job = Job(tmp_path, epochs=1, train=Batches(steps_per_epoch=2))
    job.before_step = lambda: modes.append(("step", job.net.training))
    job.val = Scores(before=lambda: modes.append(("val", job.net.training)))
    job()
    assert modes == [("step", True), ("step", True), ("val", False)]
    assert not job.net.training


def test_before_step_changes_are_seen_by_the_forward_of_the_same_step(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))

    def zero() -> None:
        with torch.no_grad():
            for weight in net.parameters():
                weight.zero_()

    job = Job(tmp_path, epochs=1, train=Batches(steps_per_epoch=5), net=net, before_step=zero)
    job()
    assert [line["loss"] for line in job.lines("step")] == pytest.approx([math.log(3)] * 5, abs=1e-6)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("step", [0, 7, STEPS - 1, STEPS, 2 * STEPS - 1])
def test_a_signal_saves_after_the_step_and_resuming_loses_nothing(
    reference: Job, tmp_path: Path, step: int, number: signal.Signals
) -> None:
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(Interrupted) as caught:
        Job(tmp_path, train=signal_at(step, number))()
    assert caught.value.exit_code == 130 and "--resume" in caught.value.remedy
    assert f"after step {step + 1} of {2 * STEPS}" in caught.value.what
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert load_state(RunFolder(tmp_path)).global_step == step + 1
    job = Job(tmp_path)
    job(resume=True)
    assert_whole(job, reference)


def test_a_signal_during_validation_stops_at_once_and_only_validates_again(reference: Job, tmp_path: Path) -> None:
    def stop() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)

    start = time.monotonic()
    with pytest.raises(Interrupted):
        Job(tmp_path, val=Scores(before=stop))()
    assert time.monotonic() - start < 4
    state = load_state(RunFolder(tmp_path))
    assert (state.epoch, state.step_in_epoch, state.best) == (0, STEPS, {})
    steps: list[int] = []
    job = Job(tmp_path, train=Batches(before=steps.append), val=Scores((50.0, 60.0)))
    result = job(resume=True)
    assert steps == list(range(STEPS, 2 * STEPS))
    assert (result.best_epoch, result.best_top1) == (2, 60.0)
    assert_whole(job, reference)


def test_a_second_signal_stops_at_once_and_the_checkpoint_before_stays_good(reference: Job, tmp_path: Path) -> None:
    def impatient(step: int) -> None:
        if step == 40:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted, match="at once"):
        Job(tmp_path, train=Batches(before=impatient))()
    assert load_state(RunFolder(tmp_path)).global_step == STEPS
    job = Job(tmp_path)
    job(resume=True)
    assert_whole(job, reference)


def test_kill_9_in_the_middle_of_an_epoch_loses_nothing(reference: Job, tmp_path: Path) -> None:
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads()), "PYTHONPATH": str(Path(__file__).parents[1])}
    process = subprocess.Popen([sys.executable, __file__, str(tmp_path)], env=os.environ | threads)
    deadline = time.monotonic() + 60
    metrics = tmp_path / METRICS
    while not metrics.exists() or metrics.read_text().count('"kind": "step"') < STEPS + 5:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    state = load_state(RunFolder(tmp_path))
    assert (state.epoch, 0 < state.step_in_epoch < STEPS) == (1, True)
    with metrics.open("a") as lost:
        lost.write('{"kind": "step", "step": 999}\n{"kind": "st')  # steps that no checkpoint knows of
    (tmp_path / f".{CHECKPOINT}.killed.tmp").write_bytes(b"half")
    job = Job(tmp_path)
    job(resume=True)
    assert_whole(job, reference)
    assert sorted(file.name for file in tmp_path.iterdir()) == [CHECKPOINT, METRICS]


def test_time_alone_makes_a_checkpoint(tmp_path: Path) -> None:
    def look(step: int) -> None:
        if step == 12:
            seen.append(load_state(RunFolder(tmp_path)).global_step)

    seen: list[int] = []
    Job(tmp_path, epochs=1, train=Batches(before=look), checkpoint_seconds=0.0)()
    assert seen == [12]


def test_resuming_a_finished_training_touches_nothing(reference: Job) -> None:
    before = {file.name: (file.stat().st_mtime_ns, file.read_bytes()) for file in reference.folder.iterdir()}
    said = StringIO()
    val = Scores()
    job = Job(reference.folder, val=val, reporter=LineReporter(Console(file=said)))
    result = job(resume=True)
    assert result.nothing_to_do and "nothing to do" in said.getvalue()
    assert (result.epochs_done, result.steps, result.best_top1, val.calls) == (2, 2 * STEPS, 50.0, 0)
    assert same_weights(job.net, reference.net)
    after = {file.name: (file.stat().st_mtime_ns, file.read_bytes()) for file in reference.folder.iterdir()}
    assert after == before


def test_more_epochs_continue_as_if_planned_from_the_start(reference: Job, tmp_path: Path) -> None:
    Job(tmp_path, epochs=1)()
    job = Job(tmp_path)
    assert not job(resume=True).nothing_to_do
    assert_whole(job, reference)
    assert "epochs = 2" in load_state(RunFolder(tmp_path)).recipe_toml


def test_fewer_epochs_than_begun_are_refused(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        Job(tmp_path, epochs=3, train=signal_at(STEPS + 3))()
    for epochs in (0, 1):
        with pytest.raises(InputError, match=r"training\.epochs is") as caught:
            Job(tmp_path, epochs=epochs)(resume=True)
        assert "at least 2 epochs" in caught.value.remedy
    assert Job(tmp_path)(resume=True).epochs_done == 2


def test_another_recipe_is_refused_by_what_differs(reference: Job) -> None:
    with pytest.raises(InputError) as caught:
        Job(reference.folder, epochs=3, changes={"training.lr": 0.02, "bits": 4})(resume=True)
    assert "bits: 8 became 4; training.lr: 0.01 became 0.02" in caught.value.what


def test_other_data_and_another_network_are_refused(reference: Job) -> None:
    with pytest.raises(InputError, match="batches in an epoch: 30 became 31"):
        Job(reference.folder, epochs=3, train=Batches(steps_per_epoch=31))(resume=True)
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    with pytest.raises(InputError, match="another network"):
        Job(reference.folder, epochs=3, net=net)(resume=True)


def test_resuming_where_nothing_was_trained_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no training to resume"):
        Job(tmp_path)(resume=True)


def test_no_epochs_only_validate(tmp_path: Path) -> None:
    net = tiny_net()
    result = Job(tmp_path, epochs=0, net=net, val=Scores((42.0,)))()
    assert (result.best_top1, result.last_top1, result.best_epoch, result.steps) == (42.0, 42.0, 0, 0)
    assert same_weights(net, tiny_net()) and list(tmp_path.iterdir()) == []
    assert all(torch.equal(result.best_state[key], value) for key, value in net.state_dict().items())


def test_no_images_and_no_weights_are_errors_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no training images"):
        Job(tmp_path, train=Batches(steps_per_epoch=0))()
    with pytest.raises(InputError, match="no weights to train"):
        Job(tmp_path, net=nn.Flatten())()
    assert list(tmp_path.iterdir()) == []


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


def test_weights_that_overflow_in_the_last_step_are_never_saved(tmp_path: Path) -> None:
    net = tiny_net()
    train = Batches(steps_per_epoch=3)

    def overflow(step: int) -> None:  # an endless gradient: the loss of this step is still finite
        if step == 2:
            next(net.parameters()).register_hook(lambda gradient: gradient + math.inf)  # type: ignore[no-untyped-call]

    train.before = overflow
    with pytest.raises(InputError, match=r"0\.weight holds NaN or Inf after step 2"):
        Job(tmp_path, net=net, train=train, val=Scores((99.0,)))()
    assert load_state(RunFolder(tmp_path)).global_step == 0


def test_the_callers_random_state_and_settings_come_back(tmp_path: Path) -> None:
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    inside: list[bool] = []
    job = Job(tmp_path, epochs=1, train=Batches(steps_per_epoch=2), net=nn.Sequential(nn.Flatten(), nn.Linear(16, 3)))
    torch.manual_seed(5)
    job.before_step = lambda: inside.append(torch.are_deterministic_algorithms_enabled())
    job()
    assert torch.equal(torch.rand(3), wanted)
    assert inside == [True, True] and not torch.are_deterministic_algorithms_enabled()


def test_training_works_outside_the_main_thread(reference: Job, tmp_path: Path) -> None:
    job = Job(tmp_path)
    thread = threading.Thread(target=job)
    thread.start()
    thread.join()
    assert_whole(job, reference)


def test_an_ignored_signal_stays_ignored(reference: Job, tmp_path: Path) -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        job = Job(tmp_path, train=signal_at(3))
        job()
    finally:
        signal.signal(signal.SIGINT, before)
    assert_whole(job, reference)


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
    job = Job(tmp_path, epochs=1, before_step=lambda: counts.append(len(reads)))
    job()
    assert counts[19] == counts[0] and counts[29] == counts[0] + 1


def test_off_a_terminal_there_is_one_line_per_epoch(tmp_path: Path) -> None:
    said = StringIO()
    reporter = training_reporter(Console(file=said, width=40))
    assert type(reporter) is LineReporter
    Job(tmp_path, train=Batches(steps_per_epoch=2), val=Scores((50.0, 62.5)), reporter=reporter)()
    first, second = said.getvalue().splitlines()
    assert first.startswith("epoch 1/2: loss ") and "val top-1 50.00% (best), lr 0.01," in first
    assert second.startswith("epoch 2/2: loss ") and "val top-1 62.50% (best), lr 0.005," in second


def test_on_a_terminal_there_is_a_bar_with_loss_and_time_left(tmp_path: Path) -> None:
    said = StringIO()
    reporter = training_reporter(Console(file=said, force_terminal=True, width=120))
    assert isinstance(reporter, BarReporter)
    Job(tmp_path, reporter=reporter)()
    assert f"{2 * STEPS}/{2 * STEPS}" in said.getvalue() and "loss " in said.getvalue()


if __name__ == "__main__":
    Job(
        Path(sys.argv[1]),
        train=Batches(before=lambda step: time.sleep(0.01 if step < STEPS else 0.1)),
        checkpoint_seconds=0.3,
    )()
