"""Predictions on files of another tool: onnxruntime's quantizer; and on gates."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import helper

from engines.engine_plan import Share, predict, sentences
from tests.onnx_nets import around
from tests.peer_models import quantized_by_onnxruntime


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
