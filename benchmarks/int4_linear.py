"""EfficientNet-Lite0 in 8 bits with a 4-bit classifier, without training: accuracy and size against the 8-bit one.

python benchmarks/int4_linear.py --data imagenet1000

--data is a folder with one folder per ImageNet class, as for benchmarks/lite.py, whose images, calibration and
rounding these are. "INT4 linear" is the file as `build --int4-linear` hands it to TensorRT, "packed" as
`export --pack-int4` writes it.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import Row, make_parser, publish, this_machine
from benchmarks.efficientnet_lite import lite0
from engines.image_batches import batches
from engines.int4 import linears_as_int4, pack_int4
from engines.preprocess import Preprocessing
from engines.qdq_graph import load_model
from faq_deploy.activation_exponents import calibrate
from faq_deploy.correction import correct, corrects
from faq_deploy.data import Splits, calibration_indices, open_data
from faq_deploy.onnx_export import export_onnx
from faq_deploy.recipe import load_recipe, override
from faq_deploy.rewrite import rewrite
from faq_deploy.stored_net import NetFacts, StoredNet

__all__ = ["main"]

_TRAIN_FRACTION: Final = 0.256
_BATCH: Final = 64
_TOGETHER: Final = 16  # images in a batch of corrections, as `faq-deploy quantize` has it
_COMPARED: Final = 2  # images whose codes are compared at each export

_LITE: Final = Preprocessing(
    resize=None, crop=224, mean=(127 / 255,) * 3, std=(128 / 255,) * 3, interpolation="bicubic"
)
_METHODS: Final[Mapping[str, Mapping[str, object]]] = {
    "nearest": {},
    "compensated": {"calibration.weight_rounding": "compensated"},
}


@dataclass(frozen=True)
class _Sizes:
    """Bytes of one net's ONNX files."""

    int8: int
    int4_linear: int
    packed: int


def main() -> None:
    """Measure and print."""
    parser = make_parser("A 4-bit classifier on an 8-bit net.", rounds=1)
    parser.add_argument("--data", required=True, help="folder with one folder per class")
    arguments = parser.parse_args()
    machine = this_machine()
    splits = open_data(arguments.data, preprocessing=_LITE, train_fraction=_TRAIN_FRACTION)
    model = lite0()
    exact = _answers(model, splits)
    rows = [_row("float", None, exact, exact, splits, None)]
    for method in _METHODS:
        for bits in (8, 4):
            start = time.perf_counter()
            stored = _quantized(model, splits, bits, method)
            rows.append(_row(method, bits, _answers(stored.net, splits), exact, splits, _sizes(stored, splits)))
            print(f"{rows[-1]}, {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    publish(f"A 4-bit classifier on EfficientNet-Lite0, calibrated on {_TRAIN_FRACTION:.1%}", machine, rows, arguments)


def _quantized(model: nn.Module, splits: Splits, bits: int, method: str) -> StoredNet:
    values = {
        "calibration.batches": 4,
        "calibration.batch_size": _BATCH,
        "quantizer.weight_rule": "mse",
        "layers.int4_linear": bits == 4,
        **_METHODS[method],
    }
    recipe = override(load_recipe("faq-8bit"), values)
    section = recipe.calibration
    indices = calibration_indices(splits.train.labels, section.batches * section.batch_size, recipe.training.seed)
    example = next(iter(batches(splits.train, np.arange(2), 2))).images
    net = rewrite(model, torch.from_numpy(example), recipe)
    images = (torch.from_numpy(b.images) for b in batches(splits.train, indices, _BATCH))
    ranges = calibrate(net, images, section, recipe.target)
    if corrects(section):
        few = batches(splits.train, indices[: section.correction_images], _TOGETHER)
        correct(net, (torch.from_numpy(b.images) for b in few), section)
    facts = NetFacts(
        model="benchmarks/efficientnet_lite.py:lite0",
        weights_sha256=None,
        classes=splits.train.classes,
        preprocessing=_LITE,
        ranges=[found.as_dict() for found in ranges],
    )
    return StoredNet(net=net.eval(), recipe=recipe, facts=facts)


def _sizes(stored: StoredNet, splits: Splits) -> _Sizes:
    """Export, which compares codes, and store the file in both other ways."""
    images = next(iter(batches(splits.val, np.arange(_COMPARED), _COMPARED))).images
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        export_onnx(stored, file, images, versions={}, checkpoint_sha256="")
        model = load_model(file)
        linear, _ = linears_as_int4(model)
        return _Sizes(file.stat().st_size, linear.ByteSize(), pack_int4(model).ByteSize())


def _answers(net: nn.Module, splits: Splits) -> npt.NDArray[np.int64]:
    """The class that is found for each image, those of calibration first."""
    with torch.inference_mode():
        found = [
            net(torch.from_numpy(batch.images)).argmax(1).numpy()
            for images in (splits.train, splits.val)
            for batch in batches(images, None, _BATCH)
        ]
    return np.concatenate(found)


def _row(
    method: str,
    bits: int | None,
    found: npt.NDArray[np.int64],
    exact: npt.NDArray[np.int64],
    splits: Splits,
    sizes: _Sizes | None,
) -> Row:
    right = found == np.concatenate([splits.train.labels, splits.val.labels])
    return {
        "rounding": method,
        "classifier bits": bits,
        "top-1, all images": f"{100 * float(right.mean()):.1f}",
        "held out": f"{100 * float(right[len(splits.train) :].mean()):.1f}",
        "agree with float": f"{100 * float((found == exact).mean()):.1f}",
        "ONNX bytes": sizes.int8 if sizes else None,
        "INT4 linear": sizes.int4_linear if sizes else None,
        "packed": sizes.packed if sizes else None,
    }


if __name__ == "__main__":
    main()
