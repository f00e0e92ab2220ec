"""Lint: our own files are clean, and each rule finds its small bad graph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import helper

from engines.errors import InputError
from engines.lint import RULES, Finding, lint
from engines.qdq_graph import load_model
from tests.onnx_nets import Target, around, constant_of, residual_net, saved, with_constant, with_input


@pytest.fixture(scope="module")
def trt() -> onnx.ModelProto:
    return residual_net("tensorrt", 0)


@pytest.fixture(scope="module")
def ort() -> onnx.ModelProto:
    return residual_net("onnxruntime", 0)


def one(model: onnx.ModelProto, rule: str, target: str | None = None) -> Finding:
    """The only finding of a rule; nothing worse may be reported beside it unasked."""
    found = [finding for finding in lint(model, target) if finding.rule == rule]
    assert len(found) == 1, found
    assert found[0].level == RULES[rule].level
    assert found[0].remedy.endswith(".")
    return found[0]


@pytest.mark.parametrize("target", ["tensorrt", "onnxruntime"])
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("gemm", [False, True])
def test_our_own_form_is_clean(target: Target, bits: int, gemm: bool) -> None:
    assert lint(residual_net(target, 3, bits=bits, gemm=gemm), target) == []
    assert {finding.level for finding in lint(residual_net(target, 3, bits=bits, gemm=gemm, factor=127), target)} == {
        "info"
    }


def test_errors_come_before_information(trt: onnx.ModelProto) -> None:
    model = with_constant(trt, "stem.out.scale", np.float32(0.3))
    model = with_constant(model, "last.out.scale", np.float32(-1))
    levels = [finding.level for finding in lint(model)]
    assert levels == sorted(levels)  # error, info, warning happen to sort so, and there is no warning
    assert set(levels) == {"error", "info"}


def test_an_unknown_target_is_refused(trt: onnx.ModelProto) -> None:
    with pytest.raises(InputError, match="no target 'tensorRT'"):
        lint(trt, "tensorRT")


@pytest.mark.parametrize("value", [0.0, -1.0, np.nan, np.inf, 1e-40])
def test_a_scale_that_is_not_positive_is_an_error_with_its_channel(trt: onnx.ModelProto, value: float) -> None:
    scales = constant_of(trt, "two.a.weight_scale")
    scales[5] = value
    found = one(with_constant(trt, "two.a.weight_scale", scales), "scale-positive")
    assert (found.level, found.node) == ("error", "two.a.weight")
    assert "DequantizeLinear two.a.weight: the scale of channel 5 is" in found.message


def test_a_computed_scale_is_an_error() -> None:
    nodes = [
        helper.make_node("Mul", ["half", "x.values"], ["computed"]),
        helper.make_node("QuantizeLinear", ["x.values", "computed", "zero"], ["codes"], name="q"),
        helper.make_node("DequantizeLinear", ["codes", "half", "zero"], ["y"], name="dq"),
    ]
    found = one(around(nodes, {"half": np.float32(0.5)}, (1, 2, 2)), "scale-positive")
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
    assert one(model, "half-precision-scale").message == "DequantizeLinear w: the scale is float16, not float32."


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
    found = one(with_constant(model, "one.out.high", high / 15 * 127), "float-clip", "tensorrt")
    assert found.message == "Clip one.out.clipped clips to codes 0..127, where int8 saturates by itself."
    for top in (7, 96):  # fewer bits, and a ReLU6 on the grid of 8
        assert lint(with_constant(model, "one.out.high", high / 15 * top), "tensorrt") == []


def test_a_clip_that_is_not_quantized_next_is_named() -> None:
    nodes = [
        helper.make_node("Clip", ["x.values", "low", "high"], ["clipped"], name="six"),
        helper.make_node("Relu", ["clipped"], ["y"]),
    ]
    model = around(nodes, {"low": np.float32(0), "high": np.float32(6)}, (1, 2, 2))
    found = one(model, "float-clip", "tensorrt")
    assert found.message == "Clip six has no two constant bounds and a QuantizeLinear behind it."


def test_a_missing_zero_point_is_an_error_below_opset_21(trt: onnx.ModelProto) -> None:
    model = onnx.ModelProto()
    model.CopyFrom(trt)
    (node,) = (node for node in model.graph.node if node.name == "one.a.weight")
    del node.input[2:]
    found = one(model, "explicit-zero-point")
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
    found = one(with_constant(model, f"{layer}.bias", bias), "bias-grid", target)
    grid = round(np.log2(steps[3]))
    assert found.node == layer
    assert found.message == (
        f"{kind} {layer}: the bias of channel 3 is 12.5 steps of the accumulator grid 2^{grid}, not a whole number."
    )
    bias[[1, 5]] = steps[[1, 5]] / 3
    found = one(with_constant(model, f"{layer}.bias", bias), "bias-grid", target)
    assert "the bias of channel 1 (and 2 more) is 0.333333 steps" in found.message


def test_a_bias_grid_is_followed_through_pools_and_reshapes(trt: onnx.ModelProto) -> None:
    bias = constant_of(trt, "one.a.bias")  # its input comes through the max pool
    bias[0] *= np.float32(1.001)
    bias[0] += np.float32(1e-5)
    assert one(with_constant(trt, "one.a.bias", bias), "bias-grid").node == "one.a"


def test_a_bias_beyond_int32_is_an_error(trt: onnx.ModelProto) -> None:
    steps = constant_of(trt, "last.weight_scale") * constant_of(trt, "pooled.out.scale")
    bias = constant_of(trt, "last.bias")
    bias[2] = steps[2] * np.float32(2.0**31)
    found = one(with_constant(trt, "last.bias", bias), "bias-grid")
    assert "Conv last: the bias of channel 2 is 2.147e+09 steps" in found.message
    assert found.message.endswith("more than int32 holds.")


def test_a_bias_scale_that_is_not_the_product_is_an_error(ort: onnx.ModelProto) -> None:
    model = with_constant(ort, "stem.bias_scale", constant_of(ort, "stem.bias_scale") / 2)
    assert one(model, "bias-grid", "onnxruntime").node == "stem"


def test_a_layer_with_one_quantized_side_is_a_warning(trt: onnx.ModelProto) -> None:
    found = one(with_input(trt, "two.b", 0, "two.a.out.relu"), "one-sided-layer", "tensorrt")
    assert found.level == "warning"
    assert found.message == "Conv two.b: only its weight is quantized, so that it runs in float."
    nodes = [helper.make_node("Conv", ["x.values", "weight"], ["y"], name="float")]
    model = around(nodes, {"weight": np.ones((1, 1, 1, 1), np.float32)}, (1, 2, 2))
    assert "only its input is quantized" in one(model, "one-sided-layer").message


def test_an_unquantized_skip_is_a_warning(trt: onnx.ModelProto) -> None:
    model = with_input(trt, "two.add", 1, "two.down")
    found = one(model, "skip-input", "tensorrt")
    assert found.message == "Add two.add: its skip input two.down is not quantized, so that the Add runs in float."
    assert not [finding for finding in lint(model, "paper") if finding.rule == "skip-input"]


def test_onnxruntime_wants_both_inputs_of_an_add(ort: onnx.ModelProto) -> None:
    found = one(with_input(ort, "one.add", 0, "one.b"), "add-inputs", "onnxruntime")
    assert found.message == "Add one.add: its input one.b is not quantized; onnxruntime then adds in float."


def test_unequal_scales_in_a_concat_are_a_warning(trt: onnx.ModelProto) -> None:
    for name in ("left", "right"):
        trt = with_constant(trt, f"{name}.out.scale", np.float32({"left": 0.25, "right": 2}[name]))
    found = one(trt, "concat-scales", "tensorrt")
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
        found = one(model, "ir-version")
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
    found = one(model, "transposed-weight")
    assert found.message.startswith("MatMul fc reads its weight through Transpose turn behind DequantizeLinear")


def test_a_transposed_convolution_is_quantized_per_tensor() -> None:
    for per_channel in (0, 3):
        dequantize, constants = weight_nodes(per_channel)
        nodes = [dequantize, helper.make_node("ConvTranspose", ["x.values", "weight"], ["y"], name="up")]
        model = around(nodes, {"codes": np.ones((2, 3, 2, 2), np.int8), **constants}, (2, 2, 2))
        if per_channel:
            found = one(model, "conv-transpose-axis", "tensorrt")
            assert found.message.startswith("ConvTranspose up: its weight has 3 scales on axis 1")
        assert not [finding for finding in lint(model, "onnxruntime") if finding.rule == "conv-transpose-axis"]
        assert per_channel or not lint(model, "tensorrt")


@pytest.mark.parametrize(
    ("kernel", "pad", "include", "count"),
    [
        ([2, 3], 0, 0, 6),
        ([3, 3], 0, 0, None),
        ([4, 4], 0, 0, None),
        ([3, 3], 1, 0, 6),
        ([3, 3], 1, 1, None),
        ([2, 5], 0, 0, 10),
    ],
)
def test_averages_that_can_tie_are_information(kernel: list[int], pad: int, include: int, count: int | None) -> None:
    node = helper.make_node(
        "AveragePool", ["x.values"], ["y"], name="pool", kernel_shape=kernel, pads=[pad] * 4, count_include_pad=include
    )
    model = around([node], {}, (1, 5, 6))
    if count is None:
        assert lint(model) == []
    else:
        assert one(model, "pool-ties").message.startswith(f"AveragePool pool averages {count} values, which can tie")


def test_global_averages_are_counted_by_shape_inference() -> None:
    node = helper.make_node("GlobalAveragePool", ["x.values"], ["y"], name="mean")
    assert lint(around([node], {}, (1, 7, 7))) == []
    assert "averages 36 values" in one(around([node], {}, (1, 6, 6)), "pool-ties").message


def test_ceil_mode_over_counted_padding_is_an_error() -> None:
    for include in (0, 1):
        node = helper.make_node(
            "AveragePool",
            ["x.values"],
            ["y"],
            name="pool",
            kernel_shape=[2, 2],
            strides=[2, 2],
            ceil_mode=1,
            count_include_pad=include,
        )
        found = [finding for finding in lint(around([node], {}, (1, 5, 5))) if finding.rule == "pool-ceil-mode"]
        assert [finding.node for finding in found] == ["pool"] * include


def test_external_data_has_the_findings_of_its_embedded_twin(trt: onnx.ModelProto, tmp_path: Path) -> None:
    bad = with_constant(trt, "stem.weight_scale", np.zeros(8, np.float32))
    embedded = lint(load_model(saved(bad, tmp_path)))
    apart = tmp_path / "apart" / "model.onnx"
    apart.parent.mkdir()
    onnx.save(bad, apart, save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert lint(load_model(apart)) == embedded
    assert [finding.rule for finding in embedded] == ["scale-positive"]


@pytest.mark.parametrize("location", ["absent.bin", "../outside.bin", "short.bin"])
def test_external_data_that_is_missing_short_or_outside_is_refused(
    trt: onnx.ModelProto, location: str, tmp_path: Path
) -> None:
    path = tmp_path / "folder" / "model.onnx"
    path.parent.mkdir()
    onnx.save(trt, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    content = (path.parent / "weights.bin").read_bytes()
    (tmp_path / "outside.bin").write_bytes(content)
    (path.parent / "short.bin").write_bytes(content[: len(content) // 2])
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            entry.value = location if entry.key == "location" else entry.value
    path.write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match=r"model\.onnx keeps weights in another file that could not be read"):
        load_model(path)
