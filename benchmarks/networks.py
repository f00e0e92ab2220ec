"""The paper's seven networks through all four verbs: identical codes everywhere, sizes, seconds and memory.

Weights are random (seeded) with batch norms settled on photos. Each network runs in a process of its own and leaves
one JSON file, so networks that are done are not run again; docs/networks.md is written of all of them.

python benchmarks/networks.py --images imagenet1000
python benchmarks/networks.py --images imagenet1000 --only resnet152 --again
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Final

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # else benchmarks/calibration.py hides the package

from benchmarks.common import random_net
from benchmarks.networks_page import RESULTS, SMS, Measured, write_page
from benchmarks.trial import peak_mib
from engines.files import write_atomic

if TYPE_CHECKING:
    from faq_deploy.new_run import QuantizeOptions

__all__ = ["CASES", "main", "measure"]

CASES: Final = (
    *((name, 8) for name in ("resnet18", "resnet34", "resnet50", "resnet152", "inception_v3", "densenet161")),
    ("vgg16_bn", 8),
    *((name, 4) for name in ("resnet18", "resnet34", "resnet50")),
)
_COMPARED: Final = 32  # images whose codes are compared, and others to calibrate on
_EVALUATED: Final = 4  # images that the integer reference runs once more in `eval`


def main() -> None:
    """Run what has no result yet, and write the page."""
    parser = argparse.ArgumentParser(
        description="The networks of Table 1.", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--images", type=Path, required=True, help="a folder with one folder a class, 1000 of them")
    parser.add_argument("--only", help="one network, such as resnet50")
    parser.add_argument("--bits", type=int, choices=[8, 4], help="8 or 4 alone")
    parser.add_argument("--again", action="store_true", help="run also what has a result")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)  # in this process, for one network
    arguments = parser.parse_args()
    for network, bits in CASES:
        if arguments.only not in (None, network) or arguments.bits not in (None, bits):
            continue
        path = RESULTS / "networks" / f"{network}-{bits}bit.json"
        if arguments.here:
            with tempfile.TemporaryDirectory() as folder:
                measured = measure(network, bits, arguments.images, Path(folder))
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, json.dumps(asdict(measured), indent=1, sort_keys=True) + "\n")
        elif arguments.again or not path.is_file():
            command = [sys.executable, __file__, "--images", str(arguments.images), "--here"]
            result = subprocess.run([*command, "--only", network, "--bits", str(bits)], check=False)
            print(f"{network}, {bits} bits: {'done' if result.returncode == 0 else 'FAILED'}", flush=True)
    if not arguments.here:
        print(write_page())


def measure(network: str, bits: int, images: Path, folder: Path) -> Measured:
    """One network through quantize, export, build and eval.

    Args:
        network: of torchvision.
        bits: 8 or 4.
        images: a folder with one folder a class.
        folder: an empty one to work in.
    """
    from engines.build import build_engines
    from engines.build_options import BuildOptions
    from engines.run_folder import RunFolder
    from faq_deploy import __version__, verbs
    from faq_deploy.evaluate import EvalOptions
    from faq_deploy.inspect import inspect_net
    from faq_deploy.limits import Limits
    from faq_deploy.progress import training_reporter
    from faq_deploy.stored_net import load_net

    load = os.getloadavg()[0]
    options, parameters = _prepared(network, bits, images, folder)
    run, seconds = RunFolder(options.output), dict[str, float]()
    with _timed(seconds, "quantize"):
        verbs.quantize_verb(options, training_reporter(), _say)
    with _timed(seconds, "export"):
        exported = verbs.export_verb(run, _COMPARED, _say)
    peak = peak_mib()
    with _timed(seconds, "build"):
        engines = build_engines(run, ["tensorrt-rtx"], SMS, BuildOptions(), version=__version__)
    with _timed(seconds, "eval"):
        limits = EvalOptions(
            batch_size=_EVALUATED, code_images=_EVALUATED, reference_images=_EVALUATED, limits=Limits(allow_skip=True)
        )
        report = verbs.evaluate_verb(run, limits, None, lambda done, all_: None)
    stored = load_net(run / "quantized.pt")
    found = inspect_net(stored.net, stored.recipe, network)
    return Measured(
        network=network,
        bits=bits,
        size=found.input_shape[-1],
        parameters=parameters,
        macs=found.macs.all,
        int8_macs=found.macs.int8,
        nodes=found.nodes,
        quantizers=found.quantizers,
        adds_int8=found.adds.int8,
        adds=found.adds.all,
        concats_int8=found.concats.int8,
        concats=found.concats.all,
        onnx_bytes=exported.bytes,
        engine_bytes={
            str(sm): None if e.manifest is None else e.manifest.bytes for sm, e in zip(SMS, engines, strict=True)
        },
        engine_notes=[e.reason for e in engines if e.reason],
        seconds=seconds,
        peak_mib=peak,
        images=_COMPARED,
        codes=sum(a.codes_compared for a in exported.agreements),
        differing=sum(a.differing + int(a.largest_difference > 0) for a in exported.agreements),
        layers=len(exported.bounds),
        proven=sum(b.proven for b in exported.bounds),
        worst=max(b.ratio for b in exported.bounds),
        passed=report.verdict.passed,
        verdict=report.verdict.sentences[0],
        load=load,
    )


def _prepared(network: str, bits: int, images: Path, folder: Path) -> tuple[QuantizeOptions, int]:
    """Weights and photos as files, and the options of `quantize` that name them; and the number of parameters."""
    import torch

    from engines.image_batches import batches
    from engines.images import ImageFolder
    from engines.preprocess import Preprocessing
    from faq_deploy.new_run import QuantizeOptions
    from faq_deploy.run_data import DataOptions

    size = 299 if network == "inception_v3" else 224
    _link_photos(images, folder / "photos")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # most classes have no photo
        photos = ImageFolder(folder / "photos" / "train", Preprocessing(resize=size * 8 // 7, crop=size))
    first = next(iter(batches(photos, None, _COMPARED)))
    model = random_net(network, torch.from_numpy(first.images))
    torch.save(model.state_dict(), folder / "weights.pth")
    options = QuantizeOptions(
        model=f"torchvision:{network}",
        output=folder / "run",
        data=DataOptions(data=str(folder / "photos"), resize=size * 8 // 7, crop=size),
        weights=str(folder / "weights.pth"),
        bits=bits,
        overrides={"training.epochs": 0, "calibration.batches": 1, "calibration.batch_size": _COMPARED},
        device="cpu",
    )
    return options, sum(p.numel() for p in model.parameters())


def _link_photos(images: Path, folder: Path) -> None:
    """Photos spread over the classes, half to calibrate on and half to compare codes on, as links."""
    classes = sorted(path.name for path in images.iterdir() if path.is_dir())
    for number, part in enumerate(("train", "val")):
        for name in classes:
            (folder / part / name).mkdir(parents=True)
        for position in range(_COMPARED):
            name = classes[(2 * position + number) * len(classes) // (2 * _COMPARED)]
            photo = next(path for path in sorted((images / name).iterdir()) if path.is_file())
            (folder / part / name / photo.name).symlink_to(photo.resolve())


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - start


def _say(text: str) -> None:
    print(f"  {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
