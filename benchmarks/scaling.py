"""How cost grows: of rewriting, export, lint and the certificate with a net's depth, of `eval` with its images.

python benchmarks/scaling.py --json benchmarks/results/scaling-depth.json
python benchmarks/scaling.py --images 2000 8000 32000 --json benchmarks/results/scaling-images.json
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Final

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # else benchmarks/calibration.py hides the package

from benchmarks.common import Cell, Row, make_parser, publish, recipe_of, this_machine
from benchmarks.evaluation import streamed
from benchmarks.rewrite_scaling import Chain
from engines.lint import lint
from engines.preprocess import Preprocessing
from engines.qdq_graph import load_model
from faq_deploy.activation_exponents import calibrate
from faq_deploy.certificate import certificate
from faq_deploy.onnx_export import export_onnx
from faq_deploy.rewrite import rewrite
from faq_deploy.stored_net import NetFacts, StoredNet
from faq_deploy.versions import engine_versions

__all__ = ["STAGES", "main", "stages"]

STAGES: Final = ("rewrite", "calibrate", "export", "lint", "certificate")
_RESNET_18, _RESNET_1001 = 17, 1000  # blocks of one convolution


def stages(blocks: int) -> tuple[dict[str, float], int]:
    """CPU seconds of each of STAGES for a chain of residual blocks, and the number of its nodes."""
    torch.manual_seed(0)
    model, images, recipe = Chain(blocks).eval(), torch.randn(4, 3, 8, 8), recipe_of()
    marks = [time.process_time()]
    net = rewrite(model, images, recipe)
    marks.append(time.process_time())
    ranges = calibrate(net, [images], recipe.calibration, recipe.target)
    marks.append(time.process_time())
    facts = NetFacts(
        model="chain",
        weights_sha256=None,
        classes=(),
        preprocessing=Preprocessing(),
        ranges=[found.as_dict() for found in ranges],
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        stored = StoredNet(net=net.eval(), recipe=recipe, facts=facts)
        export_onnx(stored, path, images[:2].numpy(), versions=engine_versions(), checkpoint_sha256="0" * 64)
        marks.append(time.process_time())
        lint(load_model(path, unpack=False), recipe.target)
    marks.append(time.process_time())
    certificate(net)
    marks.append(time.process_time())
    seconds = {name: end - start for name, start, end in zip(STAGES, marks, marks[1:], strict=False)}
    return seconds, len(net.graph.nodes)


def main() -> None:
    """Measure and print."""
    parser = make_parser("How cost grows with depth, or with images.", rounds=1)
    parser.add_argument("--blocks", type=int, nargs="+", default=[_RESNET_18, 100, 300, 600, _RESNET_1001])
    parser.add_argument("--images", type=int, nargs="+", help="measure `eval` on so many instead")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    machine = this_machine()
    rows: list[Row] = []
    if arguments.images:
        with tempfile.TemporaryDirectory() as folder:
            for count, found in streamed(Path(folder), arguments.images):
                rows.append({"images": count, "CPU, s": found["cpu_seconds"], "peak, MiB": found["peak_mib"]})
        publish("`eval` of a small net on images of 64 pixels", machine, rows, arguments)
        return
    stages(2)  # imports and first calls
    for blocks in sorted(arguments.blocks):
        seconds, nodes = stages(blocks)
        cells: dict[str, Cell] = {"convolutions": blocks + 1, "nodes": nodes}
        rows.append(cells | {f"{name}, s": value for name, value in seconds.items()})
    publish("A chain of residual blocks, CPU seconds", machine, rows, arguments)


if __name__ == "__main__":
    main()
