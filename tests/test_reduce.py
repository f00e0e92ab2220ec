"""The smallest part that fails: small, connected, and never one that doesn't fail."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from engines.graph_edit import GraphEdit
from engines.reduce import reduce
from tests.engine_nets import classifier, needs_rtx
from tests.layer_forms import refusal
from tests.onnx_nets import residual_net


def _names(model: onnx.ModelProto) -> list[str]:
    return [node.name for node in model.graph.node]


def _net(tmp_path: Path, **flags: bool) -> onnx.ModelProto:
    return onnx.load(classifier(tmp_path / "net.onnx", **flags))  # type: ignore[arg-type]


def test_one_bad_node_is_found_alone(tmp_path: Path) -> None:
    found = reduce(_net(tmp_path), lambda part: "relu" in _names(part))
    assert _names(found) == ["relu"]
    assert [value.name for value in found.graph.input] == ["conv.y"]
    assert [value.name for value in found.graph.output] == ["relu.y"]


def test_a_dynamic_batch_stays_dynamic_and_sizes_are_kept(tmp_path: Path) -> None:
    found = reduce(_net(tmp_path), lambda part: "relu" in _names(part))
    (first, *rest) = found.graph.input[0].type.tensor_type.shape.dim
    assert first.dim_param == "N"
    assert [size.dim_value for size in rest] == [8, 16, 16]


def test_a_layer_keeps_the_quantizers_that_it_fails_with(tmp_path: Path) -> None:
    needed = {"x.quantize", "x.dequantize", "conv.dq", "conv"}
    found = reduce(_net(tmp_path), lambda part: needed <= set(_names(part)))
    assert set(_names(found)) == needed
    assert {tensor.name for tensor in found.graph.initializer} == {
        "x.scale",
        "x.zero_point",
        "conv.weight_codes",
        "conv.scale",
        "conv.zero_point",
    }


def test_a_layer_loses_the_quantizers_that_it_fails_without(tmp_path: Path) -> None:
    found = reduce(_net(tmp_path), lambda part: "conv" in _names(part))
    assert _names(found) == ["conv.dq", "conv"]  # its weight is a constant, whatever makes it
    assert found.graph.input[0].name == "x.values"


def test_two_nodes_that_fail_together_are_kept_with_what_lies_between(tmp_path: Path) -> None:
    found = reduce(_net(tmp_path), lambda part: {"conv", "pool"} <= set(_names(part)))
    assert _names(found) == ["conv.dq", "conv", "relu", "pool"]


def test_no_smaller_part_than_the_whole_gives_the_whole(tmp_path: Path) -> None:
    model = _net(tmp_path)
    assert reduce(model, lambda part: False) is model
    assert reduce(model, lambda part: len(part.graph.node) == len(model.graph.node)) is model


def test_no_time_gives_the_whole_without_a_question(tmp_path: Path) -> None:
    model, asked = _net(tmp_path), list[onnx.ModelProto]()

    def fails(part: onnx.ModelProto) -> bool:
        asked.append(part)
        return True

    assert reduce(model, fails, seconds=0.0) is model
    assert asked == []


@settings(max_examples=40, deadline=None)
@given(st.sets(st.integers(0, 40), min_size=1, max_size=3), st.integers(1, 5))
def test_what_is_returned_was_asked_and_failed(needed: set[int], parity: int) -> None:
    """Also where failing isn't monotonic: a part may fail and a larger one not."""
    model = residual_net("tensorrt", 0)
    names = {model.graph.node[position % len(model.graph.node)].name for position in needed}
    asked: list[tuple[onnx.ModelProto, bool]] = []

    def fails(part: onnx.ModelProto) -> bool:
        answer = names <= set(_names(part)) and len(part.graph.node) % parity < max(1, parity - 1)
        asked.append((part, answer))
        return answer

    found = reduce(model, fails)
    assert found is model or any(part is found and answer for part, answer in asked)
    assert len(asked) <= 80
    assert len(found.graph.node) <= len(model.graph.node)


def test_a_part_computes_what_the_whole_computes_there() -> None:
    model = residual_net("tensorrt", 0)
    target = next(node for node in reversed(model.graph.node) if node.op_type == "Conv")
    part = reduce(model, lambda part: target.name in _names(part))
    onnx.checker.check_model(part, full_check=True)
    whole = GraphEdit(model).model
    whole.opset_import[0].version = 21  # onnx evaluates QuantizeLinear from 19 on
    part.opset_import[0].version = 21
    whole.graph.output.extend(helper.make_tensor_value_info(v.name, TensorProto.FLOAT, None) for v in part.graph.input)
    whole.graph.output.extend(helper.make_tensor_value_info(v.name, TensorProto.FLOAT, None) for v in part.graph.output)
    size = model.graph.input[0].type.tensor_type.shape.dim[2].dim_value
    x = np.random.default_rng(0).normal(size=(2, 3, size, size)).astype(np.float32)
    values = dict(
        zip([v.name for v in whole.graph.output], ReferenceEvaluator(whole).run(None, {"input": x}), strict=True)
    )
    (found,) = ReferenceEvaluator(part).run(None, {v.name: values[v.name] for v in part.graph.input})
    assert [v.name for v in part.graph.output] == [target.output[0]]
    assert np.array_equal(found, values[str(target.output[0])])


@needs_rtx
def test_what_turing_refuses_is_cut_down_to_its_matrix_product(tmp_path: Path) -> None:
    model = _net(tmp_path, gemm=True)
    found = reduce(model, lambda part: "FP32 GEMM" in refusal(part, 75), seconds=30)
    assert _names(found) == ["classifier"]
    assert "FP32 GEMM" in refusal(found, 75)


def test_an_exception_of_the_question_goes_through(tmp_path: Path) -> None:
    def broken(part: onnx.ModelProto) -> bool:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        reduce(_net(tmp_path), broken)
