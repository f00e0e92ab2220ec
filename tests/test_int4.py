"""4-bit weights of linear layers stay in INT4 in an engine: the same integers, or a sentence that says why not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from engines.errors import InputError
from engines.host import RuntimeName
from engines.int4 import int4_refused, linears_as_int4
from engines.profile import DEFAULT_PROFILE
from engines.qdq_graph import load_model, read_graph
from engines.tensorrt import build_rtx
from faq_deploy.onnx_export import export_onnx
from tests.engine_nets import needs_rtx
from tests.int4_nets import batch_of, exported, four_bit, plain_net, types, unoptimized
from tests.nets import Inverted, with_statistics
from tests.quantized import images, make_recipe, quantized_net


@pytest.mark.parametrize("target", ["tensorrt", "onnxruntime"])
@pytest.mark.parametrize("bits", [8, 4])
def test_linear_layers_in_int4_give_identical_logits(target: str, bits: int, tmp_path: Path) -> None:
    model = load_model(exported(tmp_path, target, bits))
    made, notes = linears_as_int4(model)
    onnx.checker.check_model(made, full_check=True)
    kind = "Conv" if target == "tensorrt" else "Gemm"
    assert notes == (
        f"{kind} fc (module fc) keeps its 4-bit weights in INT4 (40 bytes less). It computes in FP32 from the same "
        "codes; only linear layers are stored in INT4.",
    )
    assert {name for name, kind in types(made).items() if kind == TensorProto.INT4} == {
        "fc.int4_codes",
        "fc.int4_zero_point",
    }
    before, after = read_graph(model), read_graph(made)
    old, new = before.constants["fc.weight_codes"], after.constants["fc.int4_codes"]
    assert np.array_equal(new.astype(np.int8), old.reshape(5, 16))
    assert next(node for node in after.nodes if node.name == "fc").op_type == "Gemm"
    batch = images(5, seed=3).numpy()
    assert np.array_equal(unoptimized(made, batch), unoptimized(model, batch))


def test_wide_codes_stay_in_int8_and_the_note_says_how_to_get_four_bits(tmp_path: Path) -> None:
    model = load_model(exported(tmp_path, int4_linear=False))
    made, notes = linears_as_int4(model)
    assert made is model
    assert notes == (
        "Conv fc (module fc) has 8-bit codes: nothing is quantized again after training; quantize with --int4-linear.",
    )


def test_a_convolution_over_more_than_one_place_is_no_linear_layer(tmp_path: Path) -> None:
    model = load_model(exported(tmp_path, bits=4))
    made, _ = linears_as_int4(model)
    kinds = [node.op_type for node in made.graph.node]
    assert kinds.count("Conv") == [node.op_type for node in model.graph.node].count("Conv") - 1


def test_a_kernel_over_all_of_an_image_becomes_a_product() -> None:
    """A convolution of 3x3 over 3x3, and its codes in the order of the flattened image."""
    codes = four_bit((4, 2, 3, 3))
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "grid", "zero"], ["x.codes"], "q"),
        helper.make_node("DequantizeLinear", ["x.codes", "grid", "zero"], ["x.values"], "dq"),
        helper.make_node("DequantizeLinear", ["codes", "scale", "points"], ["w"], "w", axis=0),
        helper.make_node("Conv", ["x.values", "w", "bias"], ["y"], "head"),
    ]
    constants: dict[str, npt.ArrayLike] = {
        "grid": np.float32(0.25),
        "zero": np.int8(0),
        "codes": codes,
        "scale": np.array([0.5, 0.25, 2.0, 1.0], np.float32),
        "points": np.zeros(4, np.int8),
        "bias": np.arange(4, dtype=np.float32),
    }
    graph = helper.make_graph(
        nodes,
        "whole",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 2, 3, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4, 1, 1])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    made, _ = linears_as_int4(model)
    assert [node.op_type for node in made.graph.node][2:] == ["DequantizeLinear", "Flatten", "Gemm", "Unsqueeze"]
    batch = np.random.default_rng(0).normal(size=(5, 2, 3, 3)).astype(np.float32)
    assert unoptimized(made, batch).shape == (5, 4, 1, 1)
    assert np.array_equal(unoptimized(made, batch), unoptimized(model, batch))


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("shape", [(4, 6), (5, 6), (6, 5)])
@pytest.mark.parametrize("per_channel", [False, True])
def test_gemm_is_turned_where_only_its_other_dimension_is_even(
    shape: tuple[int, int], transposed: bool, per_channel: bool
) -> None:
    outputs = shape[0 if transposed else 1]
    scale = np.exp2(np.arange(outputs) % 3).astype(np.float32) if per_channel else None
    axis = (0 if transposed else 1) if per_channel else None
    model = plain_net("Gemm", four_bit(shape), transposed=transposed, scale=scale, axis=axis)
    made, notes = linears_as_int4(model)
    assert "keeps its 4-bit weights in INT4" in notes[0]
    codes = next(tensor for tensor in made.graph.initializer if tensor.name == "fc.int4_codes")
    assert codes.dims[-1] % 2 == 0
    assert np.array_equal(unoptimized(made, batch_of(model)), unoptimized(model, batch_of(model)))


@pytest.mark.parametrize(
    ("kind", "shape", "options", "why"),
    [
        ("Gemm", (5, 7), {}, "INT4 needs an even last dimension, and its matrix is 7 x 5"),
        ("MatMul", (6, 5), {}, "INT4 needs an even last dimension, and its matrix is 6 x 5"),
        ("MatMul", (4, 6), {"point": np.int8(2)}, "its zero point is not 0"),
        ("MatMul", (4, 6), {"scale": np.ones(4, np.float32), "axis": 0}, "its scales don't belong to its outputs"),
    ],
)
def test_what_int4_cannot_hold_stays_in_int8_and_is_named(
    kind: str, shape: tuple[int, int], options: dict[str, object], why: str
) -> None:
    model = plain_net(kind, four_bit(shape), **options)  # type: ignore[arg-type]
    made, notes = linears_as_int4(model)
    assert made is model
    assert notes[0] == f"{kind} fc stays in INT8: {why}."


def test_block_scales_are_kept_where_the_file_has_them() -> None:
    scale = np.exp2(np.arange(12) % 4).reshape(2, 6).astype(np.float32)
    model = plain_net("MatMul", four_bit((8, 6)), scale=scale, axis=0, block=4)
    made, _ = linears_as_int4(model)
    dequantize = next(node for node in made.graph.node if node.output[0] == "fc.int4")
    assert {a.name: a.i for a in dequantize.attribute} == {"axis": 0, "block_size": 4}
    assert np.array_equal(unoptimized(made, batch_of(model)), unoptimized(model, batch_of(model)))


def test_a_file_that_would_mean_something_else_with_int4_stays_as_it_is() -> None:
    model = plain_net("Gemm", four_bit((4, 6)), opset_version=13)
    model.graph.node.append(helper.make_node("RoiAlign", ["y", "rois", "batch"], ["z"], "align"))
    model.graph.output[0].name = "z"
    made, notes = linears_as_int4(model)
    assert made is model
    assert notes == (
        "Linear layers stay in INT8: RoiAlign align means something else in ONNX operator set 21, which INT4 needs.",
    )


@pytest.mark.parametrize(
    ("runtime", "sm", "says"),
    [
        ("onnxruntime", None, "onnxruntime has no INT4 layers"),
        ("tensorrt-rtx", 75, "SM 75 has no INT4"),
        ("tensorrt", 75, "SM 75 has no INT4"),
        ("tensorrt", None, None),
        ("tensorrt-rtx", 86, None),
        ("tensorrt-rtx", 120, None),
    ],
)
def test_turing_and_onnxruntime_refuse_int4(runtime: RuntimeName, sm: int | None, says: str | None) -> None:
    refused = int4_refused(runtime, sm)
    assert (refused is None) if says is None else (refused is not None and refused.startswith(says))


def saved(model: onnx.ModelProto, folder: Path) -> Path:
    path = folder / "int4.onnx"
    path.write_bytes(model.SerializeToString())
    return path


@needs_rtx
@pytest.mark.parametrize("sm", [86, 89, 120])
@pytest.mark.parametrize("bits", [8, 4])
def test_int4_linear_layers_build_ahead_of_time(bits: int, sm: int, tmp_path: Path) -> None:
    path = saved(linears_as_int4(load_model(exported(tmp_path, bits=bits)))[0], tmp_path)
    assert build_rtx(path, sm, DEFAULT_PROFILE, tmp_path / "engine").path.stat().st_size > 0


@needs_rtx
def test_every_form_that_is_written_builds(tmp_path: Path) -> None:
    models = [
        plain_net("MatMul", four_bit((64, 32))),
        plain_net("MatMul", four_bit((64, 32)), scale=np.ones(32, np.float32), axis=1),
        plain_net("MatMul", four_bit((128, 32)), scale=np.ones((2, 32), np.float32), axis=0, block=64),
        plain_net("Gemm", four_bit((64, 33)), scale=np.ones(33, np.float32), axis=1),
        plain_net("Gemm", four_bit((32, 64)), transposed=True, scale=np.ones(32, np.float32), axis=0),
        plain_net("Gemm", four_bit((32, 63)), transposed=True, scale=np.ones(32, np.float32), axis=0),
    ]
    for model in models:
        made, notes = linears_as_int4(model)
        assert "keeps its 4-bit weights in INT4" in notes[0]
        assert build_rtx(saved(made, tmp_path), 86, DEFAULT_PROFILE, tmp_path / "engine").path.stat().st_size > 0


@needs_rtx
def test_turing_refuses_int4_and_builds_the_same_net_in_int8(tmp_path: Path) -> None:
    path = exported(tmp_path)
    int4 = saved(linears_as_int4(load_model(path))[0], tmp_path)
    with pytest.raises(InputError, match="int4"):
        build_rtx(int4, 75, DEFAULT_PROFILE, tmp_path / "engine")
    assert build_rtx(path, 75, DEFAULT_PROFILE, tmp_path / "engine").path.stat().st_size > 0


def test_squeeze_and_excitation_in_four_bits_keeps_its_logits(tmp_path: Path) -> None:
    stored = quantized_net(with_statistics(Inverted()), make_recipe("tensorrt", 4))
    path = tmp_path / "model.onnx"
    export_onnx(stored, path, images(4).numpy(), versions={}, checkpoint_sha256="", packed=True)
    model = load_model(path)
    made, _ = linears_as_int4(model)
    batch = images(5, seed=3).numpy()
    assert np.array_equal(unoptimized(made, batch), unoptimized(model, batch))
