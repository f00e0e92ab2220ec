"""Predictions on files of another tool: onnxruntime's quantizer; and on gates."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from engines.engine_plan import Share, predict, sentences
from tests.onnx_nets import around

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
    quantize_static(
        before,
        after,
        Images(),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
        extra_options={"ActivationSymmetric": True},
        **changes,
    )
    return onnx.load(after)


def test_net_quantized_by_onnxruntime_is_all_int8_but_its_concat(tmp_path: Path) -> None:
    plan = predict(quantized_by_onnxruntime(tmp_path))
    assert (plan.convolutions, plan.linears, plan.adds) == (
        Share(int8=4, all=4),
        Share(int8=1, all=1),
        Share(int8=1, all=1),
    )
    assert (plan.concats, plan.pools, plan.reformats) == (Share(int8=0, all=1), 1, 3)
    (island,) = plan.islands
    assert (island.nodes, island.modules) == (("joined",), ())
    assert island.reason.startswith("Joins tensors with the scales 0.0")  # its name is told already
    assert island.edit == "Give all its inputs the largest of these scales."
    assert sentences(plan)[0].startswith("Predicted from the graph, not measured: 4 of 4 convolutions, 1 of 1 linear")


def test_layer_left_out_by_onnxruntime_is_an_island_with_a_border_on_both_sides(tmp_path: Path) -> None:
    plan = predict(quantized_by_onnxruntime(tmp_path, nodes_to_exclude=["body"]))
    assert plan.convolutions == Share(int8=3, all=4)
    assert [island.nodes for island in plan.islands] == [("body",), ("joined",)]
    assert plan.reformats == 5


@pytest.mark.parametrize(("kind", "functions"), [("Mul", 1), ("Add", 0)])
def test_product_of_two_quantized_tensors_is_a_function_between_codes(kind: str, functions: int) -> None:
    nodes = [
        helper.make_node("Sigmoid", ["x.values"], ["s"], "s"),
        helper.make_node("QuantizeLinear", ["s", "s.scale", "zero"], ["s.codes"], "s.codes"),
        helper.make_node("DequantizeLinear", ["s.codes", "s.scale", "zero"], ["s.values"], "s.values"),
        helper.make_node(kind, ["x.values", "s.values"], ["y"], "y"),
    ]
    plan = predict(around(nodes, {"s.scale": np.float32(2.0**-7)}, (3, 4, 4)))
    assert plan.functions == 1 + functions
    assert (plan.islands, plan.adds.all) == ((), int(kind == "Add"))
