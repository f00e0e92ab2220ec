"""Small trainings for tests. Run as a program, it trains slowly in the folder named, to be killed by a test."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor, nn

from engines.run_folder import RunFolder
from faq_deploy.checkpoint import METRICS
from faq_deploy.finetune import BatchSource, FinetuneResult, finetune
from faq_deploy.progress import LineReporter, TrainingReporter
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

    def images_in(self, step: int) -> int:
        return 8

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
    train: BatchSource = field(default_factory=Batches)
    val: Callable[[], float] = field(default_factory=Scores)
    changes: dict[str, object] = field(default_factory=dict)
    net: nn.Module = field(default_factory=tiny_net)
    before_step: Callable[[bool], None] | None = None
    reporter: TrainingReporter = field(default_factory=lambda: LineReporter(Console(file=StringIO())))
    checkpoint_seconds: float = 60.0
    start_top1: float | None = None
    teacher: nn.Module | None = None
    pretrained: bool = False

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
            start_top1=self.start_top1,
            resume=resume,
            checkpoint_seconds=self.checkpoint_seconds,
            teacher=self.teacher,
            pretrained=self.pretrained,
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
    assert [line["step"] for line in job.lines("step")] == list(range(job.epochs * job.train.steps_per_epoch))
    assert [line["epoch"] for line in job.lines("epoch")] == list(range(job.epochs))
    assert [line["loss"] for line in job.lines("epoch")] == [line["loss"] for line in reference.lines("epoch")]


def copy_of(net: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in net.state_dict().items()}


if __name__ == "__main__":
    Job(
        Path(sys.argv[1]),
        train=Batches(before=lambda step: time.sleep(0.01 if step < STEPS else 0.1)),
        checkpoint_seconds=0.3,
    )()
