"""Each rule about layers finds its small bad graph."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import helper

from engines.lint import lint
from tests.onnx_checks import only_finding
from tests.onnx_nets import around, constant_of, residual_net, with_constant, with_input


@pytest.fixture(scope="module")
def trt() -> onnx.ModelProto:
    return residual_net("tensorrt", 0)


@pytest.fixture(scope="module")
def ort() -> onnx.ModelProto:
    return residual_net("onnxruntime", 0)


@pytest.mark.parametrize(("gemm", "layer", "kind"), [(False, "one.b", "Conv"), (True, "logits", "Gemm")])
@pytest.mark.parametrize("target", ["tensorrt", "onnxruntime", None])
def test_a_bias_off_the_accumulator_grid_names_layer_and_channel(
    gemm: bool, layer: str, kind: str, target: str | None
) -> None:
    model = residual_net("tensorrt", 1, gemm=gemm)
    x = {"one.b": "one.a.out", "logits": "mean.out"}[layer]
    steps = constant_of(model, f"{layer}.weight_scale") * constant_of(model, f"{x}.scale")
    bias = constant_of(model, f"{layer}.bias")
    bias[3] = 12.5 * steps[3]
    found = only_finding(with_constant(model, f"{layer}.bias", bias), "bias-grid", target)
    grid = round(np.log2(steps[3]))
    assert found.node == layer
    assert found.message == (
        f"{kind} {layer}: the bias of channel 3 is 12.5 steps of the accumulator grid 2^{grid}, not a whole number."
    )
    bias[[1, 5]] = steps[[1, 5]] / 3
    found = only_finding(with_constant(model, f"{layer}.bias", bias), "bias-grid", target)
    assert "the bias of channel 1 (and 2 more) is 0.333333 steps" in found.message


def test_a_bias_grid_is_followed_through_pools_and_reshapes(trt: onnx.ModelProto) -> None:
    bias = constant_of(trt, "one.a.bias")  # its input comes through the max pool
    bias[0] *= np.float32(1.001)
    bias[0] += np.float32(1e-5)
    assert only_finding(with_constant(trt, "one.a.bias", bias), "bias-grid").node == "one.a"


def test_a_bias_beyond_int32_is_an_error(trt: onnx.ModelProto) -> None:
    steps = constant_of(trt, "last.weight_scale") * constant_of(trt, "pooled.out.scale")
    bias = constant_of(trt, "last.bias")
    bias[2] = steps[2] * np.float32(2.0**31)
    found = only_finding(with_constant(trt, "last.bias", bias), "bias-grid")
    assert "Conv last: the bias of channel 2 is 2.147e+09 steps" in found.message
    assert found.message.endswith("more than int32 holds.")


def test_a_bias_scale_that_is_not_the_product_is_an_error(ort: onnx.ModelProto) -> None:
    model = with_constant(ort, "stem.bias_scale", constant_of(ort, "stem.bias_scale") / 2)
    assert only_finding(model, "bias-grid", "onnxruntime").node == "stem"


def test_a_layer_with_one_quantized_side_is_a_warning(trt: onnx.ModelProto) -> None:
    found = only_finding(with_input(trt, "two.b", 0, "two.a.out.relu"), "one-sided-layer", "tensorrt")
    assert found.level == "warning"
    assert found.message == "Conv two.b: only its weight is quantized, so that it runs in float."
    nodes = [helper.make_node("Conv", ["x.values", "weight"], ["y"], name="float")]
    model = around(nodes, {"weight": np.ones((1, 1, 1, 1), np.float32)}, (1, 2, 2))
    assert "only its input is quantized" in only_finding(model, "one-sided-layer").message


def test_an_unquantized_skip_is_a_warning(trt: onnx.ModelProto) -> None:
    model = with_input(trt, "two.add", 1, "two.down")
    found = only_finding(model, "skip-input", "tensorrt")
    assert found.message == "Add two.add: its skip input two.down is not quantized, so that the Add runs in float."
    assert not [finding for finding in lint(model, "paper") if finding.rule == "skip-input"]


def test_onnxruntime_wants_both_inputs_of_an_add(ort: onnx.ModelProto) -> None:
    found = only_finding(with_input(ort, "one.add", 0, "one.b"), "add-inputs", "onnxruntime")
    assert found.message == "Add one.add: its input one.b is not quantized; onnxruntime then adds in float."


def test_unequal_scales_in_a_concat_are_a_warning(trt: onnx.ModelProto) -> None:
    for name in ("left", "right"):
        trt = with_constant(trt, f"{name}.out.scale", np.float32({"left": 0.25, "right": 2}[name]))
    found = only_finding(trt, "concat-scales", "tensorrt")
    assert found.message == "Concat joined joins tensors with the scales 2^-2, 2^1."


@pytest.mark.parametrize(
    ("opset", "version", "needed"), [(13, 9, 8), (17, 8, None), (19, 9, None), (21, 11, 10), (21, 10, None)]
)
def test_an_ir_version_newer_than_needed_is_an_error(
    trt: onnx.ModelProto, opset: int, version: int, needed: int | None
) -> None:
    model = onnx.ModelProto()
    model.CopyFrom(trt)
    model.opset_import[0].version, model.ir_version = opset, version
    if needed is None:
        assert not [finding for finding in lint(model) if finding.rule == "ir-version"]
    else:
        found = only_finding(model, "ir-version")
        assert f"has IR version {version}, but opset {opset} needs only {needed}" in found.message


def weight_nodes(per_channel: int) -> tuple[onnx.NodeProto, dict[str, npt.ArrayLike]]:
    scales = np.full(per_channel, 0.5, np.float32) if per_channel else np.float32(0.5)
    zeros = np.zeros(per_channel, np.int8) if per_channel else np.int8(0)
    node = helper.make_node("DequantizeLinear", ["codes", "scales", "zeros"], ["weight"], name="w", axis=1)
    return node, {"scales": scales, "zeros": zeros}


def test_a_transpose_behind_a_weights_dequantize_is_a_warning() -> None:
    dequantize, constants = weight_nodes(0)
    nodes = [
        dequantize,
        helper.make_node("Transpose", ["weight"], ["turned"], name="turn", perm=[1, 0]),
        helper.make_node("Flatten", ["x.values"], ["flat"]),
        helper.make_node("MatMul", ["flat", "turned"], ["y"], name="fc"),
    ]
    model = around(nodes, {"codes": np.ones((3, 4), np.int8), **constants}, (1, 2, 2))
    found = only_finding(model, "transposed-weight")
    assert found.message.startswith("MatMul fc reads its weight through Transpose turn behind DequantizeLinear")


def test_a_transposed_convolution_is_quantized_per_tensor() -> None:
    for per_channel in (0, 3):
        dequantize, constants = weight_nodes(per_channel)
        nodes = [dequantize, helper.make_node("ConvTranspose", ["x.values", "weight"], ["y"], name="up")]
        model = around(nodes, {"codes": np.ones((2, 3, 2, 2), np.int8), **constants}, (2, 2, 2))
        if per_channel:
            found = only_finding(model, "conv-transpose-axis", "tensorrt")
            assert found.message.startswith("ConvTranspose up: its weight has 3 scales on axis 1")
        assert not [finding for finding in lint(model, "onnxruntime") if finding.rule == "conv-transpose-axis"]
        assert per_channel or not lint(model, "tensorrt")


def test_the_bias_of_a_transposed_convolution_lies_on_the_accumulator_grid() -> None:
    dequantize, constants = weight_nodes(0)
    nodes = [dequantize, helper.make_node("ConvTranspose", ["x.values", "weight", "bias"], ["y"], name="up")]
    constants |= {"codes": np.ones((2, 3, 2, 2), np.int8), "bias": np.array([0.5, 1.5, -2], np.float32)}
    assert lint(around(nodes, constants, (2, 2, 2))) == []
    constants["bias"] = np.array([0.5, 1.25, -2], np.float32)
    assert only_finding(around(nodes, constants, (2, 2, 2)), "bias-grid").node == "up"


@pytest.mark.parametrize(
    ("attributes", "value", "hits"), [({}, None, 0), ({}, 0.0, 0), ({}, 1.0, 1), ({"mode": "edge"}, None, 0)]
)
def test_padding_with_zeros_or_neighbours_keeps_the_grid(
    attributes: dict[str, str], value: float | None, hits: int
) -> None:
    pad = helper.make_node("Pad", ["x.values", "pads", *["value"] * (value is not None)], ["padded"])
    pad.attribute.extend(helper.make_attribute(name, text) for name, text in attributes.items())
    constants: dict[str, npt.ArrayLike] = {"pads": np.ones(8, np.int64), "value": np.float32(value or 0)}
    weight = np.full((2, 2, 1, 1), 1, np.int8)
    dequantize, more = weight_nodes(0)
    layer = helper.make_node("Conv", ["padded", "weight"], ["y"], name="c")
    model = around([pad, dequantize, layer], {**constants, **more, "codes": weight}, (2, 2, 2))
    assert len([f for f in lint(model) if f.rule == "one-sided-layer"]) == hits
