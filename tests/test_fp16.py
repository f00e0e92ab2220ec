"""FP16 reaches what the user left in float, and nothing between codes; the baseline is all FP16."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from engines.fp16 import fp16_baseline, fp16_rest
from engines.half import to_half
from engines.tensor_kinds import element_type, tensor_kinds
from tests.engine_nets import classifier, needs_rtx
from tests.layer_forms import layer, refusal
from tests.onnx_nets import around, residual_net

HALF, FULL = TensorProto.FLOAT16, TensorProto.FLOAT


def _run(model: onnx.ModelProto, batch: npt.NDArray[np.float32]) -> list[npt.NDArray[np.float32]]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    found: list[npt.NDArray[np.float32]] = session.run(None, {session.get_inputs()[0].name: batch})
    return found


def _noise(*shape: int) -> npt.NDArray[np.float32]:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def _with_float_part(weight: npt.NDArray[np.float32], bias: float = 0.0) -> onnx.ModelProto:
    """Codes, a sigmoid, codes, a float convolution, a ReLU, codes."""
    nodes = [
        helper.make_node("Sigmoid", ["x.values"], ["s"], "function"),
        helper.make_node("QuantizeLinear", ["s", "s.scale", "zero"], ["s.codes"], "s.codes"),
        helper.make_node("DequantizeLinear", ["s.codes", "s.scale", "zero"], ["s.values"], "s.values"),
        helper.make_node("Conv", ["s.values", "w", "b"], ["c"], "float_layer"),
        helper.make_node("Relu", ["c"], ["y"], "behind"),
    ]
    constants = {"s.scale": np.float32(2.0**-7), "w": weight, "b": np.full(len(weight), bias, np.float32)}
    return around(nodes, constants, (4, 6, 6), exponent=-5, codes_exponent=-4)  # type: ignore[arg-type]


def test_a_float_layer_and_what_follows_compute_in_fp16_up_to_the_next_codes() -> None:
    model = _with_float_part(_noise(3, 4, 3, 3))
    found, notes = fp16_rest(model)
    onnx.shape_inference.infer_shapes(found, check_type=True, strict_mode=True)
    kinds = tensor_kinds(found)
    reads = {node.name: [element_type(kinds, name) for name in node.input] for node in found.graph.node}
    assert reads["float_layer"] == [HALF, HALF, HALF]
    assert reads["behind"] == [HALF]
    assert reads["function"] == [FULL]
    for node in found.graph.node:
        if node.op_type == "QuantizeLinear":
            assert reads[node.name][:2] == [FULL, FULL]  # scales stay FP32, and so does what is quantized
    assert notes == (
        "Conv float_layer computes in FP16, with what follows up to the next codes; functions and norms between codes "
        "stay in FP32, since FP16 would move codes.",
    )


def test_codes_before_a_float_layer_do_not_move_and_those_behind_hardly() -> None:
    model = _with_float_part(_noise(3, 4, 3, 3))
    found, _ = fp16_rest(model)
    for each in (model, found):
        for name in ("x.codes", "s.codes", "y.codes"):
            each.graph.output.append(helper.make_tensor_value_info(name, TensorProto.INT8, None))
    batch = _noise(4, 4, 6, 6)
    before, after = _run(model, batch), _run(found, batch)
    assert np.array_equal(before[1], after[1])
    assert np.array_equal(before[2], after[2])
    assert np.abs(before[3].astype(int) - after[3].astype(int)).max() <= 1
    assert len(np.unique(after[3])) > 10


@needs_rtx
@pytest.mark.parametrize("sm", [75, 120])
def test_a_network_with_a_part_in_fp16_builds(sm: int) -> None:
    assert refusal(fp16_rest(_with_float_part(_noise(3, 4, 3, 3)))[0], sm) == ""


@needs_rtx
def test_a_float_matrix_product_in_fp16_builds_for_turing_as_it_is(tmp_path: Path) -> None:
    model = onnx.load(classifier(tmp_path / "net.onnx", gemm=True))
    assert "FP32 GEMM" in refusal(model, 75)
    found, (note,) = fp16_rest(model)
    assert note.startswith("Gemm classifier computes in FP16")
    assert refusal(found, 75) == ""


def test_outputs_and_inputs_stay_float32(tmp_path: Path) -> None:
    model = onnx.load(classifier(tmp_path / "net.onnx", gemm=True))
    found, _ = fp16_rest(model)
    assert [value.type.tensor_type.elem_type for value in (*found.graph.input, *found.graph.output)] == [FULL, FULL]
    batch = _noise(2, 3, 16, 16)
    (wanted,), (logits,) = _run(model, batch), _run(found, batch)
    assert logits.dtype == np.float32
    assert 0 < np.abs(logits - wanted).max() < 2e-3 * np.abs(wanted).max()


def test_a_net_that_is_quantized_throughout_is_the_very_same_object() -> None:
    model = residual_net("tensorrt", 0)
    found, notes = fp16_rest(model)
    assert found is model
    assert notes == (
        "Nothing computes in FP16: no layer with weights was left in float. What lies between codes stays in FP32, "
        "where codes can't move.",
    )


def test_constants_on_a_grid_are_an_exact_part_and_stay() -> None:
    weight = np.zeros((4, 4, 1, 1), np.float32)
    weight[range(4), [2, 0, 3, 1]] = 0.25  # an average, as a layer
    model = _with_float_part(weight)
    assert fp16_rest(model)[0] is model


@pytest.mark.parametrize(
    ("factor", "bias", "why"),
    [
        (1e5, 0.0, "it has weights or a bias over 65504, the largest that FP16 holds"),
        (1.0, 1e5, "it has weights or a bias over 65504, the largest that FP16 holds"),
        (1e-7, 0.0, "all weights of 1 of its 3 output channels are below 2^-14, where FP16 loses bits"),
    ],
)
def test_layers_that_fp16_cannot_hold_stay_in_fp32_by_name(factor: float, bias: float, why: str) -> None:
    weight = _noise(3, 4, 3, 3)
    weight[1] *= factor
    model = _with_float_part(weight, bias)
    found, notes = fp16_rest(model)
    assert found is model
    assert notes[0] == f"Conv float_layer stays in FP32: {why}."


def test_a_dead_channel_is_no_trouble() -> None:
    weight = _noise(3, 4, 3, 3)
    weight[1] = 0.0
    assert "computes in FP16" in fp16_rest(_with_float_part(weight))[1][0]


def test_numbers_out_of_range_become_the_largest() -> None:
    assert to_half(np.array([1e9, -1e9, 1.0], np.float32)).tolist() == [65504.0, -65504.0, 1.0]


def _baseline(target: str) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    model = residual_net(target, 0)  # type: ignore[arg-type]
    return model, fp16_baseline(model)


@pytest.mark.parametrize("target", ["tensorrt", "onnxruntime"])
def test_the_baseline_has_no_quantizers_and_nothing_in_fp32(target: str) -> None:
    _, found = _baseline(target)
    onnx.checker.check_model(found, full_check=True)
    assert not any(node.op_type.endswith("tizeLinear") for node in found.graph.node)
    kinds = tensor_kinds(found)
    full = [node.op_type for node in found.graph.node if any(element_type(kinds, n) == FULL for n in node.input)]
    assert full == ["Cast"]  # of the images; one more casts the logits back
    assert element_type(kinds, "logits") == FULL


@pytest.mark.parametrize("target", ["tensorrt", "onnxruntime"])
def test_the_baseline_computes_about_the_same(target: str) -> None:
    model, found = _baseline(target)
    batch = _noise(2, 3, 33, 33)
    (wanted,), (logits,) = _run(model, batch), _run(found, batch)
    assert logits.shape == wanted.shape
    assert np.corrcoef(logits.ravel(), wanted.ravel())[0, 1] > 0.8  # nothing clips where codes did


@needs_rtx
@pytest.mark.parametrize("sm", [75, 86, 89, 120])
def test_the_baseline_builds_for_every_gpu(sm: int) -> None:
    assert refusal(_baseline("tensorrt")[1], sm) == ""


def test_the_baseline_of_a_float_net_is_that_net_in_fp16() -> None:
    model = layer("Conv", (4, 6, 6), (6, 4, 3, 3), quantized=False, out=None)
    found = fp16_baseline(model)
    weight = next(tensor for tensor in found.graph.initializer if list(tensor.dims) == [6, 4, 3, 3])
    assert weight.data_type == HALF
