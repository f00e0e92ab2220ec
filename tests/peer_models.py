"""QDQ files of other tools: onnxruntime's quantizer, made when asked for; Brevitas and ModelOpt, in peer_files/.

Those two were written by benchmarks/peers/small_onnx.py, with Brevitas 0.13.4 and ModelOpt 0.47.0.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

__all__ = ["ONNXRUNTIME_FORMS", "PEER_FILES", "peer_model", "quantized_by_onnxruntime"]

PEER_FILES = Path(__file__).parent / "peer_files"

# what its options make of activations, weights and biases
ONNXRUNTIME_FORMS: dict[str, dict[str, object]] = {
    "signed": {},
    "unsigned": {"activation_type": QuantType.QUInt8, "per_channel": True, "extra_options": {}},
    "float weights": {
        "per_channel": True,
        "extra_options": {"ActivationSymmetric": True, "AddQDQPairToWeight": True, "QuantizeBias": False},
    },
}

WEIGHTS = {
    **{"stem.w": (8, 3, 3, 3), "stem.b": (8,), "body.w": (8, 8, 3, 3), "body.b": (8,)},
    **{"left.w": (8, 8, 1, 1), "right.w": (8, 8, 1, 1), "head.w": (5, 16), "head.b": (5,)},
}


class Images(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    """Three batches of noise."""

    def __init__(self) -> None:
        rng = np.random.default_rng(1)
        self.batches = iter(rng.normal(size=(3, 2, 3, 8, 8)).astype(np.float32))

    def get_next(self) -> dict[str, npt.NDArray[np.float32]] | None:
        batch = next(self.batches, None)
        return None if batch is None else {"x": batch}


def peer_model(name: str, folder: Path) -> onnx.ModelProto:
    """A file by the name of its tool: "brevitas", "modelopt", or a key of ONNXRUNTIME_FORMS."""
    if name in ONNXRUNTIME_FORMS:
        return quantized_by_onnxruntime(folder, **ONNXRUNTIME_FORMS[name])
    return onnx.load(PEER_FILES / f"{name}.onnx")


def quantized_by_onnxruntime(folder: Path, **changes: object) -> onnx.ModelProto:
    """A float net with a skip, two branches and a classifier, quantized with signed symmetric codes."""
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Conv", ["x", "stem.w", "stem.b"], ["stem.out"], "stem", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["stem.out"], ["stem.relu"], "stem.relu"),
        helper.make_node("Conv", ["stem.relu", "body.w", "body.b"], ["body.out"], "body", pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["body.out", "stem.relu"], ["sum.out"], "sum"),
        helper.make_node("Relu", ["sum.out"], ["sum.relu"], "sum.relu"),
        helper.make_node("Conv", ["sum.relu", "left.w"], ["left.out"], "left"),
        helper.make_node("Conv", ["sum.relu", "right.w"], ["right.out"], "right"),
        helper.make_node("Concat", ["left.out", "right.out"], ["joined.out"], "joined", axis=1),
        helper.make_node("GlobalAveragePool", ["joined.out"], ["pool.out"], "pool"),
        helper.make_node("Flatten", ["pool.out"], ["flat.out"], "flat"),
        helper.make_node("Gemm", ["flat.out", "head.w", "head.b"], ["y"], "head", transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "float",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 5])],
        [numpy_helper.from_array(rng.normal(size=s).astype(np.float32) / 4, name) for name, s in WEIGHTS.items()],
    )
    before, after = folder / "float.onnx", folder / "quantized.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), before)
    chosen: dict[str, object] = {
        "activation_type": QuantType.QInt8,
        "weight_type": QuantType.QInt8,
        "extra_options": {"ActivationSymmetric": True},
    }
    quantize_static(before, after, Images(), quant_format=QuantFormat.QDQ, **{**chosen, **changes})
    return onnx.load(after)
