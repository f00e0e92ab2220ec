"""Epochs and steps: the loop under `finetune`, which saves itself so that it can be continued."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engines.errors import InputError
from engines.run_folder import RunFolder
from faq_deploy import checkpoint
from faq_deploy.checkpoint import MetricsLog, Tally, TrainingState
from faq_deploy.interrupt import Interrupted, StopSignals
from faq_deploy.progress import EpochSummary, TrainingReporter
from faq_deploy.recipe import TrainingSection
from faq_deploy.schedule import learning_rate

__all__ = ["BatchSource", "TrainingLoop", "copy_of_state", "repeatable"]

# Losses stay on the device and are read once in so many steps: a read makes the CPU wait for the GPU.
_READ_EVERY: Final = 20


class BatchSource(Protocol):
    """Training batches that depend on nothing but the epoch and the step."""

    @property
    def steps_per_epoch(self) -> int:
        """Batches in an epoch."""
        ...

    def batches(self, epoch: int, start_step: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The epoch's batches from `start_step` on: images (N, C, H, W) float32 and labels (N,) int64."""
        ...


@dataclass
class TrainingLoop:
    """The steps of a training, from where `state` stands to the end.

    Attributes:
        net: on `device`, its parameters in `optimizer`.
        optimizer: SGD.
        train: the batches.
        val: top-1 in percent of `net` in eval mode.
        training: epochs, learning rates, seed.
        run: where checkpoints go.
        device: where to train.
        reporter: told about steps and epochs.
        before_step: called before each training forward.
        state: moved on; exact after a step once its loss is read, which happens before every checkpoint.
        log: `metrics.jsonl`.
        signals: asked after every step whether to stop.
    """

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
    signals: StopSignals

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
        """Train and validate what is left of the epochs planned.

        Args:
            checkpoint_seconds: of training between checkpoints; each epoch ends with one as well.

        Raises:
            Interrupted: a signal asked for it; the checkpoint holds the last step.
            InputError: the loss or a weight became NaN or Inf, the batches ended early, or the disk is full.
        """
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
        self._require_finite_weights()

    def _step(self, images: Tensor, labels: Tensor) -> None:
        state = self.state
        self._reseed()
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

    def _reseed(self) -> None:
        """Make dropout depend on the step alone, so that it is the same after a resume."""
        # hashed: torch's CPU generator takes only the low 32 bits of a seed
        text = f"{self.training.seed} {self.state.global_step}"
        seed = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "little")
        torch.default_generator.manual_seed(seed)  # torch.manual_seed takes 0.1 ms to look for other devices
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def _read(self) -> None:
        """Take the losses off the device; the state and the log are exact afterwards."""
        state, count = self.state, len(self.sizes)
        if not count:
            return
        lr = learning_rate(self.training, state.epoch)
        rows = self.window[:count].tolist()
        steps = range(state.global_step - count, state.global_step)
        for step, (loss, right), size in zip(steps, rows, self.sizes, strict=True):
            if not math.isfinite(loss):
                self.log.flush()
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
            is_best=self._is_best(),
            seconds=tally.seconds,
            images_per_second=tally.images / max(tally.seconds, 1e-9),
        )
        self.log.add(
            {
                "kind": "epoch",
                "epoch": state.epoch,
                "lr": summary.lr,
                "loss": summary.loss,
                "train_top1": summary.train_top1,
                "top1": summary.top1,
                "best": summary.is_best,
                "seconds": summary.seconds,
                "images_per_second": summary.images_per_second,
            }
        )
        if summary.is_best:
            state.best, state.best_epoch, state.best_top1 = copy_of_state(self.net), summary.number, summary.top1
        state.seconds += tally.seconds
        state.epoch, state.step_in_epoch, state.tally = summary.number, 0, Tally()
        self._save()
        self.reporter.epoch(summary)
        if self.signals.requested:
            raise self._interrupted()

    def _is_best(self) -> bool:
        """Better than every epoch before; as good is enough against the net as it was before training."""
        state = self.state
        if math.isnan(state.best_top1):
            return True
        return state.last_top1 > state.best_top1 or (state.best_epoch == 0 and state.last_top1 == state.best_top1)

    def _save(self) -> None:
        self._read()
        self._require_finite_weights()
        state = self.state
        state.net, state.optimizer = self.net.state_dict(), self.optimizer.state_dict()
        state.metrics_bytes = self.log.flush(to_disk=True)
        checkpoint.save_state(self.run, state)
        self.saved_step = state.global_step
        self.saved_at = self.clock = time.perf_counter()

    def _require_finite_weights(self) -> None:
        """The loss of a step doesn't show what its update did to the weights."""
        names, weights = zip(*self.net.named_parameters(), strict=True)
        finite = torch.stack([weight.isfinite().all() for weight in weights]).tolist()
        if not all(finite):
            step = self.state.global_step - 1
            raise self._diverged(f"{names[finite.index(False)]} holds NaN or Inf after step {step}")

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
def repeatable(device: torch.device) -> Iterator[None]:
    """Deterministic kernels where there are any; the caller's random state and settings come back afterwards."""
    enabled = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # else cuBLAS has no deterministic kernels
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.use_deterministic_algorithms(True, warn_only=True)
        # a debugging aid that writes all memory twice
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
            torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]


def copy_of_state(net: nn.Module) -> dict[str, Tensor]:
    """The net's state dict as it is now, on the CPU."""
    return {name: value.detach().to("cpu", copy=True) for name, value in net.state_dict().items()}
