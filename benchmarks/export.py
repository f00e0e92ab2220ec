"""Export with all its checks: seconds, stage by stage.

python benchmarks/export.py
python benchmarks/export.py --model resnet50 --target onnxruntime
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # else benchmarks/calibration.py hides the package

from benchmarks.common import Row, goal, make_parser, publish, quantized, random_net, recipe_of, this_machine
from engines.runner import FloatArray
from faq_deploy.onnx_export import ExportResult, export_onnx
from faq_deploy.stored_net import StoredNet
from faq_deploy.versions import engine_versions

__all__ = ["main"]

_SECONDS: Final = 30.0  # of ResNet-18


def main() -> None:
    """Measure and print."""
    parser = make_parser("Export with its checks.", rounds=1)
    parser.add_argument("--model", default="resnet18", help="of torchvision")
    parser.add_argument("--size", type=int, default=224, help="of the images, in pixels")
    parser.add_argument("--check-images", type=int, default=16, help="images whose codes are compared")
    parser.add_argument(
        "--target", choices=["tensorrt", "onnxruntime", "paper"], default="tensorrt", help="of the recipe"
    )
    parser.add_argument("--bits", type=int, choices=[8, 4], default=8, help="of weights and activations")
    arguments = parser.parse_args()
    machine = this_machine()
    shape = (arguments.check_images, 3, arguments.size, arguments.size)
    images = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    recipe = recipe_of(arguments.bits, arguments.target)
    stored = quantized(random_net(arguments.model, images[:8]), images[:8], recipe)
    rounds: list[dict[str, float]] = []
    for _ in range(arguments.rounds):
        seconds, result = _export(stored, images.numpy())
        rounds.append(seconds)
    median = {stage: statistics.median(r[stage] for r in rounds) for stage in rounds[0]}
    rows: list[Row] = [
        {
            "stage": stage,
            "s": seconds,
            "share, %": 100 * seconds / median["total"],
            **goal(seconds, at_most=_SECONDS if (arguments.model, stage) == ("resnet18", "total") else None),
        }
        for stage, seconds in median.items()
    ]
    what = f"target {arguments.target}, {arguments.bits} bits, {arguments.check_images} check images"
    proof = ", ".join(f"{a.runtime} {'equal' if a.equal else 'NOT EQUAL'}" for a in result.agreements)
    title = f"Export, {arguments.model}, {what}, {arguments.size} pixels; {result.bytes / 1e6:.1f} MB; {proof}"
    publish(title, machine, rows, arguments)


def _export(stored: StoredNet, images: FloatArray) -> tuple[dict[str, float], ExportResult]:
    """Seconds of each stage and of all of them, in order."""
    marks: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        result = export_onnx(
            stored,
            Path(folder) / "model.onnx",
            images,
            versions=engine_versions(),
            checkpoint_sha256="0" * 64,
            on_stage=lambda text: marks.append(time.perf_counter()),
        )
        marks.append(time.perf_counter())
    first, comparison, end = marks
    return {
        "graph, certificate, ONNX checker, linter": comparison - first,
        "PyTorch, integer reference and onnxruntime compared": end - comparison,
        "total": end - first,
    }, result


if __name__ == "__main__":
    main()
