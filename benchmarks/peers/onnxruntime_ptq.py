"""Post-training quantization with onnxruntime.quantization: no label is used, nothing is trained, float scales.

Percentile and entropy are the range estimators of Migacz, "8-bit inference with TensorRT" (2017). At 4 bits the image
and the weights of the first and the last layer keep 8.

Install: pip install onnx onnxruntime sympy (both are dependencies of faq-deploy)

python benchmarks/peers/onnxruntime_ptq.py --weights float.pth --data DIR --method entropy --seed 0
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # else the script finds neither benchmarks nor engines

from collections.abc import Iterator
from typing import Final, Literal

import numpy as np
import onnxruntime
import torch
from torch import Tensor

from benchmarks.float_onnx import write_float_onnx
from benchmarks.peers.peer_run import Method, Outcome, Setup, keep_record, make_parser, open_setup
from engines.errors import InputError
from engines.image_batches import batches
from engines.parity import top1

__all__ = ["main"]

# as our recipes'; onnxruntime's own default is 99.999
_PERCENTILES: Final = {8: 99.99, 4: 99.9}
_METHODS: Final = {"minmax": "MinMax", "percentile": "Percentile", "entropy": "Entropy"}


class _Reader:
    """Calibration images, one batch a call, as onnxruntime asks for them."""

    def __init__(self, images: Iterator[Tensor]) -> None:
        self.images = images

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next batch; None at the end."""
        batch = next(self.images, None)
        return None if batch is None else {"input": batch.numpy()}


def main() -> None:
    """Export, quantize, measure, and write the record."""
    parser = make_parser("Post-training quantization with onnxruntime.", trains=False)
    parser.add_argument("--method", choices=list(_METHODS), default="entropy", help="the range estimator")
    parser.add_argument("--per-tensor", action="store_true", help="one weight scale a layer, as in 2017")
    arguments = parser.parse_args()
    if arguments.bits not in (4, 8):
        raise InputError(f"onnxruntime has no integers of {arguments.bits} bits.", "pass --bits 8 or --bits 4.")
    granularity: Literal["channel", "tensor"] = "tensor" if arguments.per_tensor else "channel"
    setup = open_setup(arguments)
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        floating, quantized = Path(folder, "float.onnx"), Path(folder, "int8.onnx")
        example = next(setup.calibration())[:2]
        write_float_onnx(setup.net, example, floating)
        float_top1 = _top1(floating, setup)
        quantize(floating, quantized, setup.calibration(), arguments.method, arguments.bits, granularity)
        seconds = time.perf_counter() - begin
        found = _top1(quantized, setup)
    print(f"float {float_top1:.2f} %, {arguments.method} {found:.2f} %", file=sys.stderr)
    percentile = f" {_PERCENTILES[arguments.bits]}" if arguments.method == "percentile" else ""
    method = Method(
        name=f"onnxruntime-{arguments.method}-ptq-{granularity}-{arguments.bits}bit",
        method=f"PTQ, {arguments.method}{percentile}",
        library="onnxruntime",
        version=onnxruntime.__version__,
        scales="float",
        script="onnxruntime_ptq.py",
        options=("--method", arguments.method, *(["--per-tensor"] if arguments.per_tensor else [])),
        granularity=granularity,
        notes="Batch norms folded, our calibration images, run without graph optimizations.",
    )
    keep_record(arguments, setup, method, Outcome(float_top1, found, found, seconds))


def quantize(
    floating: Path,
    quantized: Path,
    images: Iterator[Tensor],
    method: str,
    bits: int,
    granularity: Literal["channel", "tensor"],
) -> None:
    """Write `quantized`: the float file with QuantizeLinear and DequantizeLinear pairs, their ranges from `images`.

    Args:
        floating: a float ONNX file with input `input`.
        quantized: the file to write.
        images: float32 batches, shape (N, C, H, W).
        method: minmax, percentile or entropy.
        bits: of weights and activations, 4 or 8.
        granularity: of weight scales.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    few = bits == 4
    axis = {"axis": 0} if granularity == "channel" else {}
    eight = {"quant_type": QuantType.QInt8, **axis}
    overrides = {"input": [{"quant_type": QuantType.QInt8}], "conv1.weight": [eight], "linear.weight": [eight]}
    quantize_static(
        str(floating),
        str(quantized),
        _Reader(images),
        quant_format=QuantFormat.QDQ,
        per_channel=granularity == "channel",
        activation_type=QuantType.QUInt4 if few else QuantType.QInt8,  # half of signed codes would be lost on ReLUs
        weight_type=QuantType.QInt4 if few else QuantType.QInt8,
        calibrate_method=getattr(CalibrationMethod, _METHODS[method]),
        extra_options={
            "ActivationSymmetric": not few,
            "WeightSymmetric": True,
            "CalibPercentile": _PERCENTILES[bits],
            **({"TensorQuantOverrides": overrides} if few else {}),
        },
    )


def _top1(path: Path, setup: Setup) -> float:
    """Of an ONNX file in percent of the validation images, each operator as the file has it.

    Optimized, onnxruntime would fuse 8-bit kernels, whose sums saturate at 16 bits on CPUs without VNNI: that is
    what the CPU loses, and not the method.
    """
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    right = seen = 0
    for batch in batches(setup.validation(), None, 256):
        (logits,) = session.run(None, {"input": batch.images})
        right += int(np.count_nonzero(top1(logits) == batch.labels))
        seen += len(batch.labels)
    return 100 * right / seen


if __name__ == "__main__":
    main()
