"""Each rule about scales, zero points, types and clips finds its small bad graph."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper

from engines.lint import lint
from tests.onnx_checks import only_finding
from tests.onnx_nets import around, constant_of, residual_net, with_constant


@pytest.fixture(scope="module")
def trt() -> onnx.ModelProto:
    return residual_net("tensorrt", 0)


@pytest.fixture(scope="module")
def ort() -> onnx.ModelProto:
    return residual_net("onnxruntime", 0)


@pytest.mark.parametrize("value", [0.0, -1.0, np.nan, np.inf, 1e-40])
def test_a_scale_that_is_not_positive_is_an_error_with_its_channel(trt: onnx.ModelProto, value: float) -> None:
    scales = constant_of(trt, "two.a.weight_scale")
    scales[5] = value
    found = only_finding(with_constant(trt, "two.a.weight_scale", scales), "scale-positive")
    assert (found.level, found.node) == ("error", "two.a.weight")
    assert "DequantizeLinear two.a.weight: the scale of channel 5 is" in found.message


def test_a_computed_scale_is_an_error() -> None:
    nodes = [
        helper.make_node("Mul", ["half", "x.values"], ["computed"]),
        helper.make_node("QuantizeLinear", ["x.values", "computed", "zero"], ["codes"], name="q"),
        helper.make_node("DequantizeLinear", ["codes", "half", "zero"], ["y"], name="dq"),
    ]
    found = only_finding(around(nodes, {"half": np.float32(0.5)}, (1, 2, 2)), "dynamic-scale")
    assert found.message == "QuantizeLinear q: the scale is computed, not a constant."


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.75, "is 3 x 2^-2: dyadic (k x 2^l with k <= 127)."), (0.3, "is 0.3: no power of two.")],
)
def test_scales_off_the_powers_of_two_are_information(trt: onnx.ModelProto, value: float, text: str) -> None:
    model = with_constant(trt, "one.out.scale", np.float32(value))
    found = [finding for finding in lint(model, "tensorrt") if finding.rule == "scale-power-of-two"]
    assert [finding.node for finding in found] == ["one.out.codes", "one.out.values"]
    assert found[0].level == "info"
    assert found[0].message == f"QuantizeLinear one.out.codes: the scale {text}"


def test_half_precision_scales_are_information() -> None:
    nodes = [helper.make_node("DequantizeLinear", ["codes", "half", "zero"], ["weight"], name="w")]
    nodes.append(helper.make_node("Add", ["x.values", "weight"], ["y"]))
    model = around(nodes, {"codes": np.array([1, 2], np.int8), "half": np.float16(0.5)}, (1, 1, 2))
    assert (
        only_finding(model, "half-precision-scale").message == "DequantizeLinear w: the scale is float16, not float32."
    )


def test_tensorrt_refuses_zero_points_unsigned_codes_and_clips_on_codes(ort: onnx.ModelProto) -> None:
    found = {finding.rule: finding for finding in reversed(lint(ort, "tensorrt"))}
    assert found["zero-point"].message == "QuantizeLinear input.wide: the zero point is 64; TensorRT takes 0 only."
    assert found["unsigned-codes"].message.startswith("QuantizeLinear input.wide works on uint8 codes")
    assert found["clip-on-codes"].message.startswith("Clip input.codes stands between Q and DQ")
    assert {finding.level for finding in found.values()} == {"error"}
    assert not {"zero-point", "unsigned-codes", "clip-on-codes"} & {finding.rule for finding in lint(ort)}


def test_a_clip_where_int8_saturates_by_itself_is_an_error() -> None:
    model = residual_net("tensorrt", 0, bits=4)
    high = constant_of(model, "one.out.high")
    found = only_finding(with_constant(model, "one.out.high", high / 15 * 127), "float-clip", "tensorrt")
    assert found.message == "Clip one.out.clipped clips to codes 0..127, where int8 saturates by itself."
    for top in (7, 96):  # fewer bits, and a ReLU6 on the grid of 8
        assert lint(with_constant(model, "one.out.high", high / 15 * top), "tensorrt") == []


def test_a_clip_that_is_not_quantized_next_is_named() -> None:
    nodes = [
        helper.make_node("Clip", ["x.values", "low", "high"], ["clipped"], name="six"),
        helper.make_node("Relu", ["clipped"], ["y"]),
    ]
    model = around(nodes, {"low": np.float32(0), "high": np.float32(6)}, (1, 2, 2))
    found = only_finding(model, "float-clip", "tensorrt")
    assert found.message == "Clip six has no two constant bounds and a QuantizeLinear behind it."


def test_a_missing_zero_point_is_an_error_below_opset_21(trt: onnx.ModelProto) -> None:
    model = onnx.ModelProto()
    model.CopyFrom(trt)
    (node,) = (node for node in model.graph.node if node.name == "one.a.weight")
    del node.input[2:]
    found = only_finding(model, "explicit-zero-point")
    assert found.level == "error"
    assert found.message.startswith("DequantizeLinear one.a.weight has no zero point")
    model.opset_import[0].version = 21
    assert not [finding for finding in lint(model) if finding.rule == "explicit-zero-point"]


def test_per_channel_activations_are_an_error(trt: onnx.ModelProto) -> None:
    model = with_constant(trt, "stem.out.scale", np.full(8, 0.5, np.float32))
    found = [finding for finding in lint(model) if finding.rule == "per-channel-activation"]
    assert [finding.node for finding in found] == ["stem.out.codes", "stem.out.values"]
    assert found[0].message == "QuantizeLinear stem.out.codes has 8 scales for an activation; engines take one."


def test_scales_of_shape_one_are_a_warning_for_activations_only(trt: onnx.ModelProto) -> None:
    model = with_constant(trt, "stem.out.scale", constant_of(trt, "stem.out.scale").reshape(1))
    found = [finding for finding in lint(model) if finding.rule == "scalar-scale"]
    assert [(finding.node, finding.level) for finding in found] == [
        ("stem.out.codes", "warning"),
        ("stem.out.values", "warning"),
    ]
    assert "the scale has shape (1,) where a scalar is meant" in found[0].message
