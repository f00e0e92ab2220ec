"""Epochs and steps: the loop under `finetune`, which saves itself so that it can be continued."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn

from engines.errors import InputError
from engines.run_folder import RunFolder
from faq_deploy import checkpoint
from faq_deploy.checkpoint import MetricsLog, Tally, TrainingState
from faq_deploy.diagnosis import layer_that_failed
from faq_deploy.interrupt import Interrupted, StopSignals
from faq_deploy.progress import EpochSummary, TrainingReporter
from faq_deploy.repeatable import reseed
from faq_deploy.schedule import learning_rate
from faq_deploy.update_step import BatchSource, UpdateStep, steps_together
from faq_deploy.watch import Closeness

__all__ = ["TrainingLoop", "copy_of_state"]

# Losses stay on the device and are read once in so many steps: a read makes the CPU wait for the GPU.
_READ_EVERY: Final = 20


@dataclass
class TrainingLoop:
    """The steps of a training, from where `state` stands to the end.

    A step of `state`, of the batches and of `metrics.jsonl` is one (micro) batch; where a step of the optimizer takes
    several, checkpoints are written between those.

    Attributes:
        update: what a step of the optimizer does.
        train: the batches.
        val: top-1 in percent of the net in eval mode, the same on every process.
        run: where checkpoints go.
        reporter: told about steps and epochs.
        state: moved on; exact after a step once its loss is read, which happens before every checkpoint.
        log: `metrics.jsonl`; None on all processes but the first.
        closeness: of the weights to those at the start.
        signals: asked after every step whether to stop.
    """

    update: UpdateStep
    train: BatchSource
    val: Callable[[], float]
    run: RunFolder
    reporter: TrainingReporter
    state: TrainingState
    log: MetricsLog | None
    closeness: Closeness
    signals: StopSignals

    def __post_init__(self) -> None:
        self.net, self.training, self.ranks = self.update.net, self.update.training, self.update.ranks
        # loss x images and images right of this process, of steps not yet read
        self.window = torch.zeros(_READ_EVERY, 2, device=self.ranks.device, dtype=torch.float64)
        self.sizes: list[int] = []  # their images, on all processes
        self.update.restore_scaler(self.state.scaler)
        if self.update.average is not None:
            self.update.average.load(self.state.average)
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
        self.update.settle()

    def _train_epoch(self, checkpoint_seconds: float) -> None:
        state = self.state
        for group in self.update.optimizer.param_groups:
            group["lr"] = learning_rate(self.training, state.epoch)
        self.update.train(state.epoch)
        self.clock = time.perf_counter()
        batches = self.train.batches(state.epoch, state.step_in_epoch)
        while state.step_in_epoch < state.steps_per_epoch:
            self._step(batches)
            due = time.perf_counter() - self.saved_at >= checkpoint_seconds
            if self.ranks.agree(due or self.signals.requested):
                self._save()
                if self.ranks.agree(self.signals.requested):
                    raise self._interrupted()
        self._read()
        self._require_finite_weights()

    def _step(self, batches: Iterator[tuple[Tensor, Tensor]]) -> None:
        """One step of the optimizer."""
        state = self.state
        steps = steps_together(self.training, state.epoch, state.step_in_epoch, state.steps_per_epoch)
        total = sum(self.train.images_in(step) for step in steps)
        self.update.begin(state.epoch)
        for step in steps:
            reseed(self.training.seed, state.global_step, self.ranks)
            images, labels = self.update.on_device(*self._next(batches))
            loss, logits = self.update.add(images, labels, total, last=step == steps[-1])
            row = self.window[len(self.sizes)]
            row[0] = loss.double() * len(labels)
            row[1] = (logits.argmax(1) == labels).sum()
            self.sizes.append(self.train.images_in(step))
            state.step_in_epoch += 1
            state.global_step += 1
            self.reporter.step(state.global_step)
            if len(self.sizes) == _READ_EVERY:
                self._read()
        self.update.finish()

    def _next(self, batches: Iterator[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        batch = next(batches, None)
        if batch is None:
            state = self.state
            raise InputError(
                f"The training images ended after {state.step_in_epoch} of {state.steps_per_epoch} batches.",
                "don't change the data folder during training; continue with --resume once it is as before.",
            )
        return batch

    def _read(self) -> None:
        """Take the losses off the device; the state and the log are exact afterwards."""
        state, count = self.state, len(self.sizes)
        if not count:
            return
        lr = learning_rate(self.training, state.epoch)
        rows = self.ranks.total(self.window[:count]).tolist()
        steps = range(state.global_step - count, state.global_step)
        if layer := self.update.overflowed():
            self._flush()
            raise InputError(
                f"The output of layer {layer} overflows fp16, which ends at 65,504, by step {steps[-1]}.",
                f"pass --precision bf16 or fp32; {self._last_good()}.",
            )
        for step, (loss, right), size in zip(steps, rows, self.sizes, strict=True):
            mean = loss / size
            if not math.isfinite(mean):
                self._flush()
                raise self._diverged(f"The loss is {mean} at step {step} (learning rate {lr:g}{self._where(step)})")
            self._log({"kind": "step", "step": step, "epoch": state.epoch, "lr": lr, "loss": mean})
            state.tally.images += size
            state.tally.loss += loss
            state.tally.right += right
        self._flush()
        seen = sum(self.sizes)
        self.reporter.losses(sum(loss for loss, _ in rows) / seen, 100 * sum(right for _, right in rows) / seen)
        self.sizes.clear()
        now = time.perf_counter()
        state.tally.seconds += now - self.clock
        self.clock = now

    def _validate(self) -> None:
        state, tally = self.state, self.state.tally
        try:
            with self.update.evaluated(state.epoch):
                close = self._evaluate()
                is_best = self._is_best()
                if is_best:
                    state.best, state.best_epoch, state.best_top1 = (
                        copy_of_state(self.net),
                        state.epoch + 1,
                        state.last_top1,
                    )
        except KeyboardInterrupt:
            self._save()
            raise self._interrupted() from None
        summary = EpochSummary(
            number=state.epoch + 1,
            epochs=self.training.epochs,
            lr=learning_rate(self.training, state.epoch),
            loss=tally.loss / tally.images,
            train_top1=100 * tally.right / tally.images,
            top1=state.last_top1,
            is_best=is_best,
            seconds=tally.seconds,
            images_per_second=tally.images / max(tally.seconds, 1e-9),
        )
        self._log(summary.as_line() | close | {"exponent_flips": tally.flips + self.update.exponents.take()})
        self.update.exponents.go_on()
        state.seconds += tally.seconds
        state.epoch, state.step_in_epoch, state.tally = summary.number, 0, Tally()
        self._save()
        self.reporter.epoch(summary)
        if warning := self.closeness.warning(close):
            self.reporter.note(warning)
        if self.ranks.agree(self.signals.requested):
            raise self._interrupted()

    def _evaluate(self) -> dict[str, str | float]:
        """Measure the net as it is; how close its weights are to their start."""
        self.reporter.validating()
        self.signals.at_once = self.ranks.count == 1  # else the others would wait for this one's part of the images
        try:
            self.state.last_top1 = float(self.val())
        finally:
            self.signals.at_once = False
        return self.closeness.facts()

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
        state.net, state.optimizer = self.net.state_dict(), self.update.optimizer.state_dict()
        state.scaler = self.update.scaler_state()
        state.average = {} if self.update.average is None else self.update.average.state()
        state.tally.flips += self.update.exponents.take()
        self.ranks.first_does(self._write)
        self.saved_step = state.global_step
        self.saved_at = self.clock = time.perf_counter()

    def _write(self) -> None:
        if self.log is not None:
            self.state.metrics_bytes = self.log.flush(to_disk=True)
        checkpoint.save_state(self.run, self.state)

    def _log(self, line: dict[str, str | int | float | bool]) -> None:
        if self.log is not None:
            self.log.add(line)

    def _flush(self) -> None:
        if self.log is not None:
            self.log.flush()

    def _require_finite_weights(self) -> None:
        """The loss of a step doesn't show what its update did to the weights."""
        names, weights = zip(*self.net.named_parameters(), strict=True)
        finite = torch.stack([weight.isfinite().all() for weight in weights]).tolist()
        if not all(finite):
            step = self.state.global_step - 1
            raise self._diverged(f"{names[finite.index(False)]} holds NaN or Inf after step {step}")

    def _where(self, step: int) -> str:
        """The layer in which a step's numbers are first NaN or Inf, for a message."""
        if self.ranks.count > 1:  # the others may not see the folder
            return ""
        layer = layer_that_failed(self.update, self.train, checkpoint.load_state(self.run), step)
        return "" if layer is None else f"; NaN or Inf begins in layer {layer}"

    def _interrupted(self) -> Interrupted:
        done, planned = self.state.global_step, self.training.epochs * self.state.steps_per_epoch
        return Interrupted(f"Training was stopped after step {done} of {planned}.", "continue with --resume.")

    def _diverged(self, what: str) -> InputError:
        return InputError(f"{what}.", f"lower training.lr and train again; {self._last_good()}.")

    def _last_good(self) -> str:
        return f"{self.run / checkpoint.CHECKPOINT} is the last good checkpoint (step {self.saved_step})"


def copy_of_state(net: nn.Module) -> dict[str, Tensor]:
    """The net's state dict as it is now, on the CPU."""
    return {name: value.detach().to("cpu", copy=True) for name, value in net.state_dict().items()}
