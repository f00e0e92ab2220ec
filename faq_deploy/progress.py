"""Training progress on stderr: a bar on a terminal, a line per epoch elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from typing_extensions import Self

__all__ = ["BarReporter", "EpochSummary", "LineReporter", "TrainingReporter", "training_reporter"]


@dataclass(frozen=True)
class EpochSummary:
    """What one epoch gave.

    Attributes:
        number: epochs done, with this one.
        epochs: epochs planned.
        lr: learning rate of its steps.
        loss: mean training loss.
        train_top1: percent, of the training images as they came by.
        top1: validation top-1 in percent.
        is_best: better than every epoch before.
        seconds: of training, without validation.
        images_per_second: training images.
    """

    number: int
    epochs: int
    lr: float
    loss: float
    train_top1: float
    top1: float
    is_best: bool
    seconds: float
    images_per_second: float

    def __str__(self) -> str:
        best = " (best)" if self.is_best else ""
        return (
            f"epoch {self.number}/{self.epochs}: loss {self.loss:.4f}, train top-1 {self.train_top1:.2f}%, "
            f"val top-1 {self.top1:.2f}%{best}, lr {self.lr:.3g}, {self.seconds:.1f} s, "
            f"{self.images_per_second:.0f} images/s"
        )

    def as_line(self) -> dict[str, str | int | float | bool]:
        """For `metrics.jsonl`, where epochs count from 0."""
        return {
            "kind": "epoch",
            "epoch": self.number - 1,
            "lr": self.lr,
            "loss": self.loss,
            "train_top1": self.train_top1,
            "top1": self.top1,
            "best": self.is_best,
            "seconds": self.seconds,
            "images_per_second": self.images_per_second,
        }


class TrainingReporter(Protocol):
    """Told by the training loop how far it is. Use as a context manager."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def begin(self, *, epochs: int, steps_per_epoch: int, steps_done: int) -> None:
        """Training starts, or goes on after `steps_done` steps."""
        ...

    def step(self, steps_done: int) -> None:
        """A step is done; called after every one, so it must be cheap."""
        ...

    def losses(self, loss: float, top1: float) -> None:
        """The means over the last few steps (top-1 in percent), as soon as they are read."""
        ...

    def validating(self) -> None:
        """An epoch's steps are done; its validation starts."""
        ...

    def epoch(self, summary: EpochSummary) -> None:
        """An epoch is validated."""
        ...

    def note(self, text: str) -> None:
        """A sentence for the user."""
        ...


class LineReporter:
    """One line per epoch, for logs and pipes.

    Args:
        console: where to print.
    """

    def __init__(self, console: Console) -> None:
        self._console = console

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def begin(self, *, epochs: int, steps_per_epoch: int, steps_done: int) -> None:
        """Say where a resumed training goes on."""
        if steps_done:
            self.note(f"resuming after step {steps_done} of {epochs * steps_per_epoch}")

    def step(self, steps_done: int) -> None:
        """Nothing: lines are per epoch."""

    def losses(self, loss: float, top1: float) -> None:
        """Nothing: lines are per epoch."""

    def validating(self) -> None:
        """Nothing: lines are per epoch."""

    def epoch(self, summary: EpochSummary) -> None:
        """Print the epoch's line."""
        self.note(str(summary))

    def note(self, text: str) -> None:
        """Print a sentence, on one line whatever the width."""
        self._console.print(text, soft_wrap=True, markup=False, highlight=False)


class BarReporter(LineReporter):
    """A bar with loss, top-1 and time left, and the line of each epoch above it.

    Args:
        console: a terminal.
    """

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[news]}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self._task: TaskID | None = None
        self._epochs = self._steps_per_epoch = 1

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def begin(self, *, epochs: int, steps_per_epoch: int, steps_done: int) -> None:
        """Show the bar."""
        super().begin(epochs=epochs, steps_per_epoch=steps_per_epoch, steps_done=steps_done)
        self._epochs, self._steps_per_epoch = epochs, steps_per_epoch
        total = epochs * steps_per_epoch
        self._task = self._bar.add_task("training", total=total, completed=steps_done, news="")

    def step(self, steps_done: int) -> None:
        """Move the bar."""
        epoch = min((steps_done - 1) // self._steps_per_epoch + 1, self._epochs)
        if self._task is not None:
            self._bar.update(self._task, description=f"epoch {epoch}/{self._epochs}", completed=steps_done)

    def losses(self, loss: float, top1: float) -> None:
        """Show the last few steps' means."""
        if self._task is not None:
            self._bar.update(self._task, news=f"loss {loss:.4f}  top-1 {top1:.1f}%")

    def validating(self) -> None:
        """Say so in the bar."""
        if self._task is not None:
            self._bar.update(self._task, description="validating")


def training_reporter(console: Console | None = None) -> TrainingReporter:
    """A bar if the console is a terminal, else a line per epoch.

    Args:
        console: stderr if not given.

    Returns:
        To be entered by the training loop.
    """
    console = console or Console(stderr=True)
    return BarReporter(console) if console.is_terminal else LineReporter(console)
