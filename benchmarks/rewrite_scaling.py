"""Seconds of rewriting, calibrating and writing a net ten times as deep as another: they grow with its nodes.

python benchmarks/rewrite_scaling.py
python benchmarks/rewrite_scaling.py --blocks 10 --times 4
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # else benchmarks/calibration.py hides the package

from benchmarks.common import Row, goal, make_parser, publish, recipe_of, this_machine
from faq_deploy.activation_exponents import calibrate
from faq_deploy.certificate import certificate
from faq_deploy.emit import emit_graph
from faq_deploy.rewrite import rewrite

__all__ = ["Chain", "main", "stages"]

_MORE_THAN_LINEAR: Final = 1.2  # 12 times as long for 10 times the nodes
_WIDTH: Final = 8


class Chain(nn.Module):
    """Residual blocks one after another, so small that tensors cost nothing and nodes everything.

    Args:
        blocks: how many; each has a convolution, a batch norm, a ReLU and an add.
    """

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, _WIDTH, 3, padding=1)
        self.convs = nn.ModuleList(nn.Conv2d(_WIDTH, _WIDTH, 3, padding=1, bias=False) for _ in range(blocks))
        norms = [nn.BatchNorm2d(_WIDTH) for _ in range(blocks)]
        for norm in norms:
            nn.init.constant_(norm.weight, 1 / blocks)  # else a thousand adds leave fp32's range
        self.norms = nn.ModuleList(norms)
        self.fc = nn.Linear(_WIDTH, 4)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) to (N, 4)."""
        x = F.relu(self.stem(x))
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = F.relu(norm(conv(x)) + x)
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits


def stages(blocks: int) -> tuple[dict[str, float], int]:
    """Seconds of each stage for a chain, and the number of its nodes."""
    torch.manual_seed(0)
    model, images, recipe = Chain(blocks).eval(), torch.randn(4, 3, 8, 8), recipe_of()
    marks = [time.process_time()]
    net = rewrite(model, images, recipe)
    marks.append(time.process_time())
    calibrate(net, [images], recipe.calibration, recipe.target)
    marks.append(time.process_time())
    emit_graph(net, recipe.target).SerializeToString()
    marks.append(time.process_time())
    certificate(net)
    marks.append(time.process_time())
    net.refresh()
    marks.append(time.process_time())
    names = ("rewrite", "calibrate", "write the graph", "certificate", "refresh")
    seconds = {name: end - start for name, start, end in zip(names, marks, marks[1:], strict=False)}
    return seconds | {"all": marks[-1] - marks[0]}, len(net.graph.nodes)


def main() -> None:
    """Measure and print."""
    parser = make_parser("How rewriting grows with a net's nodes.", rounds=3)
    parser.add_argument("--blocks", type=int, default=20, help="of the small net")
    parser.add_argument("--times", type=int, default=10, help="as many blocks has the large one")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    machine = this_machine()
    stages(arguments.blocks)  # warms up
    rounds = [
        [stages(blocks) for blocks in (arguments.blocks, arguments.blocks * arguments.times)]
        for _ in range(arguments.rounds)
    ]
    (_, few), (_, many) = rounds[0]
    rows: list[Row] = []
    for stage in rounds[0][0][0]:
        small, large = (statistics.median(r[i][0][stage] for r in rounds) for i in (0, 1))
        limit = _MORE_THAN_LINEAR * many / few if stage == "all" else None
        row: Row = {"stage": stage, f"{few} nodes, s": small, f"{many} nodes, s": large, "times": large / small}
        rows.append({**row, **goal(large / small, at_most=limit)})
    publish(f"Rewriting a net of {many / few:.1f} times the nodes, CPU time", machine, rows, arguments)


if __name__ == "__main__":
    main()
