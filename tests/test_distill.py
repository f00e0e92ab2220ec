"""The loss with a teacher, against NumPy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from torch import Tensor, nn

from faq_deploy.distill import training_loss
from faq_deploy.recipe import TrainingSection
from tests.training_jobs import Batches, Job

T = 3.0


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return np.asarray(powers / powers.sum(1, keepdims=True))


def section(share: float) -> TrainingSection:
    return TrainingSection(epochs=1, lr=0.1, distill=share, distill_temperature=T)


@pytest.mark.parametrize("share", [0.25, 1.0])
def test_loss_mixes_cross_entropy_and_divergence_from_the_teacher(share: float) -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(4, 5, generator=generator)
    logits = torch.randn(4, 3, generator=generator)
    labels = torch.tensor([0, 2, 1, 1])
    teacher = nn.Linear(5, 3)
    found = training_loss(logits, labels, x, section(share), teacher)
    p = softmax(teacher(x).detach().double().numpy() / T)
    q = softmax(logits.double().numpy() / T)
    divergence = (p * (np.log(p) - np.log(q))).sum(1).mean()
    entropy = -np.log(softmax(logits.double().numpy())[range(4), labels.numpy()]).mean()
    assert float(found) == pytest.approx((1 - share) * entropy + share * T**2 * divergence, rel=1e-5)
    assert not found.requires_grad  # the teacher learns nothing


def test_without_a_teacher_it_is_cross_entropy() -> None:
    logits, labels = torch.tensor([[1.0, 2.0], [0.0, -1.0]]), torch.tensor([1, 1])
    found = training_loss(logits, labels, torch.zeros(2, 1), section(0.0), None)
    assert torch.equal(found, F.cross_entropy(logits, labels))


def test_a_net_learns_its_teachers_answers_from_images_whose_labels_say_nothing(tmp_path: Path) -> None:
    def net(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(16, 3))

    teacher = net(7).eval().requires_grad_(False)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    changes: dict[str, object] = {"training.distill": 1.0, "training.distill_temperature": 1.0, "training.lr": 0.03}
    job = Job(tmp_path, epochs=8, net=net(8), teacher=teacher, changes=changes | {"training.schedule": "constant"})
    job()
    images = torch.cat([x for x, _ in Batches().batches(99, 0)])

    def agreement(student: nn.Module) -> float:
        return float((student(images).argmax(1) == teacher(images).argmax(1)).double().mean())

    assert agreement(net(8)) < 0.6 and agreement(job.net) > 0.9
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


def test_teacher_sees_the_images_of_each_micro_batch(tmp_path: Path) -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.seen: list[int] = []

        def forward(self, x: Tensor) -> Tensor:
            assert not torch.is_grad_enabled()
            self.seen.append(len(x))
            return torch.zeros(len(x), 3)

    teacher = Counting()
    changes: dict[str, object] = {"training.distill": 0.5, "training.batch_doublings": [1]}
    Job(tmp_path, epochs=2, train=Batches(steps_per_epoch=3), teacher=teacher, changes=changes)()
    assert teacher.seen == [8] * 6


def test_float_training_has_no_teacher(tmp_path: Path) -> None:
    import cli

    command = ["train", "builtin:digits-resnet", "--data", "digits", "--set", "training.distill=0.5"]
    result = CliRunner().invoke(cli.main, [*command, "-o", str(tmp_path / "run")])
    assert result.exit_code == 2 and "training.distill needs a float net to learn from" in result.stderr
    assert not (tmp_path / "run").exists()
