"""What a builder is handed: the very same network, or one in forms that it takes, with a sentence for each change."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import helper

from engines.build_options import BuildOptions
from engines.int4 import pack_int4
from engines.prepare import prepare
from tests.engine_nets import needs_rtx
from tests.layer_forms import assert_same_codes_twice, layer, refusal
from tests.onnx_nets import around, residual_net

PLAIN = BuildOptions()
SMS = (75, 86, 89, 120)


def test_a_network_that_needs_nothing_is_the_very_same_object() -> None:
    model = residual_net("tensorrt", 0)
    for runtime, sm in (("onnxruntime", None), ("tensorrt", None), ("tensorrt-rtx", 75), ("tensorrt-rtx", 120)):
        prepared = prepare(model, runtime, sm, PLAIN)  # type: ignore[arg-type]
        assert prepared.model is model
        assert prepared.notes == ()


def test_only_turing_with_rtx_gets_products_as_convolutions() -> None:
    model = residual_net("tensorrt", 0, gemm=True)
    assert prepare(model, "tensorrt-rtx", 86, PLAIN).model is model
    assert prepare(model, "tensorrt", None, PLAIN).model is model
    prepared = prepare(model, "tensorrt-rtx", 75, PLAIN)
    assert "Gemm" not in {node.op_type for node in prepared.model.graph.node}
    assert prepared.notes == (
        "Turing has no FP32 matrix product: Gemm logits is written as a 1x1 convolution, or as a sum of products where "
        "nothing is constant.",
    )


@needs_rtx
@pytest.mark.parametrize("sm", SMS)
def test_a_network_with_a_gemm_builds_for_every_gpu(sm: int) -> None:
    model = residual_net("tensorrt", 0, gemm=True)
    assert refusal(prepare(model, "tensorrt-rtx", sm, PLAIN).model, sm) == ""


def test_every_tensorrt_gets_transposed_convolutions_without_strides() -> None:
    model = layer("ConvTranspose", (4, 5, 5), (4, 4, 3, 3), axis=1, strides=[2, 2], dilations=[2, 2])
    for runtime, sm in (("tensorrt", None), ("tensorrt-rtx", 75), ("tensorrt-rtx", 89)):
        prepared = prepare(model, runtime, sm, PLAIN)  # type: ignore[arg-type]
        assert prepared.model is not model
        assert_same_codes_twice(model, prepared.model, (4, 5, 5))
    assert prepare(model, "onnxruntime", None, PLAIN).model is model


def test_weights_stored_in_4_bits_are_unpacked_and_it_is_said() -> None:
    model = residual_net("tensorrt", 0, bits=4)
    packed = pack_int4(model)
    assert packed is not model
    prepared = prepare(packed, "tensorrt-rtx", 75, PLAIN)
    assert onnx.TensorProto.INT4 not in {tensor.data_type for tensor in prepared.model.graph.initializer}
    assert prepared.notes == ("Weights stored in 4 bits are unpacked to INT8, the same codes.",)


def test_int4_linears_are_refused_on_turing_with_a_sentence() -> None:
    model = residual_net("tensorrt", 0)
    prepared = prepare(model, "tensorrt-rtx", 75, BuildOptions(int4_linear=True))
    assert prepared.model is model
    assert prepared.notes[0].startswith("SM 75 has no INT4 (Turing refuses it)")


def test_fp16_rest_says_that_it_found_nothing() -> None:
    model = residual_net("tensorrt", 0)
    prepared = prepare(model, "tensorrt-rtx", 86, BuildOptions(fp16_rest=True))
    assert prepared.model is model
    assert prepared.notes[0].startswith("Nothing computes in FP16")
    assert prepare(model, "onnxruntime", None, BuildOptions(fp16_rest=True)).notes == (
        "onnxruntime computes in FP32 on a CPU what was left in float.",
    )


def test_fp16_comes_before_the_forms_of_turing() -> None:
    """A float product in FP16 needs no other form there."""
    model = layer("Gemm", (12,), (7, 12), transB=1, quantized=False)
    rest = prepare(model, "tensorrt-rtx", 75, BuildOptions(fp16_rest=True))
    assert [node.op_type for node in rest.model.graph.node].count("Gemm") == 1
    assert [node.op_type for node in prepare(model, "tensorrt-rtx", 75, PLAIN).model.graph.node].count("Gemm") == 0


def _awkward(inputs: int, outputs: int, groups: int, function: str) -> onnx.ModelProto:
    """A grouped convolution of C52 and ReLU or SiLU, codes before and behind."""
    rng = np.random.default_rng(0)
    constants: dict[str, npt.ArrayLike] = {
        "w.codes_": rng.integers(-127, 128, (outputs, inputs // groups, 3, 3), dtype=np.int8),
        "w.scale": np.ldexp(np.float32(1), rng.integers(-9, -6, outputs)).astype(np.float32),
        "w.zero": np.zeros(outputs, np.int8),
        "s.scale": np.float32(2.0**-4),
    }
    nodes = [
        helper.make_node("DequantizeLinear", ["w.codes_", "w.scale", "w.zero"], ["w"], axis=0),
        helper.make_node("Conv", ["x.values", "w"], ["c"], "c", group=groups, pads=[1, 1, 1, 1]),
    ]
    if function == "relu":
        nodes.append(helper.make_node("Relu", ["c"], ["y"], "y"))
    else:
        nodes += [
            helper.make_node("QuantizeLinear", ["c", "s.scale", "zero"], ["s.codes"], "s.codes"),
            helper.make_node("DequantizeLinear", ["s.codes", "s.scale", "zero"], ["s"], "s"),
            helper.make_node("Sigmoid", ["s"], ["gate"], "gate"),
            helper.make_node("Mul", ["s", "gate"], ["y"], "y"),
        ]
    return around(nodes, constants, (inputs, 8, 8), exponent=-5, codes_exponent=-4)


_AWKWARD = [(12, 12, 4), (10, 10, 5), (6, 6, 6), (30, 30, 3), (64, 64, 2)]


@needs_rtx
@pytest.mark.parametrize("function", ["relu", "silu"])
@pytest.mark.parametrize(("inputs", "outputs", "groups"), _AWKWARD)
def test_awkward_groups_build_for_every_gpu(inputs: int, outputs: int, groups: int, function: str) -> None:
    """C52."""
    model = _awkward(inputs, outputs, groups, function)
    assert [refusal(prepare(model, "tensorrt-rtx", sm, PLAIN).model, sm) for sm in SMS] == [""] * len(SMS)


@needs_rtx
def test_a_transposed_convolution_in_groups_builds_for_every_gpu() -> None:
    """C52."""
    model = layer("ConvTranspose", (8, 6, 6), (8, 4, 3, 3), axis=None, group=2, strides=[2, 2])
    assert [refusal(prepare(model, "tensorrt-rtx", sm, PLAIN).model, sm) for sm in SMS] == [""] * len(SMS)


@pytest.mark.parametrize(("inputs", "outputs", "groups"), _AWKWARD)
def test_awkward_groups_agree_everywhere(inputs: int, outputs: int, groups: int) -> None:
    """C52."""
    model = _awkward(inputs, outputs, groups, "relu")
    assert_same_codes_twice(model, prepare(model, "tensorrt-rtx", 75, PLAIN).model, (inputs, 8, 8))
