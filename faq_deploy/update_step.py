"""One step of the optimizer: one batch, or several whose gradients are added up as if they were one."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, Protocol

import torch
from torch import Tensor, nn

from faq_deploy.averaged_weights import AveragedWeights
from faq_deploy.batch_statistics import freeze_statistics
from faq_deploy.distill import training_loss
from faq_deploy.net import QuantizedNet
from faq_deploy.ranks import Ranks
from faq_deploy.recipe import TrainingSection
from faq_deploy.schedule import micro_batches
from faq_deploy.watch import OverflowWatch, WeightExponents

__all__ = ["BatchSource", "UpdateStep", "memory_format_of", "steps_together"]

_RUNNING: Final = frozenset({"running_mean", "running_var"})


class BatchSource(Protocol):
    """Training batches that depend on nothing but the epoch and the step."""

    @property
    def steps_per_epoch(self) -> int:
        """Batches in an epoch."""
        ...

    def images_in(self, step: int) -> int:
        """Images of a step's batch, of all processes together; the same in every epoch."""
        ...

    def batches(self, epoch: int, start_step: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The epoch's batches from `start_step` on, this process's part of them.

        Images (N, C, H, W) float32 and labels (N,) int64.
        """
        ...


@dataclass
class UpdateStep:
    """What an optimizer step does, on every process that trains.

    A step takes one or more batches ("micro batches", paper footnote 6). Every image of it counts the same, whichever
    batch and process it is in, also in the smaller last step of an epoch. Batch norms take each micro batch's
    statistics (of all processes with `training.sync_batch_norm`), not those of the whole step; the running ones are
    averaged over processes after it. Between two micro batches nothing but gradients is kept.

    Attributes:
        net: on the ranks' device, its parameters in `optimizer`.
        optimizer: SGD.
        training: precision, layout, distillation, frozen epochs.
        ranks: the processes that train together.
        before_step: called before each step's first forward with whether the exponents are to stay.
        teacher: the float net to distill from, in eval mode on the device.
    """

    net: nn.Module
    optimizer: torch.optim.Optimizer
    training: TrainingSection
    ranks: Ranks
    before_step: Callable[[bool], None] | None = None
    teacher: nn.Module | None = None

    def __post_init__(self) -> None:
        self.format = memory_format_of(self.net, self.training)
        self.net.to(memory_format=self.format)
        if self.teacher is not None:
            self.teacher.to(memory_format=self.format)
        self.fabric = self.ranks.in_precision(self.training.precision).fabric
        self.module, self.stepper = self.fabric.setup(self.net, self.optimizer)
        self.exponents = WeightExponents(self.net)
        self.overflow = OverflowWatch(self.net) if self.training.precision == "fp16" else None
        decay = self.training.ema_decay
        self.average = AveragedWeights(self.net, decay) if decay > 0 else None
        # int64 `num_batches_tracked` is the same everywhere
        self.statistics = [v for n, v in self.net.named_buffers() if n.rpartition(".")[2] in _RUNNING]

    def on_device(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The batch where and as the net wants it; (N, C, H, W) float32 and (N,) int64."""
        device = self.ranks.device
        images = images.to(device, non_blocking=True)
        if images.dim() == 4:
            images = images.contiguous(memory_format=self.format)
        return images, labels.to(device, non_blocking=True)

    def train(self, epoch: int) -> None:
        """Put the net into training mode for an epoch (from 0)."""
        self.net.train()
        if epoch >= self.training.epochs - self.training.freeze_batch_norm:
            freeze_statistics(self.net)

    def begin(self, epoch: int) -> None:
        """Start a step of an epoch (from 0): no gradients, new exponents."""
        if self.before_step is not None:
            self.before_step(epoch >= self.training.epochs - self.training.freeze_exponents)
            if self.ranks.count > 1:
                self.exponents.agree(self.ranks.maximum)
            self.exponents.count()
        self.optimizer.zero_grad()

    def add(self, images: Tensor, labels: Tensor, total: int, *, last: bool) -> tuple[Tensor, Tensor]:
        """Add a micro batch's gradient.

        Args:
            images, labels: this process's part of it, from `on_device`.
            total: images of the whole step, on all processes.
            last: of the step: gradients are exchanged between processes only then.

        Returns:
            The mean loss and the logits, detached.
        """
        with self.fabric.no_backward_sync(self.module, enabled=not last):
            logits = self.module(images)
            loss = training_loss(logits, labels, images, self.training, self.teacher)
            # DistributedDataParallel takes the mean over processes
            share = len(labels) * self.ranks.count / total
            self.fabric.backward(loss if share == 1.0 else loss * share)
        return loss.detach(), logits.detach()

    def finish(self) -> None:
        """Let the optimizer move the weights.

        In fp16 losses are scaled, so that small gradients keep their bits. A step whose gradients overflow is left
        out, momentum included, and the scale halved; after 2000 steps without it doubles (`torch.amp.GradScaler`).
        """
        self.stepper.step()
        self.ranks.mean_(self.statistics)
        if self.average is not None:
            self.average.add()

    @contextlib.contextmanager
    def evaluated(self, epoch: int) -> Iterator[None]:
        """Put the net into eval mode: with the averaged weights, where the recipe averages, and exponents of theirs.

        Args:
            epoch: that was trained, from 0.
        """
        if self.average is None:
            self.net.eval()
            yield
            return
        self.average.put_in()
        try:
            self._evaluate_average(epoch)
            yield
        finally:
            self.average.take_out()

    def settle(self) -> None:
        """Leave the net in eval mode with the weights that the training gives."""
        if self.average is None:
            self.net.eval()
            return
        self.average.put_in()
        self._evaluate_average(self.training.epochs - 1)

    def _evaluate_average(self, epoch: int) -> None:
        if self.before_step is not None:
            self.before_step(epoch >= self.training.epochs - self.training.freeze_exponents)
        self.net.eval()

    def overflowed(self) -> str | None:
        """The layer whose output passed the range of fp16 since the last call, if any; waits for the device."""
        return None if self.overflow is None else self.overflow.first(self.ranks.maximum)

    def close(self) -> None:
        """Give the net back in the ordinary layout, without hooks."""
        if self.overflow is not None:
            self.overflow.close()
        self.net.to(memory_format=torch.contiguous_format)

    def scaler_state(self) -> dict[str, object]:
        """How fp16 losses are scaled, for a checkpoint; empty in other precisions."""
        scaler = getattr(self.fabric.strategy.precision, "scaler", None)
        return {} if scaler is None else dict(scaler.state_dict())

    def restore_scaler(self, state: dict[str, object]) -> None:
        """Take over what `scaler_state` gave."""
        scaler = getattr(self.fabric.strategy.precision, "scaler", None)
        if scaler is not None and state:
            scaler.load_state_dict(state)


def memory_format_of(net: nn.Module, training: TrainingSection) -> torch.memory_format:
    """The layout that a net trains in: channels last is faster, but a user's own module may not expect it."""
    choice = training.memory_format
    if choice == "auto":
        choice = "channels_last" if isinstance(net, QuantizedNet) else "contiguous"
    return torch.channels_last if choice == "channels_last" else torch.contiguous_format


def steps_together(training: TrainingSection, epoch: int, step: int, steps_per_epoch: int) -> range:
    """The (micro) batches of an epoch that the next step of the optimizer takes.

    Args:
        training: its `batch_doublings` count.
        epoch: from 0.
        step: of the epoch, the first of them.
        steps_per_epoch: batches in it; the last step of the optimizer may have fewer than the others.
    """
    together = micro_batches(training, epoch)
    return range(step, min((step // together + 1) * together, steps_per_epoch))
