"""EfficientNet-Lite on 1,000 real images without training: what each way of rounding keeps of the float accuracy.

python benchmarks/lite.py --data imagenet1000
python benchmarks/lite.py --data imagenet1000 --variant 1 --only 'tensorrt tensor 8 compensated'

--data is a folder with one folder per ImageNet class. 256 of its images are calibrated on, without their labels; they
are those that `faq-deploy quantize --data imagenet1000 --train-fraction 0.256` draws, so that "held out" is what that
command reports.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import Row, make_parser, publish, this_machine
from benchmarks.efficientnet_lite import SIZES, lite0, lite1, lite2
from engines.image_batches import batches
from engines.images import ImageSet
from engines.preprocess import Preprocessing
from faq_deploy.activation_exponents import calibrate
from faq_deploy.correction import correct, correctable, corrects
from faq_deploy.data import Splits, calibration_indices, open_data
from faq_deploy.net import QuantizedNet
from faq_deploy.recipe import load_recipe, override
from faq_deploy.rewrite import rewrite

__all__ = ["main"]

_MODELS: Final = {0: lite0, 1: lite1, 2: lite2}
_TRAIN_FRACTION: Final = 0.256
_BATCH: Final = 64
_TOGETHER: Final = 16  # images in a batch of corrections, as `faq-deploy quantize` has it

Logits = npt.NDArray[np.float32]

_METHODS: Final[Mapping[str, Mapping[str, object]]] = {
    "nearest": {},
    "analytic": {"calibration.bias_correction": "analytic"},
    "empirical": {"calibration.bias_correction": "empirical"},
    "compensated": {"calibration.weight_rounding": "compensated"},
}

# by name of the module, as --bits takes them: the first layer is _conv_stem, the last one _fc
_BITS: Final[Mapping[str, Mapping[str, int]]] = {
    "8": {},
    "4": {"*_conv": 4, "_conv_head": 4},
    "4/8": {"*_expand_conv": 4, "*_project_conv": 4, "_conv_head": 4},
}


@dataclass(frozen=True)
class _Case:
    """One way to quantize.

    Attributes:
        target, granularity: as in a recipe.
        weights: bits of all weights but the first and last layer's: "8", "4", or "4/8": depthwise ones 8.
        method: of `_METHODS`.
    """

    target: str
    granularity: str
    weights: str
    method: str

    def __str__(self) -> str:
        return f"{self.target} {self.granularity} {self.weights} {self.method}"


_CASES: Final = (
    *[_Case(t, "channel", "8", m) for t in ("tensorrt", "onnxruntime") for m in ("nearest", "compensated")],
    *[_Case("tensorrt", "tensor", "8", m) for m in _METHODS],
    _Case("onnxruntime", "tensor", "8", "compensated"),
    *[_Case("tensorrt", "channel", "4", m) for m in ("nearest", "empirical", "compensated")],
    _Case("onnxruntime", "channel", "4", "compensated"),
    _Case("tensorrt", "channel", "4/8", "compensated"),
)


def main() -> None:
    """Measure and print."""
    parser = make_parser("EfficientNet-Lite without training.", rounds=1)
    parser.add_argument("--data", required=True, help="folder with one folder per class")
    parser.add_argument("--variant", action="append", type=int, choices=list(_MODELS), help="repeatable; 0 if absent")
    parser.add_argument("--only", default="*", help="pattern of cases: 'TARGET GRANULARITY WEIGHTS METHOD'")
    arguments = parser.parse_args()
    machine, rows = this_machine(), list[Row]()
    for variant in arguments.variant or [0]:
        rows += _measure(variant, arguments.data, arguments.only)
    publish(f"EfficientNet-Lite on {arguments.data}, calibrated on {_TRAIN_FRACTION:.1%}", machine, rows, arguments)


def _measure(variant: int, data: str, only: str) -> list[Row]:
    size = SIZES[variant]
    preprocessing = Preprocessing(
        resize=None if size == 224 else size,
        crop=size,
        mean=(127 / 255,) * 3,
        std=(128 / 255,) * 3,
        interpolation="bicubic",
    )
    splits = open_data(data, preprocessing=preprocessing, train_fraction=_TRAIN_FRACTION)
    model = _MODELS[variant]()
    exact = _logits(model, splits)
    name = f"Lite{variant}"
    rows: list[Row] = [_row(name, None, exact, exact, splits, 0.0)]
    for case in _CASES:
        if fnmatchcase(str(case), only):
            start = time.perf_counter()
            net = _quantized(model, splits, case)
            seconds = time.perf_counter() - start
            rows.append(_row(name, case, _logits(net, splits), exact, splits, seconds))
            print(rows[-1], file=sys.stderr, flush=True)
    return rows


def _quantized(model: nn.Module, splits: Splits, case: _Case) -> QuantizedNet:
    values = {
        "target": case.target,
        "quantizer.granularity": case.granularity,
        "quantizer.weight_rule": "mse",
        "calibration.batches": 4,
        "calibration.batch_size": _BATCH,
        "layers.bits": _BITS[case.weights],
        **_METHODS[case.method],
    }
    recipe = correctable(override(load_recipe("faq-8bit"), values))
    section = recipe.calibration
    indices = calibration_indices(splits.train.labels, section.batches * section.batch_size, recipe.training.seed)
    example = next(iter(batches(splits.train, np.arange(2), 2))).images
    net = rewrite(model, torch.from_numpy(example), recipe)
    calibrate(net, (torch.from_numpy(b.images) for b in batches(splits.train, indices, _BATCH)), section, recipe.target)
    if corrects(section):
        few = batches(splits.train, indices[: section.correction_images], _TOGETHER)
        correct(net, (torch.from_numpy(b.images) for b in few), section)
    return net


def _logits(net: nn.Module, splits: Splits) -> tuple[Logits, Logits]:
    """Of the calibration part and of the held-out part."""
    with torch.inference_mode():
        parts = [
            np.concatenate([net(torch.from_numpy(b.images)).numpy() for b in batches(images, None, _BATCH)])
            for images in (splits.train, splits.val)
        ]
    return parts[0], parts[1]


def _row(
    name: str,
    case: _Case | None,
    found: tuple[Logits, Logits],
    exact: tuple[Logits, Logits],
    splits: Splits,
    seconds: float,
) -> Row:
    right = [_hits(logits, images) for logits, images in zip(found, (splits.train, splits.val), strict=True)]
    same = np.concatenate([a.argmax(1) == b.argmax(1) for a, b in zip(found, exact, strict=True)])
    return {
        "model": name,
        "target": case.target if case else "float",
        "weights per": case.granularity if case else None,
        "weight bits": case.weights if case else None,
        "method": case.method if case else None,
        "top-1, all images": f"{100 * float(np.concatenate(right).mean()):.1f}",
        "held out": f"{100 * float(right[1].mean()):.1f}",
        "agree with float": f"{100 * float(same.mean()):.1f}",
        "s": round(seconds) if case else None,
    }


def _hits(logits: Logits, images: ImageSet) -> npt.NDArray[np.bool_]:
    return np.asarray(logits.argmax(1) == images.labels)


if __name__ == "__main__":
    main()
