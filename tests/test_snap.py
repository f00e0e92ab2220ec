"""`snap`: files of any tool on powers of two, accepted by the linter for TensorRT, close to what they were."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from engines.errors import InputError
from engines.lint_view import powers_of_two, quantizers, scale_of
from engines.qdq_graph import read_graph
from engines.same_outputs import outputs_of
from engines.snap import Snapped, SnapTarget, snap_file, snapped_model
from tests.bad_models import BAD_MODELS
from tests.onnx_nets import around, residual_net, saved
from tests.peer_models import peer_model

TARGETS: tuple[SnapTarget, ...] = ("tensorrt", "onnxruntime")
NAMES = ("signed", "unsigned", "float weights", "brevitas", "modelopt")


def images_of(model: onnx.ModelProto) -> list[dict[str, npt.NDArray[np.float32]]]:
    """Normal noise for the one input, as the peers calibrated on."""
    given = {tensor.name for tensor in model.graph.initializer}
    (value,) = [value for value in model.graph.input if value.name not in given]
    batch = value.type.tensor_type.shape.dim[0].dim_value or 8
    rng = np.random.default_rng(3)
    return [{value.name: rng.normal(size=(batch, 3, 8, 8)).astype(np.float32)} for _ in range(8 // min(batch, 8))]


def relative_difference(before: onnx.ModelProto, after: onnx.ModelProto) -> float:
    """Root mean square difference of the outputs, in units of their spread."""
    inputs = images_of(before)
    first, second = (np.concatenate([next(iter(o.values())) for o in outputs_of(m, inputs)]) for m in (before, after))
    return float(np.sqrt(np.mean((first - second) ** 2)) / first.std())


def scales_of(model: onnx.ModelProto) -> list[float]:
    graph = read_graph(model)
    found = [scale_of(graph, node) for node in quantizers(graph)]
    return [float(value) for scale in found if scale is not None for value in scale.reshape(-1)]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", NAMES)
def test_every_scale_of_a_peer_becomes_a_power_of_two_and_the_net_stays_close(
    name: str, target: SnapTarget, tmp_path: Path
) -> None:
    model = peer_model(name, tmp_path)
    snapped = snapped_model(model, target)
    assert powers_of_two(np.array(scales_of(snapped.model))).all()
    assert [finding.message for finding in snapped.findings if finding.level == "error"] == []
    assert relative_difference(model, snapped.model) < 0.06
    onnx.checker.check_model(snapped.model, full_check=True)


@pytest.mark.parametrize("name", NAMES)
def test_snapping_a_snapped_file_changes_nothing(name: str, tmp_path: Path) -> None:
    once = snapped_model(peer_model(name, tmp_path))
    twice = snapped_model(once.model)
    assert (twice.activations, twice.weights, twice.biases, twice.clips) == ((), (), {}, {})
    assert twice.model == once.model


@pytest.mark.parametrize(("target", "bits"), [("tensorrt", 8), ("tensorrt", 4), ("onnxruntime", 8), ("onnxruntime", 4)])
def test_our_own_file_is_left_as_it_is(target: SnapTarget, bits: int) -> None:
    model = residual_net(target, 0, bits=bits)
    snapped = snapped_model(model, target)
    assert snapped.model == model
    assert (snapped.activations, snapped.weights, snapped.biases) == ((), (), {})
    assert snapped.kept > 10


def test_relus_that_uint8_stood_for_are_written_out(tmp_path: Path) -> None:
    """onnxruntime leaves a Relu out where the codes end at 0; int8 around 0 does not end there."""
    model = peer_model("unsigned", tmp_path)
    assert [node.op_type for node in model.graph.node if node.op_type == "Relu"] == []
    snapped = snapped_model(model)
    assert sorted(snapped.clips.values()) == ["Relu", "Relu"]
    graph = read_graph(snapped.model)
    for name in snapped.clips:
        quantize = next(node for node in graph.nodes if node.name == name)
        assert graph.producer[quantize.input[0]].op_type == "Relu"
    assert snapped_model(model, "onnxruntime").clips == {}


def quantized_again(
    points: dict[str, np.ndarray | np.generic], nodes: list[onnx.NodeProto] | None = None
) -> onnx.ModelProto:
    """x.values quantized again, to y."""
    made = nodes or [
        helper.make_node("QuantizeLinear", ["x.values", "scale", "point"], ["q"], "again"),
        helper.make_node("DequantizeLinear", ["q", "scale", "point"], ["y"], "again.dq"),
    ]
    return around(made, points, (2, 4, 4), exponent=-3, codes_exponent=None)


def test_end_of_relu6_stays_a_clip() -> None:
    model = quantized_again({"scale": np.float32(6 / 255), "point": np.uint8(0)})
    snapped = snapped_model(model)
    assert snapped.clips == {"again": "Clip"}
    ramp = np.linspace(-9, 9, 32, dtype=np.float32).reshape(1, 2, 4, 4)
    values = outputs_of(snapped.model, [{"input": ramp}])[0]["logits"]
    assert (values.min(), values.max()) == (0, 6)


def test_half_of_the_range_may_be_given_up_for_a_finer_step() -> None:
    model = quantized_again({"scale": np.float32(0.6), "point": np.int8(0)})
    exponents = [snapped_model(model, most_clipped=share).activations[-1].exponents for share in (0.0, 0.15, 0.17)]
    assert exponents == [(0,), (0,), (-1,)]


def test_weights_come_from_the_floats_where_the_file_holds_them(tmp_path: Path) -> None:
    model = peer_model("float weights", tmp_path)
    snapped = snapped_model(model)
    assert {weight.source for weight in snapped.weights} == {"floats"}
    floats = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}["stem.w"]
    graph = read_graph(snapped.model)
    layer = next(node for node in graph.nodes if node.name == "stem")
    dequantize = graph.producer[layer.input[1]]
    codes, scale = (graph.constants[name].astype(np.float64) for name in dequantize.input[:2])
    step = scale.reshape(-1, 1, 1, 1)
    assert np.abs(codes * step - floats).max() <= step.max() / 2
    assert (np.abs(codes).reshape(len(codes), -1).max(1) >= 63).all()  # no step is larger than it has to be
    assert {weight.source for weight in snapped_model(peer_model("signed", tmp_path)).weights} == {"codes"}


def test_inputs_of_a_concat_get_one_scale(tmp_path: Path) -> None:
    snapped = snapped_model(peer_model("signed", tmp_path))
    assert "concat-scales" not in {finding.rule for finding in snapped.findings}


def test_weight_of_a_transposed_convolution_gets_one_step_for_tensorrt() -> None:
    model = BAD_MODELS["conv-transpose-axis"].model()
    snapped = snapped_model(model)
    assert [(weight.node, len(weight.exponents)) for weight in snapped.weights] == [("w", 1)]
    assert "conv-transpose-axis" not in {finding.rule for finding in snapped.findings}


def test_computed_scale_is_left_and_said() -> None:
    snapped = snapped_model(BAD_MODELS["dynamic-scale"].model())
    assert list(snapped.left.values()) == ["its scale is computed"]


def test_codes_that_leave_the_file_stay() -> None:
    model = quantized_again({"scale": np.float32(0.3), "point": np.uint8(0)})
    model.graph.output.append(helper.make_tensor_value_info("q", TensorProto.UINT8, None))
    snapped = snapped_model(model)
    assert snapped.left == {"again": "its codes are an output of the file"}
    assert scales_of(snapped.model)[-1] == pytest.approx(0.3)


def test_clip_of_few_bits_goes_for_tensorrt_and_its_range_stays() -> None:
    """As Brevitas writes 4 bits: the codes end at 7, and so do the values."""
    nodes = [
        helper.make_node("QuantizeLinear", ["x.values", "scale", "point"], ["q"], "again"),
        helper.make_node("Clip", ["q", "low", "high"], ["few"], "clip"),
        helper.make_node("DequantizeLinear", ["few", "scale", "point"], ["y"], "again.dq"),
    ]
    bounds = {"low": np.int8(-8), "high": np.int8(7)}
    model = quantized_again({"scale": np.float32(0.3), "point": np.int8(0), **bounds}, nodes)
    snapped = snapped_model(model)
    moved = snapped.activations[-1]
    assert (moved.node, moved.exponents) == ("again", (-5,))  # 2.4 / 2^-5 is 77 codes
    assert [node.op_type for node in snapped.model.graph.node if node.op_type == "Clip"] == []
    kept = snapped_model(model, "onnxruntime")
    assert kept.activations[-1].exponents == (-1,)
    assert [node.op_type for node in kept.model.graph.node if node.op_type == "Clip"] == ["Clip"]


def test_channel_that_is_nearly_dead_beside_its_bias_gets_a_larger_weight_step() -> None:
    codes, scale = np.full((2, 2, 1, 1), 100, np.int8), np.array([0.3, 3e-12], np.float32)
    nodes = [
        helper.make_node("DequantizeLinear", ["codes", "steps", "zeros"], ["weight"], "w", axis=0),
        helper.make_node("Conv", ["x.values", "weight", "bias"], ["y"], "layer"),
    ]
    constants: dict[str, npt.ArrayLike] = {
        "codes": codes,
        "steps": scale,
        "zeros": np.zeros(2, np.int8),
        "bias": np.array([0.7, 0.7], np.float32),
    }
    snapped = snapped_model(around(nodes, constants, (2, 4, 4)))
    assert snapped.coarser == ("layer",)
    assert [finding.rule for finding in snapped.findings] == []
    (moved,) = snapped.biases.items()
    assert moved[0] == "layer"
    assert moved[1] < 0.5 * 0.3


def test_result_is_written_whole_and_the_file_stays(tmp_path: Path) -> None:
    source, output = saved(peer_model("modelopt", tmp_path), tmp_path), tmp_path / "snapped.onnx"
    before = source.read_bytes()
    snapped = snap_file(source, output)
    assert isinstance(snapped, Snapped)
    assert source.read_bytes() == before
    assert onnx.load(output) == snapped.model
    with pytest.raises(InputError, match="is the file itself"):
        snap_file(source, source)


@pytest.mark.parametrize(
    ("rule", "message"),
    [("not-quantized", "holds no QuantizeLinear"), ("operator-format", "not in QDQ format")],
)
def test_file_without_quantizers_is_refused(rule: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        snapped_model(BAD_MODELS[rule].model())


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("rule", [rule for rule in BAD_MODELS if rule != "external-data"])  # has no weights to read
def test_no_bad_model_ends_in_a_traceback_or_in_a_broken_file(rule: str, target: SnapTarget) -> None:
    model = BAD_MODELS[rule].model()
    before = model.SerializeToString()
    try:
        snapped = snapped_model(model, target)
    except InputError:
        return
    assert model.SerializeToString() == before
    graph = read_graph(snapped.model)
    made = {tensor.name for tensor in snapped.model.graph.initializer} | {"input"}
    for node in graph.nodes:
        assert {name for name in node.input if name} <= made | set(graph.constants), node.name
        made |= set(node.output)
    assert len(snapped.model.graph.output) == len(model.graph.output)
