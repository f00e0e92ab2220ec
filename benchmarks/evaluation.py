"""What `eval` costs over bare inference, and that its memory doesn't grow with the number of images.

python benchmarks/evaluation.py
python benchmarks/evaluation.py --images 2048 --counts 1000 30000
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # else benchmarks/calibration.py hides the package

from benchmarks.common import Cell, Row, goal, make_parser, publish, random_net, this_machine

if TYPE_CHECKING:
    from torch import nn

    from engines.run_folder import RunFolder

__all__ = ["SMALL_NET", "main", "photos", "streamed"]

_OVERHEAD: Final = 10.0  # percent of the time in the stages' own calls
_GROWTH: Final = 64.0  # MiB from the smallest number of images to the largest
_CLASSES: Final = 8
_PHOTOS: Final = 64  # distinct ones; more images are links to them

SMALL_NET: Final = """
from torch import nn

def build(num_classes: int = 8) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes)
    )
"""


def main() -> None:
    """Measure the overhead in this process, and memory in one process for each number of images."""
    parser = make_parser(__doc__ or "", rounds=1)
    parser.add_argument("--images", type=int, default=512, help="for the overhead; ResNet-18 at 224 pixels")
    parser.add_argument("--counts", type=int, nargs="+", default=[1000, 30_000], help="numbers of images, for memory")
    parser.add_argument("--run", type=Path, help="evaluate this run only, and print JSON")
    arguments = parser.parse_args()
    if arguments.run is not None:
        print(json.dumps(_evaluated(arguments.run)))
        return
    machine = this_machine()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        rows = [_overhead(root / "resnet18", arguments.images), *_memory(root, arguments.counts)]
    publish("`faq-deploy eval`: overhead and memory", machine, rows, arguments)


def _overhead(root: Path, count: int) -> Row:
    """Seconds of an evaluation whose images are decoded already, against the seconds of its stages' calls."""
    import torch

    from faq_deploy.evaluate import EvalOptions, evaluate, load_run
    from faq_deploy.limits import Limits
    from faq_deploy.pixel_cache import CachedImages
    from faq_deploy.run_data import reopen_validation

    model = random_net("resnet18", torch.rand(8, 3, 224, 224))
    photos(root / "data", 224, count)
    _by_answer(root / "data", model)
    torch.save(model.state_dict(), root / "w.pth")
    loaded = load_run(_made(root, "torchvision:resnet18", root / "w.pth", 224, 1000))
    facts = loaded.quantized.facts
    images, _ = reopen_validation(loaded.data, facts.preprocessing, facts.classes)
    kept = CachedImages(images)
    for index in range(len(kept)):
        kept.pixels(index)
    start = time.perf_counter()
    found = evaluate(loaded, kept, "photos", EvalOptions(limits=Limits(allow_skip=True)))
    seconds = time.perf_counter() - start
    bare = sum(stage.images / stage.images_per_second for stage in found.report.stages if stage.images_per_second)
    overhead = 100 * (seconds / bare - 1)
    what = f"overhead over the stages' own calls, ResNet-18, {count} images, %"
    row: dict[str, Cell] = {"what": what, "value": overhead, "eval, s": seconds, "stages, s": bare}
    return row | goal(overhead, at_most=_OVERHEAD)


def _memory(root: Path, counts: list[int]) -> list[Row]:
    rows: list[Row] = []
    peaks = []
    for count, found in streamed(root, counts):
        peaks.append(found["peak_mib"])
        growth = peaks[-1] - peaks[0]
        wanted = goal(growth, at_most=_GROWTH) if len(peaks) > 1 else goal(growth)
        what = f"peak RSS with {count:,} images streamed, MiB"
        row: dict[str, Cell] = {"what": what, "value": found["peak_mib"], "eval, s": found["seconds"]}
        rows.append(row | wanted)
    return rows


def streamed(root: Path, counts: list[int]) -> Iterator[tuple[int, dict[str, float]]]:
    """Evaluate a small net on so many images, each time in a process of its own.

    Args:
        root: an empty folder.
        counts: of images.

    Yields:
        From the smallest count on: `seconds`, `cpu_seconds` and `peak_mib`.
    """
    for count in sorted(counts):
        place = root / str(count)
        place.mkdir()
        (place / "net.py").write_text(SMALL_NET)
        photos(place / "data", 64, count)
        run = _made(place, f"{place / 'net.py'}:build", "random", 64, _CLASSES).path
        done = subprocess.run([sys.executable, __file__, "--run", str(run)], capture_output=True, text=True, check=True)
        yield count, json.loads(done.stdout)


def _evaluated(run: Path) -> dict[str, float]:
    """Evaluate a run as the command does; seconds, and the largest memory that this process ever had."""
    from engines.run_folder import RunFolder
    from faq_deploy import verbs
    from faq_deploy.evaluate import EvalOptions
    from faq_deploy.limits import Limits

    options = EvalOptions(batch_size=64, reference_images=64, limits=Limits(allow_skip=True, allow_undecided=True))
    start, cpu = time.perf_counter(), time.process_time()
    verbs.evaluate_verb(RunFolder(run), options, None, lambda done, total: None)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu
    # not ru_maxrss: a process starts with that of the one that forked it
    status = Path("/proc/self/status").read_text("utf-8")
    peak = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return {"seconds": seconds, "cpu_seconds": cpu_seconds, "peak_mib": int(peak.split()[1]) / 1024}


def photos(root: Path, size: int, count: int) -> None:
    """A few images to train on and `count` to validate on, most of them links to the same JPEG files."""
    rng = np.random.default_rng(0)
    for split, images in (("train", _PHOTOS), ("val", count)):
        for index in range(images):
            folder = root / split / f"was{index % _CLASSES}"
            folder.mkdir(parents=True, exist_ok=True)
            first = root / split / f"was{index % _PHOTOS % _CLASSES}" / f"{index % _PHOTOS}.jpg"
            if index < _PHOTOS:
                Image.fromarray(rng.integers(0, 256, (size, size, 3), np.uint8)).save(first)
            else:
                os.link(first, folder / f"{index}.jpg")


def _by_answer(data: Path, model: nn.Module) -> None:
    """Move the images into the folders of the classes that a net answers: one that guesses would be looked into."""
    import torch

    from engines.image_batches import batches
    from engines.images import ImageFolder
    from engines.preprocess import Preprocessing

    for split in ("train", "val"):
        images = ImageFolder(data / split, Preprocessing(crop=224))
        for batch in batches(images, None, 32):
            with torch.inference_mode():
                answers = model(torch.from_numpy(batch.images)).argmax(1).tolist()
            for index, answer in zip(batch.indices.tolist(), answers, strict=True):
                source = data / split / images.identity(index)
                folder = data / split / f"class{answer:04}"
                folder.mkdir(exist_ok=True)
                source.rename(folder / f"{source.parent.name}-{source.name}")
        for folder in (data / split).iterdir():
            if not any(folder.iterdir()):
                folder.rmdir()


def _made(root: Path, model: str, weights: Path | str, size: int, classes: int) -> RunFolder:
    """A calibrated and exported run with an onnxruntime engine."""
    from engines.build import build_engines
    from engines.build_options import BuildOptions
    from engines.run_folder import RunFolder
    from faq_deploy import __version__, verbs
    from faq_deploy.new_run import QuantizeOptions
    from faq_deploy.progress import training_reporter
    from faq_deploy.run_data import DataOptions

    if classes > _CLASSES:  # the head's other classes have no images
        for index in range(classes):
            (root / "data" / "train" / f"class{index:04}").mkdir(exist_ok=True)
    overrides: dict[str, object] = {"training.epochs": 0, "target": "onnxruntime"}
    overrides |= {"calibration.batches": 1, "calibration.batch_size": 16}
    options = QuantizeOptions(
        model=model,
        output=root / "run",
        data=DataOptions(data=str(root / "data"), resize=0, crop=size),
        weights=str(weights),
        bits=8,
        overrides=overrides,
        device="cpu",
    )
    run = RunFolder(options.output)
    verbs.quantize_verb(options, training_reporter(), _quiet)
    verbs.export_verb(run, 4, _quiet)
    build_engines(run, ["onnxruntime"], [], BuildOptions(), version=__version__)
    return run


def _quiet(text: str) -> None:
    """Say nothing."""


if __name__ == "__main__":
    main()
