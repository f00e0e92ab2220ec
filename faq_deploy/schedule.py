"""The learning rate and the batch of an epoch, in closed form: resuming or adding epochs cannot move the curve."""

from __future__ import annotations

from collections import Counter

from faq_deploy.recipe import TrainingSection

__all__ = ["learning_rate", "micro_batches", "optimizer_steps", "scaled_doublings", "scaled_milestones"]


def learning_rate(training: TrainingSection, epoch: int) -> float:
    """The learning rate of every step of an epoch.

    Args:
        training: its `lr`, `schedule`, `gamma` and `milestones` count.
        epoch: from 0.

    Returns:
        `lr` (constant), `lr * gamma**epoch` (exponential), or `lr * gamma**m` (step), where m milestones
        are at or before the epoch; one that is given twice counts twice.

    Source: paper 3.3 (0.0015 x 0.936^epoch), 4.3 (two drops at epoch 95) and 4.5 (steps).
    """
    match training.schedule:
        case "constant":
            return training.lr
        case "exponential":
            return training.lr * training.gamma**epoch
        case "step":
            return training.lr * training.gamma ** sum(milestone <= epoch for milestone in training.milestones)


def micro_batches(training: TrainingSection, epoch: int) -> int:
    """How many batches of `batch_size` images an optimizer step of an epoch takes its mean gradient from.

    Args:
        training: its `batch_doublings` count.
        epoch: from 0.

    Returns:
        2^m, where m doublings are at or before the epoch.

    Source: paper 4.4 and its footnote 6 (virtual batches); A29.
    """
    return int(2 ** sum(doubling <= epoch for doubling in training.batch_doublings))


def optimizer_steps(training: TrainingSection, micro_steps: int, epoch: int) -> int:
    """Updates of the weights in an epoch; the last one may take fewer batches than the others.

    Args:
        training: its `batch_doublings` count.
        micro_steps: batches of `batch_size` images in the epoch.
        epoch: from 0.
    """
    return -(-micro_steps // micro_batches(training, epoch))


def scaled_milestones(training: TrainingSection, epochs: int) -> tuple[int, ...]:
    """The milestones of a step schedule, moved in proportion to another number of epochs.

    Args:
        training: its `milestones` and `epochs` count.
        epochs: wanted.

    Returns:
        Ascending, from 1 to `epochs` - 1; those that would coincide or fall outside are dropped. One that was given
        twice is so again.
    """
    times: dict[int, int] = {}
    for mark, count in Counter(training.milestones).items():
        moved = round(mark * epochs / training.epochs)
        if 0 < moved < epochs:
            times[moved] = max(count, times.get(moved, 0))
    return tuple(mark for mark in sorted(times) for _ in range(times[mark]))


def scaled_doublings(training: TrainingSection, epochs: int) -> tuple[int, ...]:
    """The epochs at which the batch doubles, moved in proportion to another number of epochs.

    Args:
        training: its `batch_doublings` and `epochs` count.
        epochs: wanted.

    Returns:
        Ascending, from 1 to `epochs` - 1; those that would coincide or fall outside are dropped.
    """
    moved = {round(mark * epochs / training.epochs) for mark in training.batch_doublings}
    return tuple(sorted(mark for mark in moved if 0 < mark < epochs))
