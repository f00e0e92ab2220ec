"""The Python API: seconds of `prepare`, and a step of a plain loop against the command line's.

python benchmarks/api.py --one-core
python benchmarks/api.py --one-core --model resnet18 --batch 16
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # else benchmarks/calibration.py hides the package

import faq_deploy
from benchmarks.common import (
    Row,
    add_one_core,
    chosen_clock,
    goal,
    interleaved,
    make_parser,
    median_ratio,
    noise,
    publish,
    random_net,
    this_machine,
)
from faq_deploy.ranks import one_process
from faq_deploy.update_step import UpdateStep

__all__ = ["main"]

_PREPARE: Final = 2.0  # seconds
_STEP: Final = 1.05  # of the command line's


def main() -> None:
    """Measure and print."""
    parser = make_parser("The Python API.", rounds=5)
    parser.add_argument("--model", default="resnet50", help="of torchvision")
    parser.add_argument("--size", type=int, default=224, help="of the images, in pixels")
    parser.add_argument("--batch", type=int, default=4, help="images in a step")
    add_one_core(parser)
    arguments = parser.parse_args()
    machine, clock = this_machine(), chosen_clock(arguments)
    images = torch.randn(arguments.batch, 3, arguments.size, arguments.size, generator=torch.Generator().manual_seed(1))
    labels = torch.randint(1000, (arguments.batch,), generator=torch.Generator().manual_seed(2))
    net = random_net(arguments.model, images)
    torch.export.export(torch.nn.Linear(1, 1), (torch.zeros(1, 1),))  # torch's own first call loads its compiler
    rows: list[Row] = []
    taken, walls = [], []
    for _ in range(arguments.rounds):
        start, wall = clock(), time.perf_counter()
        model = faq_deploy.prepare(net, images[:2])
        taken.append(clock() - start)
        walls.append(time.perf_counter() - wall)
    seconds = statistics.median(taken)
    rows.append(
        {"what": "prepare", "s": seconds, **noise(taken), "by the other": None, **goal(seconds, at_most=_PREPARE)}
    )
    rows.append({"what": "prepare, by the clock on the wall", "s": statistics.median(walls), **noise(walls)})
    faq_deploy.calibrate(model, [images])
    steps: dict[str, Callable[[], object]] = {
        "step of the command line": _Command(model, images, labels),
        "step of a plain loop": _Loop(faq_deploy.prepare(net, images[:2]), images, labels),
    }
    found = interleaved(steps, arguments.rounds, clock)
    for name in steps:
        ratio = median_ratio(found[name], found["step of the command line"])
        rows.append(
            {
                "what": name,
                "s": statistics.median(found[name]),
                **noise(found[name]),
                "by the other": ratio,
                **goal(ratio, at_most=_STEP if "loop" in name else None),
            }
        )
    title = (
        f"Python API, {arguments.model}, batch {arguments.batch}, {arguments.size} pixels, {arguments.rounds} rounds"
    )
    publish(title, machine, rows, arguments)


class _Command:
    """A step as `quantize` takes it."""

    def __init__(self, model: faq_deploy.PreparedModel, images: Tensor, labels: Tensor) -> None:
        net = model.net.train()
        optimizer = torch.optim.SGD(net.parameters(), lr=1e-4, momentum=0.9, weight_decay=1e-4)
        ranks = one_process(torch.device("cpu"))
        self.update = UpdateStep(net, optimizer, model.recipe.training, ranks, net.before_step)
        self.images, self.labels = self.update.on_device(images, labels)

    def __call__(self) -> None:
        self.update.begin(0)
        self.update.add(self.images, self.labels, len(self.labels), last=True)
        self.update.finish()


class _Loop:
    """A step as the manual shows it, in the layout of the command line's."""

    def __init__(self, model: faq_deploy.PreparedModel, images: Tensor, labels: Tensor) -> None:
        faq_deploy.calibrate(model, [images])
        self.model = model.train().to(memory_format=torch.channels_last)
        self.optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9, weight_decay=1e-4)
        self.images, self.labels = images.contiguous(memory_format=torch.channels_last), labels

    def __call__(self) -> None:
        self.optimizer.zero_grad()
        F.cross_entropy(self.model(self.images), self.labels).backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()


if __name__ == "__main__":
    main()
