"""Distillation: the float net teaches its quantized self. Run it with `python -m examples.distillation`."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

import faq_deploy
from examples.digits import float_net, loaders

TEMPERATURE = 4.0
SHARE = 0.5  # of the loss that looks at the teacher


def loss_of(logits: Tensor, wanted: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy with the labels, and with the teacher's softened answers (Hinton et al., arXiv 1503.02531).

    Args:
        logits, wanted: of the student and of the teacher, float32 (N, classes).
        labels: int64, (N,).
    """
    student, teacher = F.log_softmax(logits / TEMPERATURE, 1), F.log_softmax(wanted / TEMPERATURE, 1)
    softened = F.kl_div(student, teacher, reduction="batchmean", log_target=True) * TEMPERATURE**2
    return (1 - SHARE) * F.cross_entropy(logits, labels) + SHARE * softened


def main(path: Path = Path("distilled.onnx")) -> faq_deploy.CheckResult:
    """Train for an epoch, export and check."""
    train, val = loaders()
    teacher = float_net()
    student = faq_deploy.prepare(teacher, next(iter(val))[0], recipe="faq-4bit")
    faq_deploy.calibrate(student, train)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.002, momentum=0.9)
    student.train()
    for images, labels in train:
        with torch.no_grad():
            wanted = teacher(images)
        optimizer.zero_grad()
        loss_of(student(images), wanted, labels).backward()
        optimizer.step()
    student.eval()
    faq_deploy.export(student, path)
    return faq_deploy.check(student, path, val)


if __name__ == "__main__":
    print(main())
