"""What Turing refuses is written in forms that it builds, and no code changes."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from engines.errors import InputError
from engines.turing_forms import for_every_gpu, for_turing
from tests.engine_nets import needs_rtx
from tests.layer_forms import assert_same_codes_twice, layer, refusal
from tests.onnx_nets import around

_PRODUCTS: dict[str, tuple[onnx.ModelProto, tuple[int, ...]]] = {
    "Gemm": (layer("Gemm", (12,), (12, 7), axis=1, bias=7), (12,)),
    "Gemm, transposed weight": (layer("Gemm", (12,), (7, 12), bias=7, transB=1), (12,)),
    "Gemm, one scale": (layer("Gemm", (12,), (7, 12), axis=None, transB=1), (12,)),
    "Gemm, scales of its inputs": (layer("Gemm", (12,), (7, 12), axis=1, transB=1), (12,)),
    "MatMul of rows": (layer("MatMul", (12,), (12, 7), axis=1), (12,)),
    "MatMul of tokens": (layer("MatMul", (5, 12), (12, 7), axis=1), (5, 12)),
    "MatMul of images": (layer("MatMul", (2, 5, 12), (12, 7), axis=1), (2, 5, 12)),
    "MatMul, stack of one": (layer("MatMul", (5, 12), (1, 12, 7), axis=None), (5, 12)),
    "MatMul from the left": (layer("MatMul", (12, 5), (7, 12), axis=0, left=True), (12, 5)),
    "MatMul from the left of images": (layer("MatMul", (3, 12, 5), (7, 12), axis=0, left=True), (3, 12, 5)),
    "MatMul with a vector": (layer("MatMul", (5, 12), (12,), axis=None), (5, 12)),
    "MatMul, stack of matrices": (layer("MatMul", (3, 5, 12), (3, 12, 7), axis=None), (3, 5, 12)),
}
_VOLUMES: dict[str, tuple[onnx.ModelProto, tuple[int, ...]]] = {
    "Conv": (layer("Conv", (4, 5, 6, 6), (6, 4, 3, 3, 3), bias=6, pads=[1] * 6), (4, 5, 6, 6)),
    "Conv in groups": (layer("Conv", (4, 5, 6, 6), (6, 2, 2, 3, 3), group=2, strides=[2, 1, 2]), (4, 5, 6, 6)),
    "Conv of one plane": (layer("Conv", (4, 5, 6, 6), (6, 4, 1, 1, 1)), (4, 5, 6, 6)),
    "ConvTranspose": (
        layer("ConvTranspose", (4, 3, 4, 4), (4, 6, 3, 2, 2), axis=1, bias=6, strides=[2, 2, 2], pads=[1, 0, 0] * 2),
        (4, 3, 4, 4),
    ),
    "ConvTranspose in groups": (
        layer("ConvTranspose", (4, 3, 4, 4), (4, 3, 2, 3, 3), axis=None, group=2),
        (4, 3, 4, 4),
    ),
}
_BOTH = {**_PRODUCTS, **{f"3-d {name}": case for name, case in _VOLUMES.items()}}


@pytest.mark.parametrize("name", _BOTH)
def test_turing_forms_keep_every_code(name: str) -> None:
    model, image = _BOTH[name]
    found, notes = for_turing(model)
    assert found is not model
    assert len(notes) == 1
    assert " y is written " in notes[0]
    assert_same_codes_twice(model, found, image, referred=name != "MatMul with a vector")
    assert {node.op_type for node in found.graph.node}.isdisjoint({"Gemm", "MatMul"})


@needs_rtx
@pytest.mark.parametrize("name", ["Gemm, transposed weight", "MatMul of tokens", "3-d Conv", "3-d ConvTranspose"])
def test_turing_refuses_the_form_and_builds_the_other(name: str) -> None:
    model, _ = _BOTH[name]
    assert "is not supported" in refusal(model, 75)
    assert refusal(for_turing(model)[0], 75) == ""
    assert refusal(model, 86) == ""


@needs_rtx
@pytest.mark.parametrize("name", sorted(_BOTH))
def test_every_rewritten_form_builds_for_turing(name: str) -> None:
    assert refusal(for_turing(_BOTH[name][0])[0], 75) == ""


def test_layers_between_codes_read_codes_again_after_a_move() -> None:
    found, _ = for_turing(_VOLUMES["Conv"][0])
    made = {node.output[0]: node for node in found.graph.node}
    (conv,) = (node for node in found.graph.node if node.op_type == "Conv")
    assert conv.name == "y"  # its name, so that messages still find its module
    assert [made[name].op_type for name in conv.input[:2]] == ["DequantizeLinear", "DequantizeLinear"]
    codes = next(t for t in found.graph.initializer if t.name == made[conv.input[1]].input[0])
    assert (codes.data_type, list(codes.dims)) == (TensorProto.INT8, [6, 12, 3, 3])


@settings(max_examples=30, deadline=None)
@given(
    strides=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    dilations=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    pads=st.tuples(*[st.integers(0, 2)] * 4),
    more=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    groups=st.sampled_from([1, 2]),
)
def test_transposed_convolutions_without_strides_keep_every_code(
    strides: tuple[int, int],
    dilations: tuple[int, int],
    pads: tuple[int, int, int, int],
    more: tuple[int, int],
    groups: int,
) -> None:
    more = (min(more[0], strides[0] - 1), min(more[1], strides[1] - 1))  # all that onnxruntime takes
    model = layer(
        "ConvTranspose",
        (4, 4, 5),
        (4, 3, 3, 2),
        axis=None,
        bias=3 * groups,
        strides=strides,
        dilations=dilations,
        pads=pads,
        output_padding=more,
        group=groups,
    )
    found, notes = for_every_gpu(model)
    is_both = max(strides) > 1 and max(dilations) > 1
    assert (found is model, len(notes)) == (not is_both, int(is_both))
    assert_same_codes_twice(model, found, (4, 4, 5))


@settings(max_examples=30, deadline=None)
@given(
    kind=st.sampled_from(["Conv", "ConvTranspose"]),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 3),
    dilation=st.integers(1, 2),
    pads=st.tuples(st.integers(0, 2), st.integers(0, 2)),
)
def test_convolutions_over_volumes_keep_every_code(
    kind: str, kernel: int, stride: int, dilation: int, pads: tuple[int, int]
) -> None:
    model = layer(
        kind,
        (2, 6, 4, 4),
        (2, 3, kernel, 2, 2) if kind == "ConvTranspose" else (3, 2, kernel, 2, 2),
        axis=1 if kind == "ConvTranspose" else 0,
        strides=[stride, 1, 1],
        dilations=[dilation, 1, 1],
        pads=[pads[0], 0, 1, pads[1], 1, 0],
    )
    assert_same_codes_twice(model, for_turing(for_every_gpu(model)[0])[0], (2, 6, 4, 4))


@needs_rtx
def test_no_gpu_builds_strides_with_dilations_and_all_build_the_other_form() -> None:
    model = layer("ConvTranspose", (4, 5, 5), (4, 4, 3, 3), axis=1, strides=[2, 2], dilations=[2, 2])
    found, (note,) = for_every_gpu(model)
    for sm in (75, 120):
        assert "Strided & Dilated Deconv" in refusal(model, sm)
        assert refusal(found, sm) == ""
    assert note.startswith("TensorRT has no kernel for transposed convolutions with both strides and dilations: ")


def _attention(tokens: int) -> onnx.ModelProto:
    nodes = [
        helper.make_node("Transpose", ["x.values"], ["turned"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["x.values", "turned"], ["y"], "scores"),
    ]
    return around(nodes, {}, (tokens, 8), exponent=-5, codes_exponent=-3)  # type: ignore[arg-type]


def test_products_of_two_activations_are_sums_with_the_same_codes() -> None:
    model = _attention(6)
    found, notes = for_turing(model)
    assert_same_codes_twice(model, found, (6, 8))
    assert "as a sum of products where nothing is constant" in notes[0]


def test_products_of_two_large_activations_are_refused_by_name() -> None:
    with pytest.raises(InputError, match=r"MatMul scores is a matrix product in FP32.*4,194,304 products") as caught:
        for_turing(_attention(1024))
    assert "run on that GPU with TensorRT or onnxruntime" in caught.value.remedy


def test_operators_without_a_form_are_refused_with_their_module() -> None:
    node = helper.make_node("Einsum", ["x.values", "w"], ["y"], "heads", equation="bck,kn->bcn")
    model = around([node], {"w": np.ones((8, 4), np.float32)}, (6, 8), codes_exponent=None)  # type: ignore[arg-type]
    model.metadata_props.add(key="faq_deploy.modules", value=json.dumps({"heads": "blocks.3.mix"}))
    with pytest.raises(InputError, match=r"Einsum heads \(module blocks.3.mix\) computes a matrix product") as caught:
        for_turing(model)
    assert "write the layer with MatMul" in caught.value.remedy


def test_float_products_and_alpha_and_beta_stay_close() -> None:
    rng = np.random.default_rng(0)
    constants = {"w": rng.normal(size=(8, 5)).astype(np.float32), "b": rng.normal(size=(1, 5)).astype(np.float32)}
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["x", "w", "b"], ["y"], "fc", alpha=0.5, beta=3.0)],
        "float",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 5])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    found, _ = for_turing(model)
    onnx.checker.check_model(found, full_check=True)
    x = rng.normal(size=(3, 8)).astype(np.float32)
    (y,) = onnx.reference.ReferenceEvaluator(found).run(None, {"x": x})
    assert np.allclose(y, 0.5 * (x @ constants["w"]) + 3 * constants["b"], atol=1e-5)


def test_what_turing_has_stays_the_very_same_object() -> None:
    model = layer("Conv", (4, 6, 6), (6, 4, 3, 3), bias=6)
    assert for_turing(model) == (model, ())
    assert for_turing(model)[0] is model
    assert for_every_gpu(model)[0] is model


def test_old_operator_sets_are_refused_in_a_sentence() -> None:
    model = layer("Gemm", (12,), (7, 12), transB=1, quantized=False, out=None)
    model.opset_import[0].version = 11
    with pytest.raises(InputError, match="asks for ONNX operator set 11"):
        for_turing(model)
