"""A step of fine-tuning against a step of float training of the same net, on this CPU.

python benchmarks/training_step.py
python benchmarks/training_step.py --model resnet50 --batch 8 --rounds 3
python benchmarks/training_step.py --model builtin:resnet14-cifar --size 32 --batch 128 --channels-last \\
    --rounds 30 --wanted 1.15
"""

from __future__ import annotations

import statistics
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # else benchmarks/calibration.py hides the package

from benchmarks.common import (
    Clock,
    Row,
    add_one_core,
    chosen_clock,
    goal,
    interleaved,
    make_parser,
    median_ratio,
    noise,
    publish,
    quantized,
    random_net,
    recipe_of,
    this_machine,
)
from faq_deploy.heap import keep_freed_memory
from faq_deploy.net import QuantizedNet

__all__ = ["main"]

_FOLD, _PAPER = 1.0, 1.05  # of a float step
_REFRESH_SHARE: Final = 5.0  # percent of a step


@dataclass
class _Step:
    """One training step of one net, and what `refresh` took in each call."""

    net: nn.Module
    images: Tensor
    labels: Tensor
    refreshes: bool
    clock: Clock
    refresh_seconds: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=1e-4, momentum=0.9, weight_decay=1e-4)
        self.net.train()

    def __call__(self) -> None:
        start = self.clock()
        if self.refreshes and isinstance(self.net, QuantizedNet):
            self.net.refresh()
        self.refresh_seconds.append(self.clock() - start)
        self.optimizer.zero_grad()
        F.cross_entropy(self.net(self.images), self.labels).backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()


def main() -> None:
    """Measure and print."""
    parser = make_parser("Training step: quantized against float.", rounds=5)
    parser.add_argument("--model", default="resnet18", help="of torchvision; or timm:NAME, builtin:NAME")
    parser.add_argument("--channels-last", action="store_true", help="the layout of images and weights")
    parser.add_argument("--size", type=int, default=224, help="of the images, in pixels")
    parser.add_argument("--batch", type=int, default=32, help="images in a step")
    parser.add_argument(
        "--wanted", type=float, help=f"at most so many float steps; {_FOLD} (paper: {_PAPER}) if absent"
    )
    add_one_core(parser)
    arguments = parser.parse_args()
    machine, clock = this_machine(), chosen_clock(arguments)
    images = torch.randn(arguments.batch, 3, arguments.size, arguments.size, generator=torch.Generator().manual_seed(1))
    layout = torch.channels_last if arguments.channels_last else torch.contiguous_format
    images = images.contiguous(memory_format=layout)
    labels = torch.randint(10, (arguments.batch,), generator=torch.Generator().manual_seed(2))
    keep_freed_memory()  # as the command line does
    model = random_net(arguments.model, images[:8])
    nets: dict[str, nn.Module] = {
        "fold, 8 bits": quantized(model, images[:8], recipe_of(8)).net,
        "fold, 4 bits": quantized(model, images[:8], recipe_of(4)).net,
        "batch norm as in the paper, 8 bits": quantized(model, images[:8], recipe_of(8, batch_norm="paper")).net,
    }
    bare = quantized(model, images[:8], recipe_of(8)).net
    bare.set_mode("float")
    for net in (model, bare, *nets.values()):
        net.to(memory_format=layout)
    steps = {"float": _Step(model, images, labels, refreshes=False, clock=clock)}
    steps |= {name: _Step(net, images, labels, refreshes=True, clock=clock) for name, net in nets.items()}
    steps |= {"fold, without its quantizers": _Step(bare, images, labels, refreshes=False, clock=clock)}
    seconds = interleaved(steps, arguments.rounds, clock)
    rows: list[Row] = []
    for name, step in steps.items():
        ratio = median_ratio(seconds[name], seconds["float"])
        wanted = arguments.wanted or (_FOLD if name.startswith("fold") else _PAPER)
        refresh = step.refresh_seconds[-arguments.rounds :]
        share = 100 * median_ratio(refresh, seconds[name])
        rows.append(
            {
                "net": name,
                "step, s": statistics.median(seconds[name]),
                **noise(seconds[name]),
                "by float": ratio,
                **goal(ratio, at_most=wanted if name in nets else None),
                "refresh, ms": 1000 * statistics.median(refresh) if step.refreshes else None,
                "of the step, %": share if step.refreshes else None,
                f"<= {_REFRESH_SHARE:g} %": ("yes" if share <= _REFRESH_SHARE else "NO") if step.refreshes else None,
            }
        )
    title = (
        f"Training step, {arguments.model}, batch {arguments.batch}, {arguments.size} pixels, {arguments.rounds} rounds"
    )
    publish(title, machine, rows, arguments)


if __name__ == "__main__":
    main()
