"""The learning rate of an epoch, in closed form: resuming or adding epochs cannot move the curve."""

from __future__ import annotations

from faq_deploy.recipe import TrainingSection

__all__ = ["learning_rate", "scaled_milestones"]


def learning_rate(training: TrainingSection, epoch: int) -> float:
    """The learning rate of every step of an epoch.

    Args:
        training: its `lr`, `schedule`, `gamma` and `milestones` count.
        epoch: from 0.

    Returns:
        `lr` (constant), `lr * gamma**epoch` (exponential), or `lr * gamma**m` (step), where m milestones
        are at or before the epoch.

    Source: paper 3.3 (0.0015 x 0.936^epoch) and 4.5 (steps).
    """
    match training.schedule:
        case "constant":
            return training.lr
        case "exponential":
            return training.lr * training.gamma**epoch
        case "step":
            return training.lr * training.gamma ** sum(milestone <= epoch for milestone in training.milestones)


def scaled_milestones(training: TrainingSection, epochs: int) -> tuple[int, ...]:
    """The milestones of a step schedule, moved in proportion to another number of epochs.

    Args:
        training: its `milestones` and `epochs` count.
        epochs: wanted.

    Returns:
        Ascending, from 1 to `epochs` - 1; those that would coincide or fall outside are dropped.
    """
    moved = {round(mark * epochs / training.epochs) for mark in training.milestones}
    return tuple(sorted(mark for mark in moved if 0 < mark < epochs))
