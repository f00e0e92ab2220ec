"""Each rule about average pools finds its small bad graph, and keeps quiet where a shift mends it."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper

from engines.lint import lint
from tests.onnx_checks import only_finding
from tests.onnx_nets import around, with_constant


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
def test_averages_that_can_tie_are_warned_of(kernel: list[int], pad: int, include: int, count: int | None) -> None:
    node = helper.make_node(
        "AveragePool", ["x.values"], ["y"], name="pool", kernel_shape=kernel, pads=[pad] * 4, count_include_pad=include
    )
    model = around([node], {}, (1, 5, 6))
    if count is None:
        assert lint(model) == []
    else:
        assert only_finding(model, "pool-ties").message.startswith(
            f"AveragePool pool averages {count} values, which can tie"
        )


def test_global_averages_are_counted_by_shape_inference() -> None:
    node = helper.make_node("GlobalAveragePool", ["x.values"], ["y"], name="mean")
    assert lint(around([node], {}, (1, 7, 7))) == []
    assert "averages 36 values" in only_finding(around([node], {}, (1, 6, 6)), "pool-ties").message


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


def test_global_averages_of_three_dimensions_are_counted() -> None:
    node = helper.make_node("GlobalAveragePool", ["x.values"], ["y"], name="mean")
    model = around([node], {}, (1, 6, 6))
    model.graph.input[0].type.tensor_type.shape.dim.add().dim_value = 3
    assert "averages 108 values" in only_finding(model, "pool-ties").message


def mean_of_36(added: float | None = None, exponent: int = 0, written: int | None = 0) -> onnx.ModelProto:
    """A mean over 6x6 codes, plus a constant, with a ReLU in front of the quantizer."""
    nodes = [helper.make_node("GlobalAveragePool", ["x.values"], ["mean" if added is not None else "y"], name="mean")]
    if added is not None:
        nodes.append(helper.make_node("Add", ["mean", "offset"], ["sum"], name="sum"))
        nodes.append(helper.make_node("Relu", ["sum"], ["y"], name="relu"))
    return around(nodes, {} if added is None else {"offset": np.float32(added)}, (1, 6, 6), exponent, written)


@pytest.mark.parametrize("target", ["tensorrt", "onnxruntime", None])
def test_a_shift_off_the_ties_is_seen(target: str | None) -> None:
    assert only_finding(mean_of_36(), "pool-ties", target).level == "warning"
    assert "averages 36 values" in only_finding(mean_of_36(0.0), "pool-ties", target).message
    assert "averages 36 values" in only_finding(mean_of_36(0.25), "pool-ties", target).message  # nine 36ths
    for clear in (2.0**-11, -(2.0**-11), 1 / 64):
        assert lint(mean_of_36(clear), target) == []


def test_what_ties_depends_on_both_grids() -> None:
    found = {finer: len(lint(mean_of_36(None, 0, -finer))) for finer in range(-1, 4)}
    assert found == {-1: 1, 0: 1, 1: 1, 2: 0, 3: 0}  # 36 is four times an odd number
    assert lint(mean_of_36(None, 0, None)) == []  # nobody rounds it


def test_scales_of_another_tool_tie_where_their_ratio_does() -> None:
    model = with_constant(with_constant(mean_of_36(), "x.scale", np.float32(0.1)), "y.scale", np.float32(0.1))
    assert only_finding(model, "pool-ties").node == "mean"
    model = with_constant(model, "y.scale", np.float32(0.0731))
    assert [finding.rule for finding in lint(model) if finding.rule == "pool-ties"] == []


def test_paper_is_not_warned_of_ties() -> None:
    assert lint(mean_of_36(), "paper") == []


def test_windows_at_a_border_are_counted_in_the_image_that_comes() -> None:
    node = helper.make_node(
        "AveragePool", ["x.values"], ["y"], name="pool", kernel_shape=[5, 5], strides=[2, 2], pads=[2] * 4
    )
    assert lint(around([node], {}, (1, 9, 9))) == []  # 9, 15 and 25 values
    assert "averages 20 values" in only_finding(around([node], {}, (1, 8, 9)), "pool-ties").message
