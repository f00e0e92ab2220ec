"""Calibration against plain float forward passes over the same batches.

python benchmarks/calibration.py
python benchmarks/calibration.py --method percentile --method max --method mse --method entropy
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # else this file hides the package `calibration`

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
    recipe_of,
    this_machine,
)
from calibration import ESTIMATORS
from faq_deploy.activation_exponents import calibrate
from faq_deploy.net import QuantizedNet
from faq_deploy.rewrite import rewrite

__all__ = ["main"]

_RATIO: Final = 2.0


def main() -> None:
    """Measure and print."""
    parser = make_parser("Calibration: against float forward passes.", rounds=3)
    parser.add_argument("--model", default="resnet18", help="of torchvision")
    parser.add_argument("--size", type=int, default=224, help="of the images, in pixels")
    parser.add_argument("--batch", type=int, default=32, help="images in a batch")
    parser.add_argument("--batches", type=int, default=5, help="of images")
    parser.add_argument("--method", action="append", choices=list(ESTIMATORS), help="repeatable; percentile if absent")
    add_one_core(parser)
    arguments = parser.parse_args()
    machine, clock = this_machine(), chosen_clock(arguments)
    methods: list[str] = arguments.method or ["percentile"]
    generator = torch.Generator().manual_seed(1)
    size = arguments.size
    batches = [torch.randn(arguments.batch, 3, size, size, generator=generator) for _ in range(arguments.batches)]
    recipe = recipe_of()
    net = rewrite(random_net(arguments.model, batches[0][:8]), batches[0][:2], recipe)
    cases: dict[str, Callable[[], object]] = {"float forward": partial(_forward, net, batches)}
    for method in methods:
        section = recipe.calibration.model_copy(update={"method": method})
        cases[f"calibrate, {method}"] = partial(calibrate, net, batches, section, recipe.target)
    seconds = interleaved(cases, arguments.rounds, clock)
    rows: list[Row] = []
    for name in cases:
        ratio = median_ratio(seconds[name], seconds["float forward"])
        rows.append(
            {
                "case": name,
                "s": statistics.median(seconds[name]),
                **noise(seconds[name]),
                "by float forward": ratio,
                **goal(ratio, at_most=_RATIO if name != "float forward" else None),
            }
        )
    what = f"{arguments.batches} batches of {arguments.batch}, {size} pixels, {arguments.rounds} rounds"
    publish(f"Calibration, {arguments.model}, {what}", machine, rows, arguments)


def _forward(net: QuantizedNet, batches: list[Tensor]) -> None:
    net.eval()
    net.set_mode("float")
    with torch.inference_mode():
        for batch in batches:
            net(batch)


if __name__ == "__main__":
    main()
