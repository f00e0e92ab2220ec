"""The loss of training: cross entropy, and on request how far the logits are from the float net's."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from faq_deploy.recipe import TrainingSection

__all__ = ["training_loss"]


def training_loss(
    logits: Tensor, labels: Tensor, images: Tensor, training: TrainingSection, teacher: nn.Module | None
) -> Tensor:
    """The mean loss of a batch.

    Args:
        logits: float32, (N, classes).
        labels: int64, (N,).
        images: what the logits are of; shown to the teacher.
        training: its `distill` (share s) and `distill_temperature` (T) count.
        teacher: the float net, in eval mode; None where s is 0.

    Returns:
        (1 - s)·cross entropy + s·T²·KL(teacher ‖ net), with both nets' logits divided by T in the second term. The
        factor T² keeps its gradient as large as the first one's.

    Source: Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", 2015, section 2.
    """
    loss = F.cross_entropy(logits, labels)
    if teacher is None:
        return loss
    with torch.no_grad():
        wanted = F.log_softmax(teacher(images).float() / training.distill_temperature, 1)
    found = F.log_softmax(logits / training.distill_temperature, 1)
    distance = F.kl_div(found, wanted, reduction="batchmean", log_target=True)
    return (1 - training.distill) * loss + training.distill * training.distill_temperature**2 * distance
