"""Images a second in onnxruntime: our INT8 files against the fp32 file and onnxruntime's own INT8 of the same net.

python benchmarks/inference.py
python benchmarks/inference.py --model timm:tf_efficientnet_lite0 --one-core --batch 1
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # else benchmarks/calibration.py hides the package

from benchmarks.common import (
    Cell,
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
from benchmarks.float_onnx import write_float_onnx
from engines.ort import OrtRunner
from engines.runner import FloatArray
from faq_deploy.onnx_export import export_onnx
from faq_deploy.recipe import Recipe
from faq_deploy.versions import engine_versions

__all__ = ["main", "quantize_static_file"]

_RATIO: Final = 2.0
_FLOAT: Final = "fp32"
_STATIC: Final = "onnxruntime's quantize_static"
_CALIBRATION_IMAGES: Final = 8
_OURS: Final[dict[str, Recipe]] = {
    "ours, target onnxruntime": recipe_of(8, "onnxruntime"),
    "ours, target onnxruntime, cpu vnni": recipe_of(8, "onnxruntime", cpu="vnni"),
    "ours, target onnxruntime, 4 bits": recipe_of(4, "onnxruntime"),
    "ours, target tensorrt": recipe_of(8, "tensorrt"),
}
_WANTED: Final = frozenset({"ours, target onnxruntime", "ours, target onnxruntime, cpu vnni"})


def main() -> None:
    """Measure and print."""
    parser = make_parser("Images a second in onnxruntime, on the CPU.", rounds=7)
    parser.add_argument("--model", default="resnet18", help="of torchvision, or timm:NAME")
    parser.add_argument("--size", type=int, default=224, help="of the images, in pixels")
    parser.add_argument("--batch", type=int, action="append", help="repeatable; 1 and 16 if absent")
    parser.add_argument("--images", type=int, default=32, help="in each measurement")
    parser.add_argument("--threads", type=int, default=2, help="of onnxruntime; one with --one-core")
    add_one_core(parser)
    arguments = parser.parse_args()
    machine, clock = this_machine(), chosen_clock(arguments)
    threads = 1 if arguments.one_core else arguments.threads
    batches: list[int] = arguments.batch or [1, 16]
    count = max(arguments.images, *batches, _CALIBRATION_IMAGES)
    shape = (count, 3, arguments.size, arguments.size)
    images = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    model = random_net(arguments.model, images[:_CALIBRATION_IMAGES])
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        files, compared = _files(model, images[:_CALIBRATION_IMAGES], Path(folder))
        runners = {name: OrtRunner(path, threads=threads) for name, path in files.items()}
        for batch in batches:
            total = max(arguments.images // batch, 1) * batch
            pieces = [images[i : i + batch].numpy() for i in range(0, total, batch)]
            rows += _rows(runners, compared, pieces, arguments.rounds, clock)
        for runner in runners.values():
            runner.close()
    what = f"{arguments.size} pixels, {threads} threads, {arguments.rounds} rounds of {arguments.images} images"
    publish(f"onnxruntime on the CPU, {arguments.model}, {what}", machine, rows, arguments)


def _files(model: nn.Module, images: Tensor, folder: Path) -> tuple[dict[str, Path], dict[str, Cell]]:
    """Every ONNX file by name, and how its logits in optimized onnxruntime compare with PyTorch's."""
    files = {_FLOAT: folder / "fp32.onnx", _STATIC: folder / "static.onnx"}
    write_float_onnx(model, images[:2], files[_FLOAT])
    quantize_static_file(files[_FLOAT], files[_STATIC], images.numpy())
    compared: dict[str, Cell] = {name: _difference(path, model, images) for name, path in files.items()}
    for number, (name, recipe) in enumerate(_OURS.items()):
        stored = quantized(model, images, recipe)
        files[name] = folder / f"{number}.onnx"
        one = images[:1].numpy()
        export_onnx(stored, files[name], one, versions=engine_versions(), checkpoint_sha256="0" * 64)
        compared[name] = _difference(files[name], stored.net, images)
    return files, compared


def _difference(path: Path, net: nn.Module, images: Tensor) -> str:
    """Largest difference of a logit to those of `net`, in percent of the largest; "none" means to the last bit."""
    with torch.inference_mode():
        wanted = net(images).numpy()
    runner = OrtRunner(path)
    largest = float(np.abs(runner(images.numpy()) - wanted).max())
    runner.close()
    return f"{100 * largest / float(np.abs(wanted).max()):.1g} %" if largest else "none"


def _rows(
    runners: dict[str, OrtRunner], compared: dict[str, Cell], pieces: Sequence[FloatArray], rounds: int, clock: Clock
) -> list[Row]:
    """One row a file for one batch size."""
    cases: dict[str, Callable[[], object]] = {name: partial(_run, runner, pieces) for name, runner in runners.items()}
    seconds = interleaved(cases, rounds, clock)
    images = sum(map(len, pieces))
    rows: list[Row] = []
    for name in runners:
        ratio = 1 / median_ratio(seconds[name], seconds[_FLOAT])
        rows.append(
            {
                "batch": len(pieces[0]),
                "file": name,
                "images/s": images / statistics.median(seconds[name]),
                **noise(seconds[name]),
                "by fp32": ratio,
                "by onnxruntime's own": 1 / median_ratio(seconds[name], seconds[_STATIC]),
                **goal(ratio, at_least=_RATIO if name in _WANTED else None),
                "logits differ from PyTorch's by": compared[name],
            }
        )
    return rows


def _run(runner: OrtRunner, pieces: Sequence[FloatArray]) -> None:
    for piece in pieces:
        runner(piece)


class _Images:
    """What quantize_static reads its calibration images from."""

    def __init__(self, images: FloatArray) -> None:
        self._left = [{"input": image[None]} for image in images]

    def get_next(self) -> dict[str, FloatArray] | None:
        """The next image, as onnxruntime wants it."""
        return self._left.pop() if self._left else None


def quantize_static_file(source: Path, path: Path, images: FloatArray) -> None:
    """onnxruntime's own INT8 form of a float file: 8-bit weights by channel, as its manual advises.

    Args:
        source: with an input `input`, (N, C, H, W).
        path: of the result.
        images: float32, (N, C, H, W), to calibrate on.
    """
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = path.with_suffix(".prepared.onnx")
    quant_pre_process(source, prepared, skip_symbolic_shape=True)  # as its manual advises; symbolic is for transformers
    quantize_static(
        prepared,
        path,
        _Images(images),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )


if __name__ == "__main__":
    main()
