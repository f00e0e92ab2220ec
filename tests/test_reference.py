"""The golden model: exact arithmetic, and the same integers as onnxruntime with and without optimizations."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from engines.errors import InputError
from engines.ort import OrtRunner
from engines.parity import compare_codes, logit_bits
from engines.reference import ReferenceRunner
from engines.reference_ops import OPERATORS
from tests.onnx_checks import three_ways
from tests.onnx_nets import Target, around, constant_of, images, residual_net, saved, with_constant


@settings(max_examples=24)
@given(
    target=st.sampled_from(["tensorrt", "onnxruntime"]),
    seed=st.integers(0, 2**32 - 1),
    bits=st.sampled_from([8, 4]),
    size=st.sampled_from([33, 32]),
    gemm=st.booleans(),
    factor=st.sampled_from([1, 127]),
)
def test_random_nets_give_the_same_integers_in_reference_oracle_and_optimized_onnxruntime(
    target: Target, seed: int, bits: int, size: int, gemm: bool, factor: int
) -> None:
    codes = three_ways(residual_net(target, seed, bits, size, gemm, factor), images(seed, 2, size))
    assert codes["input.codes"].min() == (-128 if target == "tensorrt" else -64)  # saturated
    assert all((array[0] != array[1]).any() for array in codes.values())  # no net that would agree with anything


def test_logits_are_the_reference_values_of_the_head(tmp_path: Path) -> None:
    path = saved(residual_net("tensorrt", 5), tmp_path)
    batch = images(5, 3, 33)
    reference = ReferenceRunner(path)
    logits = reference(batch)
    assert logits.dtype == np.float32
    assert logits.shape == (3, 7)
    assert np.array_equal(logits.view(np.int32).astype(np.int64), reference.codes(batch)["logits"])
    assert np.array_equal(logits, OrtRunner(path)(batch))


def test_an_image_has_the_same_codes_at_every_batch_size(tmp_path: Path) -> None:
    reference = ReferenceRunner(saved(residual_net("onnxruntime", 1, size=32), tmp_path))
    batch = images(1, 11, 32)
    whole = reference.codes(batch)
    for i in (0, 7, 8, 10):
        alone = reference.codes(batch[i : i + 1])
        assert all(np.array_equal(alone[name][0], whole[name][i]) for name in whole)


def test_an_empty_batch_gives_empty_logits_and_codes(tmp_path: Path) -> None:
    reference = ReferenceRunner(saved(residual_net("tensorrt", 2), tmp_path))
    empty = np.zeros((0, 3, 33, 33), np.float32)
    assert reference(empty).shape == (0, 7)
    assert reference.codes(empty)["stem.out.codes"].shape == (0, 8, 17, 17)


def test_a_closed_runner_says_so(tmp_path: Path) -> None:
    reference = ReferenceRunner(saved(residual_net("tensorrt", 2), tmp_path))
    reference.close()
    reference.close()
    with pytest.raises(InputError, match="closed"):
        reference(images(0, 1, 33))


def test_input_rounds_half_to_even_saturates_and_ignores_the_sign_of_zero() -> None:
    model = around([helper.make_node("Identity", ["x.values"], ["y"])], {}, (1, 1, 10), exponent=-1, codes_exponent=-1)
    values = [0.25, 0.75, -0.25, -0.75, -0.0, 63.5, 64.0, -64.25, -64.75, 1e38]
    codes = three_ways(model, np.array(values, np.float32).reshape(1, 1, 1, 10))
    assert codes["x.codes"].reshape(-1).tolist() == [0, 2, 0, -2, 0, 127, 127, -128, -128, 127]


def test_concat_and_add_keep_different_grids_apart() -> None:
    nodes = [
        helper.make_node("AveragePool", ["x.values"], ["mean"], kernel_shape=[3, 3], pads=[1] * 4, count_include_pad=1),
        helper.make_node("Add", ["x.values", "offset"], ["moved"]),
        helper.make_node("Concat", ["mean", "moved", "x.values"], ["joined"], axis=1),
        helper.make_node("Clip", ["joined", "low", "high"], ["clipped"]),
        helper.make_node("Mul", ["clipped", "factor"], ["y"]),
    ]
    constants: dict[str, npt.ArrayLike] = {
        "offset": np.array([0.125, -3.0], np.float32).reshape(1, 2, 1, 1),
        "low": np.float32(-20),
        "high": np.float32(30.25),
        "factor": np.array([1, -0.5, 3, 0.25, 2, 0], np.float32).reshape(1, 6, 1, 1),
    }
    batch = np.random.default_rng(3).integers(-100, 100, (2, 2, 5, 5)).astype(np.float32)
    codes = three_ways(around(nodes, constants, (2, 5, 5), exponent=-1, codes_exponent=-2), batch)
    assert codes["y.codes"].shape == (2, 6, 5, 5)
    assert not codes["y.codes"][:, 5].any()


def test_reshape_and_flatten_carry_per_channel_grids_along() -> None:
    rng = np.random.default_rng(1)
    nodes = [
        helper.make_node("DequantizeLinear", ["codes", "scales", "zeros"], ["weight"], axis=0),
        helper.make_node("Conv", ["x.values", "weight"], ["conv"], kernel_shape=[1, 1]),
        helper.make_node("Reshape", ["conv", "shape"], ["shaped"]),
        helper.make_node("Flatten", ["shaped"], ["flat"]),
        helper.make_node("Gemm", ["flat", "matrix", "bias"], ["y"]),
    ]
    constants: dict[str, npt.ArrayLike] = {
        "codes": rng.integers(-9, 10, (3, 2, 1, 1)).astype(np.int8),
        "scales": np.array([0.5, 2.0, 0.125], np.float32),
        "zeros": np.zeros(3, np.int8),
        "shape": np.array([0, 2, -1], np.int64),
        "matrix": rng.integers(-9, 10, (12, 4)).astype(np.float32) / 8,
        "bias": np.array([0.5, 3, -0.25, 0], np.float32),
    }
    batch = rng.integers(-50, 50, (3, 2, 2, 2)).astype(np.float32)
    codes = three_ways(around(nodes, constants, (2, 2, 2), codes_exponent=3), batch)
    assert codes["y.codes"].shape == (3, 4)


def several_outputs(names: list[str]) -> onnx.ModelProto:
    """Two float results and the input's codes, the outputs in this order."""
    nodes = [
        helper.make_node("GlobalAveragePool", ["x.values"], ["mean"]),
        helper.make_node("Sigmoid", ["x.values"], ["gate"]),
    ]
    model = around(nodes, {}, (2, 3, 3), exponent=-4, codes_exponent=None)
    del model.graph.node[-1]  # the Identity that makes logits
    del model.graph.output[:]
    for name in names:
        kind = onnx.TensorProto.INT8 if name == "x.codes" else onnx.TensorProto.FLOAT
        model.graph.output.append(helper.make_tensor_value_info(name, kind, None))
    return model


def test_several_outputs_are_all_in_the_codes_and_the_first_is_returned(tmp_path: Path) -> None:
    path = saved(several_outputs(["mean", "x.codes", "gate"]), tmp_path)
    batch = images(0, 9, 8)[:, :2, :3, :3]
    runner = ReferenceRunner(path)
    codes = runner.codes(batch)
    assert list(codes) == ["x.codes", "mean", "gate", "logits"]
    assert np.array_equal(codes["logits"], codes["mean"])
    assert np.array_equal(codes["mean"], logit_bits(runner(batch)))
    x = codes["x.codes"].astype(np.float64) / 16
    assert np.array_equal(codes["gate"], logit_bits((1 / (1 + np.exp(-x))).astype(np.float32)))
    assert codes["gate"].shape == (9, 2, 3, 3)
    assert runner.codes(batch[:0])["gate"].shape == (0, 2, 3, 3)


def test_an_output_named_logits_comes_before_the_first(tmp_path: Path) -> None:
    model = several_outputs(["mean", "gate"])
    model.graph.node.append(helper.make_node("Identity", ["gate"], ["logits"]))
    model.graph.output.append(helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, None))
    runner = ReferenceRunner(saved(model, tmp_path))
    batch = images(0, 2, 8)[:, :2, :3, :3]
    assert list(runner.codes(batch)) == ["x.codes", "mean", "gate", "logits"]
    assert runner(batch).shape == (2, 2, 3, 3)


def test_a_single_output_of_any_name_is_the_logits(tmp_path: Path) -> None:
    runner = ReferenceRunner(saved(several_outputs(["gate"]), tmp_path))
    assert list(runner.codes(images(0, 2, 8)[:, :2, :3, :3])) == ["x.codes", "logits"]


def test_an_unsupported_operator_is_named(tmp_path: Path) -> None:
    node = helper.make_node("Hardmax", ["x.values"], ["y"], name="gate")
    with pytest.raises(InputError, match="Hardmax gate is not an operator of the integer reference") as caught:
        ReferenceRunner(saved(around([node], {}, (1, 2, 2)), tmp_path))
    assert len(caught.value.remedy) < 120
    page = (Path(__file__).parents[1] / "docs" / "engines.md").read_text("utf-8")
    listed = page.partition("runs ONNX files with these operators")[2].partition("\n\n")[0]
    assert set(re.findall(r"`(\w+)`", listed)) == set(OPERATORS)


def test_a_node_with_several_outputs_is_named(tmp_path: Path) -> None:
    node = helper.make_node("Dropout", ["x.values"], ["y", "mask"], name="gate")
    with pytest.raises(InputError, match="Dropout gate has 2 outputs, and the integer reference computes one"):
        ReferenceRunner(saved(around([node], {}, (1, 2, 2)), tmp_path))


@pytest.mark.parametrize("scale", [0.3, 129 / 128, 0.0, -0.5])
def test_a_scale_that_is_not_dyadic_is_refused_by_name(scale: float, tmp_path: Path) -> None:
    model = with_constant(residual_net("tensorrt", 0), "stem.weight_scale", np.full(8, scale, np.float32))
    with pytest.raises(InputError, match=r"DequantizeLinear stem\.weight .*scale .* is not a power of two"):
        ReferenceRunner(saved(model, tmp_path))


def test_an_activation_scale_must_be_a_pure_power_of_two(tmp_path: Path) -> None:
    model = with_constant(residual_net("tensorrt", 0), "stem.out.scale", np.float32(0.75))
    runner = ReferenceRunner(saved(model, tmp_path))
    with pytest.raises(InputError, match=r"QuantizeLinear stem\.out\.codes .*scale is not a power of two"):
        runner(images(0, 1, 33))


def test_a_bias_that_no_int64_holds_is_refused_by_layer(tmp_path: Path) -> None:
    bias = np.full(8, 2.0**-60, np.float32)
    runner = ReferenceRunner(saved(with_constant(residual_net("tensorrt", 0), "stem.bias", bias), tmp_path))
    with pytest.raises(InputError, match="Conv stem cannot be computed exactly: its values span more than 60 bits"):
        runner(images(0, 1, 33))


def test_an_off_grid_bias_is_exact_and_moves_codes_of_optimized_onnxruntime_only(tmp_path: Path) -> None:
    model = residual_net("tensorrt", 4, bits=4)
    steps = constant_of(model, "stem.weight_scale") * constant_of(model, "input.scale")
    bias = constant_of(model, "stem.bias")
    path = saved(with_constant(model, "stem.bias", bias + steps / 2), tmp_path)
    batch = images(4, 4, 33)
    reference, oracle = ReferenceRunner(path), OrtRunner(path, oracle=True)
    codes = reference.codes(batch)
    assert compare_codes(codes, oracle.codes(batch), reference.code_names).differing == 0
    moved = compare_codes(codes, OrtRunner(path).codes(batch), reference.code_names)
    assert moved.first is not None
    assert moved.first.tensor == "stem.out.codes"
