"""Operators that move codes: the same integers as onnxruntime, with grids that travel along."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import helper

from engines.errors import InputError
from engines.reference import ReferenceRunner
from tests.onnx_nets import saved
from tests.reference_checks import Constants, assert_same_as_oracle, net_of, random_codes, weight_of

SHAPE = (3, 5, 6)
SOURCES = ["exact", "per channel", "rounded"]


def assert_moved(
    source: str, nodes: list[onnx.NodeProto], constants: Constants, shape: tuple[int, ...] = SHAPE
) -> None:
    """Run nodes that read `v`: codes on one grid, on one grid for each channel, or float32 results."""
    if source == "per channel":
        exponents = [-3, -7, -1][: shape[0]]
        dequantize, more = weight_of(np.ones((shape[0], 1, *[1] * (len(shape) - 1)), np.int8), exponents, 0)
        before = [dequantize, helper.make_node("Conv", ["x.values", "weight"], ["v"], group=shape[0])]
    else:
        before = [helper.make_node("Div", ["x.values", "three" if source == "rounded" else "two"], ["v"])]
        more = {"two": np.float32(2), "three": np.float32(3)}
    assert_same_as_oracle(net_of([*before, *nodes], {**constants, **more}, shape, -2, None), random_codes(shape, -2))


def whole(*values: int) -> npt.NDArray[np.int64]:
    return np.array(values, np.int64)


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("mode", ["constant", "reflect", "edge"])
@pytest.mark.parametrize("pads", [(0, 0, 1, 2, 0, 0, 3, 0), (0, 1, 0, 2, 0, 0, 2, 1)])
def test_pads_of_every_mode_and_side(source: str, mode: str, pads: tuple[int, ...]) -> None:
    assert_moved(source, [helper.make_node("Pad", ["v", "pads"], ["y"], mode=mode)], {"pads": whole(*pads)})


@pytest.mark.parametrize("source", SOURCES)
def test_pads_with_a_value_and_pads_that_cut(source: str) -> None:
    constants: Constants = {"pads": whole(0, 0, -1, 2, 0, 0, 1, -3), "value": np.float32(-0.3)}
    assert_moved(source, [helper.make_node("Pad", ["v", "pads", "value"], ["y"])], constants)


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("perm", [[0, 2, 3, 1], [0, 3, 1, 2], [0, 1, 3, 2]])
def test_transposes(source: str, perm: list[int]) -> None:
    assert_moved(source, [helper.make_node("Transpose", ["v"], ["y"], perm=perm)], {})


@settings(max_examples=60, deadline=None)
@given(
    start=st.integers(-8, 8) | st.sampled_from([-(2**63), 2**63 - 1]),
    end=st.integers(-8, 8) | st.sampled_from([-(2**63), 2**63 - 1]),
    step=st.integers(-3, 3).filter(bool),
    axis=st.sampled_from([1, 2, -1]),
)
def test_slices_with_any_bounds_and_steps(start: int, end: int, step: int, axis: int) -> None:
    size = SHAPE[axis - 1] if axis > 0 else SHAPE[-1]
    assume(len(range(size)[_bound(start, end, step, size)]) > 0)
    constants: Constants = {"from": whole(start), "to": whole(end), "axes": whole(axis), "steps": whole(step)}
    nodes = [helper.make_node("Slice", ["v", "from", "to", "axes", "steps"], ["y"])]
    assert_moved("exact", nodes, constants)


def _bound(start: int, end: int, step: int, size: int) -> slice:
    """ONNX's rule, in the words of its specification."""
    first, last = (start + size if start < 0 else start), (end + size if end < 0 else end)
    if step > 0:
        return slice(min(max(first, 0), size), min(max(last, 0), size), step)
    first, last = min(max(first, 0), size - 1), min(max(last, -1), size - 1)
    return slice(first, None if last == -1 else last, step)


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("axis", [1, 2, -1])
def test_concats_on_any_axis(source: str, axis: int) -> None:
    assert_moved(source, [helper.make_node("Concat", ["v", "x.values", "v"], ["y"], axis=axis)], {})


@pytest.mark.parametrize("source", SOURCES)
def test_squeeze_unsqueeze_flatten_reshape_and_gather(source: str) -> None:
    nodes = [
        helper.make_node("Unsqueeze", ["v", "at"], ["a"]),
        helper.make_node("Squeeze", ["a", "at"], ["b"]),
        helper.make_node("Gather", ["b", "order"], ["c"], axis=1),
        helper.make_node("Reshape", ["c", "shape"], ["d"]),
        helper.make_node("Flatten", ["d"], ["y"], axis=2),
    ]
    assert_moved(source, nodes, {"at": whole(2), "order": whole(2, 0, 0), "shape": whole(0, -1, 9)})


def test_channel_shuffles_move_per_channel_grids() -> None:
    nodes = [
        helper.make_node("Reshape", ["v", "split"], ["a"]),
        helper.make_node("Transpose", ["a"], ["b"], perm=[0, 2, 1, 3, 4]),
        helper.make_node("Reshape", ["b", "join"], ["y"]),
    ]
    for source in SOURCES:
        assert_moved(source, nodes, {"split": whole(0, 3, 1, 5, 6), "join": whole(0, 3, 5, 6)})


def test_a_constant_is_expanded_to_the_batch() -> None:
    nodes = [
        helper.make_node("Shape", ["x.values"], ["sizes"]),
        helper.make_node("Gather", ["sizes", "first"], ["batch"], axis=0),
        helper.make_node("Concat", ["batch", "rest"], ["wanted"], axis=0),
        helper.make_node("Expand", ["token", "wanted"], ["tokens"]),
        helper.make_node("QuantizeLinear", ["tokens", "fine", "zero"], ["token.codes"]),
        helper.make_node("DequantizeLinear", ["token.codes", "fine", "zero"], ["token.values"]),
        helper.make_node("Concat", ["x.values", "token.values"], ["y"], axis=2),
    ]
    constants: Constants = {
        "first": whole(0),
        "rest": whole(3, 1, 6),
        "token": np.random.default_rng(0).normal(size=(1, 3, 1, 6)).astype(np.float32),
        "fine": np.float32(2**-5),
    }
    found = assert_same_as_oracle(net_of(nodes, constants, SHAPE, -2, None), random_codes(SHAPE, -2, images=11))
    assert found["token.codes"].shape == (11, 3, 1, 6)


def test_pads_of_another_rank_and_other_modes_are_refused(tmp_path: Path) -> None:
    for attributes, pads, message in (
        ({}, whole(0, 0, 1, 1), r"its pads are \(0, 0, 1, 1\), not 8 numbers"),
        ({"mode": "wrap"}, whole(*[0] * 8), "it pads in mode wrap"),
    ):
        node = helper.make_node("Pad", ["x.values", "pads"], ["y"], name="p", **attributes)
        with pytest.raises(InputError, match=f"Pad p cannot be computed exactly: {message}"):
            ReferenceRunner(saved(net_of([node], {"pads": pads}, SHAPE), tmp_path))(random_codes(SHAPE))


def test_shapes_that_do_not_fit_are_named(tmp_path: Path) -> None:
    node = helper.make_node("Reshape", ["x.values", "shape"], ["y"], name="r")
    with pytest.raises(InputError, match="Reshape r cannot be computed: cannot reshape array"):
        ReferenceRunner(saved(net_of([node], {"shape": whole(0, 7)}, SHAPE), tmp_path))(random_codes(SHAPE))
