"""The training loop: FAQ fine-tuning and plain float training, resumable at every step."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import FrameType
from typing import Final, Protocol, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engines.errors import FaqError, InputError
from engines.run_folder import RunFolder
from faq_deploy import checkpoint
from faq_deploy.checkpoint import MetricsLog, Tally, TrainingState
from faq_deploy.progress import EpochSummary, TrainingReporter
from faq_deploy.recipe import TrainingSection
from faq_deploy.schedule import learning_rate

__all__ = ["BatchSource", "FinetuneResult", "Interrupted", "finetune"]

# Losses stay on the device and are read once in so many steps: a read makes the CPU wait for the GPU.
_READ_EVERY: Final = 20


class Interrupted(FaqError):
    """Training was stopped by Ctrl-C or SIGTERM and can be resumed (exit code 130)."""

    exit_code = 130


class BatchSource(Protocol):
    """Training batches that depend on nothing but the epoch and the step."""

    steps_per_epoch: int

    def batches(self, epoch: int, start_step: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The epoch's batches from `start_step` on: images (N, C, H, W) float32 and labels (N,) int64."""
        ...


@dataclass(frozen=True)
class FinetuneResult:
    """What training gave. The net itself holds the last weights.

    Attributes:
        best_state: state dict of the epoch with the best validation top-1, the earlier of equals; on the CPU.
        best_epoch: epochs done when it was taken; 0 if nothing was trained.
        best_top1: its validation top-1 in percent.
        last_top1: that of the last epoch.
        epochs_done: in all.
        seconds: of training in all, resumed parts included, without validation and checkpoints.
        steps: in all.
        nothing_to_do: a resumed training was complete already; no file was touched.
    """

    best_state: Mapping[str, Tensor]
    best_epoch: int
    best_top1: float
    last_top1: float
    epochs_done: int
    seconds: float
    steps: int
    nothing_to_do: bool = False


def finetune(
    net: nn.Module,
    *,
    train: BatchSource,
    val: Callable[[], float],
    training: TrainingSection,
    weight_decay: float,
    run: RunFolder,
    recipe_toml: str,
    device: torch.device,
    reporter: TrainingReporter,
    before_step: Callable[[], None] | None = None,
    resume: bool = False,
    checkpoint_seconds: float = 60.0,
) -> FinetuneResult:
    """Train with SGD, momentum and cross entropy; keep checkpoints and metrics in the run folder.

    On the CPU, a resumed training gives bitwise the weights of an uninterrupted one.

    Args:
        net: gives logits (N, classes); left on `device`, in eval mode, with the last weights.
        train: the batches.
        val: top-1 in percent of `net` as it is, in eval mode; called after each epoch.
        training: epochs, learning rates, momentum, seed. With 0 epochs the net is only validated.
        weight_decay: of every parameter.
        run: gets `checkpoint.pt` (each epoch, each `checkpoint_seconds`, and when stopped) and `metrics.jsonl`.
        recipe_toml: the resolved recipe; a checkpoint of another one is refused, but for its number of epochs.
        device: where to train.
        reporter: told about steps and epochs.
        before_step: called before each training forward (recomputes the weights' exponents).
        resume: go on from the run's checkpoint.
        checkpoint_seconds: of training between checkpoints.

    Raises:
        Interrupted: Ctrl-C or SIGTERM; the checkpoint holds the last step.
        InputError: a checkpoint that can't be continued, no training images, NaN or Inf, a full disk.

    Source: paper 3.3.
    """
    net.to(device)
    state = _resumable(run, training, weight_decay, recipe_toml, train.steps_per_epoch) if resume else None
    if training.epochs == 0:
        net.eval()
        top1 = float(val())
        return FinetuneResult(_copy(net), 0, top1, top1, epochs_done=0, seconds=0.0, steps=0)
    if train.steps_per_epoch < 1:
        raise InputError("There are no training images.", "give a folder with images, or set training.epochs to 0.")
    optimizer = torch.optim.SGD(
        [p for p in net.parameters() if p.requires_grad], training.lr, training.momentum, weight_decay=weight_decay
    )
    if state is not None:
        _restore(net, optimizer, state, run)
        state.recipe_toml = recipe_toml
        if state.epoch == training.epochs:
            net.eval()
            reporter.note(f"nothing to do: all {training.epochs} epochs of {run.path} are done")
            return _result(state, nothing_to_do=True)
    checkpoint.remove_leftovers(run)
    if state is None:
        state = TrainingState(
            recipe_toml, weight_decay, train.steps_per_epoch, net.state_dict(), optimizer.state_dict()
        )
        checkpoint.save_state(run, state)  # from here on, a kill leaves something to resume
    with (
        contextlib.closing(MetricsLog(run / checkpoint.METRICS, state.metrics_bytes)) as log,
        _StopSignals() as signals,
        _repeatable(device),
        reporter,
    ):
        loop = _Loop(net, optimizer, train, val, training, run, device, reporter, before_step, state, log, signals)
        try:
            loop.train_to_the_end(checkpoint_seconds)
        except KeyboardInterrupt:
            raise Interrupted(
                f"Training was stopped at once; {run / checkpoint.CHECKPOINT} is of step {loop.saved_step}.",
                "continue with --resume.",
            ) from None
    return _result(state)


class _StopSignals:
    """Ctrl-C and SIGTERM ask for a stop after the step; a second one, or one during validation, stops at once."""

    def __init__(self) -> None:
        self.requested = False
        self.at_once = False
        self._owner = os.getpid()
        self._previous: dict[int, Callable[[int, FrameType | None], object] | int | None] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) is not signal.SIG_IGN:  # nohup and background jobs stay deaf
                    self._previous[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, previous in self._previous.items():
            signal.signal(number, signal.SIG_DFL if previous is None else previous)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._owner:  # a forked data worker: Ctrl-C is the trainer's business, SIGTERM its own
            if number == signal.SIGTERM:
                os._exit(128 + number)
            return
        stop_now = self.requested or self.at_once
        self.requested = True
        if stop_now:
            raise KeyboardInterrupt


@dataclass
class _Loop:
    """The steps. `state` is exact between two of them, once the losses are read."""

    net: nn.Module
    optimizer: torch.optim.Optimizer
    train: BatchSource
    val: Callable[[], float]
    training: TrainingSection
    run: RunFolder
    device: torch.device
    reporter: TrainingReporter
    before_step: Callable[[], None] | None
    state: TrainingState
    log: MetricsLog
    signals: _StopSignals

    def __post_init__(self) -> None:
        from lightning_fabric import Fabric  # costs a second, which other verbs need not pay

        cuda = self.device.type == "cuda"
        self.fabric = Fabric(accelerator=self.device.type, devices=[self.device.index or 0] if cuda else 1)
        self.module, self.stepper = self.fabric.setup(self.net, self.optimizer)
        self.window = torch.zeros(_READ_EVERY, 2, device=self.device)  # loss and images right, of steps not yet read
        self.sizes: list[int] = []  # their batch sizes
        self.saved_step = self.state.global_step
        self.saved_at = self.clock = time.perf_counter()

    def train_to_the_end(self, checkpoint_seconds: float) -> None:
        state, epochs = self.state, self.training.epochs
        self.reporter.begin(epochs=epochs, steps_per_epoch=state.steps_per_epoch, steps_done=state.global_step)
        while state.epoch < epochs:
            self._train_epoch(checkpoint_seconds)
            self._validate()

    def _train_epoch(self, checkpoint_seconds: float) -> None:
        state = self.state
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.training, state.epoch)
        self.net.train()
        self.clock = time.perf_counter()
        left = state.steps_per_epoch - state.step_in_epoch
        for images, labels in itertools.islice(self.train.batches(state.epoch, state.step_in_epoch), left):
            self._step(images, labels)
            self.reporter.step(state.global_step)
            if len(self.sizes) == _READ_EVERY:
                self._read()
            if self.signals.requested:
                self._save()
                raise self._interrupted()
            if time.perf_counter() - self.saved_at >= checkpoint_seconds:
                self._save()
        if state.step_in_epoch < state.steps_per_epoch:
            raise InputError(
                f"The training images ended after {state.step_in_epoch} of {state.steps_per_epoch} batches.",
                "don't change the data folder during training; continue with --resume once it is as before.",
            )
        self._read()

    def _step(self, images: Tensor, labels: Tensor) -> None:
        state = self.state
        torch.manual_seed(_seed_of_step(self.training.seed, state.global_step))  # dropout after a resume as without it
        images = images.to(self.device, non_blocking=True)
        labels = labels.to(self.device, non_blocking=True)
        if self.before_step is not None:
            self.before_step()
        self.optimizer.zero_grad()
        logits = self.module(images)
        loss = F.cross_entropy(logits, labels)
        self.fabric.backward(loss)
        self.stepper.step()
        row = self.window[len(self.sizes)]
        row[0] = loss.detach()
        row[1] = (logits.detach().argmax(1) == labels).sum()
        self.sizes.append(len(labels))
        state.step_in_epoch += 1
        state.global_step += 1

    def _read(self) -> None:
        """Take the losses off the device; the state and the log are exact afterwards."""
        state, count = self.state, len(self.sizes)
        if not count:
            return
        lr = learning_rate(self.training, state.epoch)
        rows = self.window[:count].tolist()
        for step, (loss, right), size in zip(range(state.global_step - count, state.global_step), rows, self.sizes):
            if not math.isfinite(loss):
                raise self._diverged(f"The loss is {loss} at step {step} (learning rate {lr:g})")
            self.log.add({"kind": "step", "step": step, "epoch": state.epoch, "lr": lr, "loss": loss})
            state.tally.images += size
            state.tally.loss += loss * size
            state.tally.right += right
        self.log.flush()
        self.reporter.losses(sum(loss for loss, _ in rows) / count, 100 * sum(r for _, r in rows) / sum(self.sizes))
        self.sizes.clear()
        now = time.perf_counter()
        state.tally.seconds += now - self.clock
        self.clock = now

    def _validate(self) -> None:
        state, tally = self.state, self.state.tally
        self.net.eval()
        self.reporter.validating()
        self.signals.at_once = True
        try:
            state.last_top1 = float(self.val())
        except KeyboardInterrupt:
            self.signals.at_once = False
            self._save()
            raise self._interrupted() from None
        finally:
            self.signals.at_once = False
        summary = EpochSummary(
            number=state.epoch + 1,
            epochs=self.training.epochs,
            lr=learning_rate(self.training, state.epoch),
            loss=tally.loss / tally.images,
            train_top1=100 * tally.right / tally.images,
            top1=state.last_top1,
            is_best=math.isnan(state.best_top1) or state.last_top1 > state.best_top1,
            seconds=tally.seconds,
            images_per_second=tally.images / tally.seconds,
        )
        self.log.add({"kind": "epoch", "epoch": state.epoch, "step": state.global_step} | summary.measured())
        if summary.is_best:
            state.best, state.best_epoch, state.best_top1 = _copy(self.net), summary.number, summary.top1
        state.seconds += tally.seconds
        state.epoch, state.step_in_epoch, state.tally = summary.number, 0, Tally()
        self._save()
        self.reporter.epoch(summary)
        if self.signals.requested:
            raise self._interrupted()

    def _save(self) -> None:
        self._read()
        state = self.state
        names, weights = zip(*self.net.named_parameters(), strict=True)
        finite = torch.stack([weight.isfinite().all() for weight in weights]).tolist()
        if not all(finite):
            raise self._diverged(f"{names[finite.index(False)]} holds NaN or Inf after step {state.global_step - 1}")
        state.net, state.optimizer = self.net.state_dict(), self.optimizer.state_dict()
        state.metrics_bytes = self.log.flush(to_disk=True)
        checkpoint.save_state(self.run, state)
        self.saved_step = state.global_step
        self.saved_at = self.clock = time.perf_counter()

    def _interrupted(self) -> Interrupted:
        done, planned = self.state.global_step, self.training.epochs * self.state.steps_per_epoch
        return Interrupted(f"Training was stopped after step {done} of {planned}.", "continue with --resume.")

    def _diverged(self, what: str) -> InputError:
        path = self.run / checkpoint.CHECKPOINT
        return InputError(
            f"{what}.",
            f"lower training.lr and train again; {path} is the last good checkpoint (step {self.saved_step}).",
        )


@contextlib.contextmanager
def _repeatable(device: torch.device) -> Iterator[None]:
    """Deterministic kernels where there are any; the caller's random state and settings come back afterwards."""
    enabled, warn_only = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    fill = torch.utils.deterministic.fill_uninitialized_memory
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # else cuBLAS has no deterministic kernels
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # a debugging aid that writes all memory twice
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
            torch.utils.deterministic.fill_uninitialized_memory = fill


def _resumable(
    run: RunFolder, training: TrainingSection, weight_decay: float, recipe_toml: str, steps_per_epoch: int
) -> TrainingState:
    """The run's checkpoint, if this training continues it.

    Raises:
        InputError: there is none, it is damaged, or it belongs to another recipe, other data or fewer epochs.
    """
    state = checkpoint.load_state(run)
    path = run / checkpoint.CHECKPOINT
    changes = checkpoint.recipe_differences(state.recipe_toml, recipe_toml)
    if not changes and weight_decay != state.weight_decay:
        changes.append(f"weight decay: {state.weight_decay} became {weight_decay}")
    if steps_per_epoch != state.steps_per_epoch:
        changes.append(f"batches in an epoch: {state.steps_per_epoch} became {steps_per_epoch}")
    if changes:
        raise InputError(
            f"{path} belongs to another training ({'; '.join(changes)}).",
            "undo these changes to continue with --resume, or train again from the start with --force.",
        )
    begun = state.epoch + (state.step_in_epoch > 0)
    if training.epochs < begun:
        raise InputError(
            f"{path} is in or after epoch {begun}, but training.epochs is {training.epochs}.",
            f"ask for at least {begun} epochs, or train again from the start with --force.",
        )
    return state


def _restore(net: nn.Module, optimizer: torch.optim.Optimizer, state: TrainingState, run: RunFolder) -> None:
    try:
        net.load_state_dict(state.net)
        optimizer.load_state_dict(state.optimizer)
    except (RuntimeError, ValueError, KeyError) as error:
        raise InputError(
            f"{run / checkpoint.CHECKPOINT} is of another network: {' '.join(str(error).split())}.",
            "name the same model, or train again from the start with --force.",
        ) from error


def _seed_of_step(seed: int, step: int) -> int:
    # hashed: torch's CPU generator takes only the low 32 bits of a seed
    return int.from_bytes(hashlib.blake2b(f"{seed} {step}".encode(), digest_size=4).digest(), "little")


def _copy(net: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().to("cpu", copy=True) for name, value in net.state_dict().items()}


def _result(state: TrainingState, *, nothing_to_do: bool = False) -> FinetuneResult:
    return FinetuneResult(
        best_state=state.best,
        best_epoch=state.best_epoch,
        best_top1=state.best_top1,
        last_top1=state.last_top1,
        epochs_done=state.epoch,
        seconds=state.seconds,
        steps=state.global_step,
        nothing_to_do=nothing_to_do,
    )
