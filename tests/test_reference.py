"""The golden model: exact arithmetic, and the same integers as onnxruntime with and without optimizations."""

from __future__ import annotations

import tempfile
from fractions import Fraction
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from engines.errors import InputError
from engines.fixed_tensor import FixedTensor, Refused, add, divided, from_floats, round_half_even, to_float32
from engines.ort import OrtRunner
from engines.parity import compare_codes
from engines.reference import ReferenceRunner
from engines.windows import Pool, convolve, product
from tests.onnx_nets import Target, around, constant_of, images, residual_net, saved, with_constant

CODES = st.integers(-(2**40), 2**40)


def fixed(code: int, exponent: int, divisor: int = 1) -> FixedTensor:
    tensor = FixedTensor(np.array([code], np.int64), np.array(exponent, np.int64))
    return divided(tensor, divisor)


def exact(tensor: FixedTensor) -> list[Fraction]:
    exponents = np.broadcast_to(tensor.exponent, tensor.codes.shape).reshape(-1).tolist()
    return [
        Fraction(code) * Fraction(2) ** exponent / tensor.divisor
        for code, exponent in zip(tensor.codes.reshape(-1).tolist(), exponents, strict=True)
    ]


def three_ways(model: onnx.ModelProto, batch: npt.NDArray[np.float32]) -> dict[str, npt.NDArray[np.int64]]:
    """Codes of the reference, after asserting that onnxruntime has the same, optimized or not."""
    with tempfile.TemporaryDirectory() as folder:
        path = saved(model, Path(folder))
        reference = ReferenceRunner(path)
        codes = reference.codes(batch)
        for oracle in (True, False):
            other = OrtRunner(path, oracle=oracle, threads=1, with_codes=True).codes(batch)
            parity = compare_codes(codes, other, reference.code_names)
            assert parity.differing == 0, (oracle, parity)
            assert np.array_equal(codes["logits"], other["logits"]), oracle
    return codes


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


@given(code=CODES, exponent=st.integers(-40, 10), target=st.integers(-20, 20), divisor=st.integers(1, 64))
def test_rounding_is_half_to_even_of_the_exact_quotient(code: int, exponent: int, target: int, divisor: int) -> None:
    tensor = fixed(code, exponent, divisor)
    (value,) = exact(tensor)
    assert value == Fraction(code) * Fraction(2) ** exponent / divisor
    try:
        rounded = round_half_even(tensor, np.array(target, np.int64)).tolist()
    except Refused:
        assert exponent - target > 15  # the code would have had more than 60 bits
    else:
        assert rounded == [round(value / Fraction(2) ** target)]  # Python rounds a Fraction half to even


@pytest.mark.parametrize(
    ("halves", "divisor", "expected"),
    [
        ([-5, -3, -1, 1, 3, 5], 2, [-2, -2, 0, 0, 2, 2]),
        ([3, 9, 15, -3, -9, 4, 2], 6, [0, 2, 2, 0, -2, 1, 0]),
        ([24, 25, 73, 74, -25], 49, [0, 1, 1, 2, -1]),
    ],
)
def test_ties_go_to_the_even_code(halves: list[int], divisor: int, expected: list[int]) -> None:
    tensor = divided(FixedTensor(np.array(halves, np.int64), np.zeros((), np.int64)), divisor)
    assert round_half_even(tensor, np.zeros((), np.int64)).tolist() == expected


@given(code=st.integers(-(2**60), 2**60), shift=st.integers(0, 400))
def test_steps_far_apart_round_to_zero_not_to_garbage(code: int, shift: int) -> None:
    expected = round(Fraction(code, 2**shift))
    assert round_half_even(fixed(code, -shift), np.zeros((), np.int64)).tolist() == [expected]


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1))
def test_every_float32_is_held_exactly(values: list[float]) -> None:
    array = np.array(values, np.float32)
    tensor = from_floats(array)
    assert exact(tensor) == [Fraction(value) for value in array.tolist()]
    assert np.array_equal(to_float32(tensor), array)


@given(code=st.integers(-(2**53), 2**53), divisor=st.integers(1, 2**20))
def test_outputs_are_rounded_once(code: int, divisor: int) -> None:
    nearest = to_float32(fixed(code, 0, divisor))
    value = Fraction(code, divisor)
    distance = abs(Fraction(float(nearest[0])) - value)
    for neighbour in (np.nextafter(nearest, np.float32(np.inf)), np.nextafter(nearest, np.float32(-np.inf))):
        assert distance <= abs(Fraction(float(neighbour[0])) - value)


@given(a=CODES, b=CODES, e_a=st.integers(-9, 9), e_b=st.integers(-9, 9), n_a=st.integers(1, 9), n_b=st.integers(1, 9))
def test_sums_are_exact(a: int, b: int, e_a: int, e_b: int, n_a: int, n_b: int) -> None:
    left, right = fixed(a, e_a, n_a), fixed(b, e_b, n_b)
    assert exact(add(left, right)) == [exact(left)[0] + exact(right)[0]]


def test_a_dead_channel_on_a_tiny_grid_does_not_push_the_other_side_out() -> None:
    exponents = np.array([-100, 0], np.int64).reshape(1, 2)
    dead = FixedTensor(np.array([[0, 3]], np.int64), exponents)
    other = FixedTensor(np.array([[100, 100]], np.int64), np.zeros((), np.int64))
    assert exact(add(dead, other)) == [100, 103]


def test_grids_too_far_apart_are_refused() -> None:
    with pytest.raises(Refused, match="60 bits"):
        add(fixed(1, -100), fixed(1, 0))


@pytest.mark.parametrize(("size", "dtype"), [(2**20, np.float64), (2**27, np.int64)])
def test_large_sums_are_exact_where_float64_would_round(size: int, dtype: type[np.generic]) -> None:
    rng = np.random.default_rng(0)
    x, weight = rng.integers(-size, size, (2, 40)), rng.integers(-size, size, (3, 40))
    expected = [[sum(a * b for a, b in zip(u, v, strict=True)) for v in weight.tolist()] for u in x.tolist()]
    assert product(x, weight).tolist() == expected
    pool = Pool((1, 1), (1, 1), (0, 0, 0, 0), (1, 1), (1, 1))
    assert convolve(x[:, :, None, None], weight[:, :, None, None], pool, 1)[:, :, 0, 0].tolist() == expected
    if dtype is np.int64:
        assert (x.astype(float) @ weight.astype(float).T).astype(np.int64).tolist() != expected
    with pytest.raises(Refused, match="60 bits"):
        product(x * 2**20, weight * 2**20)


WINDOWS = [(3, 2, 1), (2, 2, 0), (3, 3, 1), (2, 3, 1), (3, 1, 1), (3, 2, 0)]


@pytest.mark.parametrize("ceil_mode", [0, 1])
@pytest.mark.parametrize(("kernel", "stride", "pad"), WINDOWS)
@pytest.mark.parametrize("kind", ["MaxPool", "AveragePool"])
def test_pools_agree_with_onnxruntime_at_every_border(
    kind: str, ceil_mode: int, kernel: int, stride: int, pad: int
) -> None:
    three_ways(pool_net(kind, kernel, stride, pad, ceil_mode=ceil_mode), small_images())


@pytest.mark.parametrize(("kernel", "stride", "pad"), WINDOWS)
def test_averages_over_the_padding_agree_with_onnxruntime(kernel: int, stride: int, pad: int, tmp_path: Path) -> None:
    three_ways(pool_net("AveragePool", kernel, stride, pad, count_include_pad=1), small_images())
    # with ceil_mode too, optimized onnxruntime 1.32 divides by whole windows: lint refuses that, the oracle is right
    path = saved(pool_net("AveragePool", kernel, stride, pad, ceil_mode=1, count_include_pad=1), tmp_path)
    codes, oracle = ReferenceRunner(path).codes(small_images()), OrtRunner(path, oracle=True).codes(small_images())
    assert compare_codes(codes, oracle, ["x.codes", "y.codes"]).differing == 0


def pool_net(kind: str, kernel: int, stride: int, pad: int, **more: int) -> onnx.ModelProto:
    node = helper.make_node(kind, ["x.values"], ["y"])
    window: dict[str, int | list[int]] = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": [pad] * 4}
    node.attribute.extend(helper.make_attribute(name, value) for name, value in (window | more).items())
    return around([node], {}, (2, 5, 6), codes_exponent=-1)


def small_images() -> npt.NDArray[np.float32]:
    return np.random.default_rng(0).integers(-128, 128, (2, 2, 5, 6)).astype(np.float32)


def test_average_pool_with_ceil_mode_has_torchs_values() -> None:
    node = helper.make_node(
        "AveragePool",
        ["x.values"],
        ["y"],
        kernel_shape=[3, 3],
        strides=[2, 2],
        pads=[1] * 4,
        ceil_mode=1,
        count_include_pad=1,
    )
    batch = np.arange(1, 17, dtype=np.float32).reshape(1, 1, 4, 4)
    with tempfile.TemporaryDirectory() as folder:
        values = ReferenceRunner(saved(around([node], {}, (1, 4, 4), codes_exponent=None), Path(folder)))(batch)
    expected = [14 / 9, 10 / 3, 2, 19 / 3, 11, 6, 4.5, 7.5, 4]
    assert values.reshape(-1).tolist() == np.array(expected, np.float32).tolist()


def test_average_without_the_padding_divides_each_window_by_what_it_holds() -> None:
    node = helper.make_node("AveragePool", ["x.values"], ["y"], kernel_shape=[3, 3], pads=[1] * 4)
    batch = np.array([[1, 2, 3], [4, 5, 6], [7, 8, 9]], np.float32).reshape(1, 1, 3, 3)
    codes = three_ways(around([node], {}, (1, 3, 3), codes_exponent=-1), batch)
    assert codes["y.codes"].reshape(-1).tolist() == [6, 7, 8, 9, 10, 11, 12, 13, 14]


def test_max_pool_of_negative_codes_ignores_its_padding() -> None:
    node = helper.make_node("MaxPool", ["x.values"], ["y"], kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    batch = -np.arange(1, 17, dtype=np.float32).reshape(1, 1, 4, 4)
    codes = three_ways(around([node], {}, (1, 4, 4)), batch)
    assert codes["y.codes"].reshape(-1).tolist() == [-1, -2, -5, -6]


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


def test_an_unsupported_operator_is_named(tmp_path: Path) -> None:
    node = helper.make_node("Sigmoid", ["x.values"], ["y"], name="gate")
    with pytest.raises(InputError, match="Sigmoid gate is not an operator of the integer reference"):
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
