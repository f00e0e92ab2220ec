"""Rules about weights stored in 4 bits look at the file as it is; all other rules see the same file in INT8."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from engines.int4 import pack_int4
from engines.int4_tensor import store_as_int4
from engines.lint import lint
from engines.newer_opset import set_opset
from engines.qdq_graph import load_model
from tests.int4_nets import four_bit, plain_net
from tests.onnx_checks import only_finding
from tests.onnx_nets import residual_net, saved


def in_int4(model: onnx.ModelProto) -> onnx.ModelProto:
    for tensor in model.graph.initializer:
        if tensor.name in ("codes", "point"):
            store_as_int4(tensor)
    return model


def around_a_convolution(shape: tuple[int, ...]) -> onnx.ModelProto:
    """Another tool's file with a convolution whose weight is in INT4."""
    model = in_int4(plain_net("Gemm", four_bit(shape), point=np.int8(0), inputs=2))
    layer = model.graph.node[3]
    layer.CopyFrom(helper.make_node("Conv", ["x.values", "w"], ["y"], "conv"))
    kind = model.graph.input[0].type.tensor_type
    kind.CopyFrom(helper.make_tensor_type_proto(kind.elem_type, ["N", shape[1], 8, 8]).tensor_type)
    return model


def ours(bits: int) -> onnx.ModelProto:
    model = residual_net("tensorrt", 0, bits=bits)
    entry = model.metadata_props.add()
    entry.key, entry.value = "faq_deploy.target", '"tensorrt"'
    return model


def test_int4_convolution_of_another_tool_is_a_warning() -> None:
    found = only_finding(around_a_convolution((4, 2, 1, 2)), "int4-convolution", "tensorrt")
    assert found.level == "warning"
    assert found.message.startswith("Conv conv has a weight in INT4, and TensorRT has no INT4 convolution")


def test_our_own_packed_file_gets_information_and_nothing_worse() -> None:
    model = ours(4)
    packed = pack_int4(model)
    assert packed is not model
    found = only_finding(packed, "packed-weights", "tensorrt")
    assert found.level == "info"
    assert "convolutions run as 4-bit values in INT8 kernels" in found.message
    assert [f for f in lint(packed, "tensorrt") if f.rule != "packed-weights"] == lint(model, "tensorrt")


def test_a_file_in_int8_gets_none_of_these() -> None:
    rules = {"int4-convolution", "int4-odd", "int4-opset", "packed-weights"}
    assert not rules & {finding.rule for finding in lint(ours(4), "tensorrt")}


@pytest.mark.parametrize(
    ("shape", "odd"), [((4, 6), False), ((6, 5), True), ((2, 2, 3, 3), True), ((4, 2, 1, 2), False)]
)
def test_an_odd_last_dimension_is_an_error_for_tensorrt_alone(shape: tuple[int, ...], odd: bool) -> None:
    model = in_int4(plain_net("Gemm", four_bit(shape))) if len(shape) == 2 else around_a_convolution(shape)
    assert bool([f for f in lint(model, "tensorrt") if f.rule == "int4-odd"]) is odd
    assert not [f for f in lint(model, "onnxruntime") if f.rule == "int4-odd"]
    if odd:
        found = only_finding(model, "int4-odd", "tensorrt")
        assert (found.level, found.node) == ("error", "w")
        assert f"INT4 of shape {' x '.join(map(str, shape))}" in found.message


@pytest.mark.parametrize("target", ["tensorrt", "onnxruntime", None])
def test_int4_with_an_older_operator_set_is_an_error(target: str | None) -> None:
    model = in_int4(plain_net("Gemm", four_bit((4, 6)), point=np.int8(0)))
    assert not [f for f in lint(model, target) if f.rule == "int4-opset"]
    set_opset(model, 20, 9)
    found = only_finding(model, "int4-opset", target)
    assert (found.level, found.node) == ("error", "w")
    assert "operator set 20 of the file" in found.message


def test_other_rules_see_the_packed_codes_as_int8() -> None:
    model = in_int4(plain_net("MatMul", four_bit((4, 6)), point=np.int8(3)))
    assert "the zero point is 3" in only_finding(model, "zero-point", "tensorrt").message
    negative = numpy_helper.from_array(np.array(-1, np.float32), "scale")
    next(t for t in model.graph.initializer if t.name == "scale").CopyFrom(negative)
    assert only_finding(model, "scale-positive").node == "w"


def test_a_loaded_file_is_unpacked_unless_it_is_asked_for_as_it_is(tmp_path: Path) -> None:
    path = saved(pack_int4(ours(4)), tmp_path)
    assert not [f for f in lint(load_model(path), "tensorrt") if f.rule == "packed-weights"]
    assert [f for f in lint(load_model(path, unpack=False), "tensorrt") if f.rule == "packed-weights"]
