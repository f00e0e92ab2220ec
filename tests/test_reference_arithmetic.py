"""Arithmetic: exact on codes with every broadcast, one float32 rounding beyond 24 bits, onnxruntime's bits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from engines.errors import InputError
from engines.reference import ReferenceRunner
from tests.onnx_nets import saved
from tests.reference_checks import Constants, assert_same_as_oracle, net_of, random_codes

SHAPE = (3, 4, 5)


@pytest.mark.parametrize("kind", ["Add", "Sub", "Mul"])
@pytest.mark.parametrize("other", [(3, 4, 5), (3, 1, 1), (1, 4, 5), (5,), ()])
@pytest.mark.parametrize("first", [True, False])
def test_constants_broadcast_from_either_side(kind: str, other: tuple[int, ...], first: bool) -> None:
    constant = (np.random.default_rng(1).integers(-40, 40, other) / 8).astype(np.float32)
    names = ["x.values", "c"] if first else ["c", "x.values"]
    model = net_of([helper.make_node(kind, names, ["y"])], {"c": constant}, SHAPE, -2, None)
    assert_same_as_oracle(model, random_codes(SHAPE, -2))


@pytest.mark.parametrize("kind", ["Add", "Sub", "Mul", "Div"])
def test_two_activations_broadcast(kind: str) -> None:
    nodes = [
        helper.make_node("GlobalAveragePool", ["x.values"], ["mean"]),
        helper.make_node("QuantizeLinear", ["mean", "fine", "zero"], ["gate.codes"]),
        helper.make_node("DequantizeLinear", ["gate.codes", "fine", "zero"], ["gate"]),
        helper.make_node(kind, ["x.values", "gate"], ["y"]),
    ]
    assert_same_as_oracle(net_of(nodes, {"fine": np.float32(2**-5)}, (3, 3, 3), -2, None), random_codes((3, 3, 3), -2))


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(["Add", "Sub", "Mul", "Div"]),
    values=st.lists(
        st.floats(2**-20, 2**20, width=32) | st.floats(-(2**20), -(2**-20), width=32), min_size=3, max_size=3
    ),
    exponent=st.integers(-30, 30),
)
def test_any_float32_constant_gives_one_rounding(kind: str, values: list[float], exponent: int) -> None:
    constant = np.array(values, np.float32).reshape(3, 1, 1)
    nodes = [
        helper.make_node(kind, ["x.values", "c"], ["a"]),
        helper.make_node("Mul", ["a", "d"], ["b"]),  # what follows a rounded result is rounded too
        helper.make_node("Sub", ["b", "x.values"], ["y"]),
    ]
    constants: Constants = {"c": constant, "d": np.float32(1.1)}
    assert_same_as_oracle(net_of(nodes, constants, SHAPE, exponent, None), random_codes(SHAPE, exponent), constant=True)


def test_division_by_powers_of_two_is_exact_and_others_round_once() -> None:
    constant = np.array([4, 0.125, -2], np.float32).reshape(3, 1, 1)
    assert_same_as_oracle(
        net_of([helper.make_node("Div", ["x.values", "c"], ["y"])], {"c": constant}, SHAPE, 0, -3), codes()
    )
    constant = np.array([[3, 6, 9, 4, 6]], np.float32)  # the counts of an adaptive pool
    assert_same_as_oracle(
        net_of([helper.make_node("Div", ["x.values", "c"], ["y"])], {"c": constant}, SHAPE, 0, -2), codes()
    )
    assert_same_as_oracle(
        net_of([helper.make_node("Div", ["x.values", "c"], ["y"])], {"c": constant}, SHAPE, 0, None), codes()
    )


@pytest.mark.parametrize("slopes", [[0.25], [0.1, -0.3, 1.5], [2.0**-60, 0, 1]])
def test_prelu_multiplies_negative_codes_only(slopes: list[float]) -> None:
    constant = np.array(slopes, np.float32).reshape(-1, 1, 1)
    for codes_exponent in (None, -3):
        node = helper.make_node("PRelu", ["x.values", "slope"], ["y"])
        model = net_of([node], {"slope": constant}, SHAPE, -2, codes_exponent)
        assert_same_as_oracle(model, codes(-2))


@pytest.mark.parametrize("axes", [[1], [2, 3], [-1], [1, 2, 3]])
@pytest.mark.parametrize("keepdims", [0, 1])
def test_sums_over_any_axes_are_exact(axes: list[int], keepdims: int) -> None:
    node = helper.make_node("ReduceSum", ["x.values", "axes"], ["y"], keepdims=keepdims)
    assert_same_as_oracle(net_of([node], {"axes": np.array(axes, np.int64)}, SHAPE, -2, None), codes(-2))


def test_means_divide_exact_sums() -> None:
    for axes in ([2, 3], [1]):
        node = helper.make_node("ReduceMean", ["x.values"], ["y"], axes=axes)
        assert_same_as_oracle(net_of([node], {}, SHAPE, -2, -4), codes(-2))


@pytest.mark.parametrize("kind", ["Abs", "Neg", "Floor", "Relu"])
@pytest.mark.parametrize("rounded", [False, True])
def test_exact_functions_keep_onnxruntimes_bits(kind: str, rounded: bool) -> None:
    before = [helper.make_node("Div", ["x.values", "three"], ["v"])] if rounded else []
    node = helper.make_node(kind, ["v" if rounded else "x.values"], ["y"])
    assert_same_as_oracle(net_of([*before, node], {"three": np.float32(3)}, SHAPE, -3, None), codes(-3))


def test_clip_bounds_may_lie_off_the_grid_or_be_the_largest_float() -> None:
    largest = np.finfo(np.float32).max
    for low, high in ((-0.7, 5.3), (-largest, 3.0), (-np.inf, largest)):
        node = helper.make_node("Clip", ["x.values", "low", "high"], ["y"])
        assert_same_as_oracle(
            net_of([node], {"low": np.float32(low), "high": np.float32(high)}, SHAPE, -3, None), codes(-3)
        )


def test_sums_beyond_24_bits_round_as_float32_does() -> None:
    # 2^24 + 127, 2^24 + 126, ...: every second one lies half way between two float32
    model = net_of([helper.make_node("Add", ["x.values", "c"], ["y"])], {"c": np.float32(2**24)}, SHAPE, 0, None)
    bits = assert_same_as_oracle(model, codes())["logits"]
    values = bits.astype(np.int32).view(np.float32)
    assert (values % 2 == 0)[values >= 2**24].all()


def test_sums_that_neither_60_bits_nor_float32_hold_are_refused(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "x.scale", "zero"], ["weight"]),
        helper.make_node("Conv", ["x.values", "weight"], ["sums"]),
        helper.make_node("Add", ["sums", "c"], ["y"], name="add"),
    ]
    weight = np.full((1, 2000, 1, 1), 127, np.int8)
    weight[0, 0] = 126  # an odd sum beyond 2^24
    model = net_of(nodes, {"w": weight, "c": np.float32(2.0**-60)}, (2000, 1, 1))
    with pytest.raises(InputError, match="Add add cannot be computed exactly: its values span more than 60 bits"):
        ReferenceRunner(saved(model, tmp_path))(np.full((1, 2000, 1, 1), 127, np.float32))


def test_an_axis_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    node = helper.make_node("ReduceSum", ["x.values", "axes"], ["y"], name="sum")
    model = net_of([node], {"axes": np.array([7], np.int64)}, SHAPE)
    with pytest.raises(InputError, match=r"ReduceSum sum cannot be computed exactly: it reduces axes \(7,\) of 4"):
        ReferenceRunner(saved(model, tmp_path))(codes())


def codes(exponent: int = 0) -> npt.NDArray[np.float32]:
    return random_codes(SHAPE, exponent)
