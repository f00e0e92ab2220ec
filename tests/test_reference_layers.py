"""Layers and pools: true integers in one to three dimensions, and float layers rounded once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from engines.errors import InputError
from engines.reference import ReferenceRunner
from tests.onnx_nets import saved
from tests.reference_checks import (
    Constants,
    assert_same_as_oracle,
    net_of,
    node_of,
    random_codes,
    reference_of,
    weight_of,
)

SIZES = {1: (11,), 2: (7, 6), 3: (4, 5, 3)}


def int8(shape: tuple[int, ...], seed: int = 1) -> npt.NDArray[np.int8]:
    return np.random.default_rng(seed).integers(-127, 128, shape).astype(np.int8)


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("per_channel", [False, True])
def test_convolutions_of_every_dimension_are_exact(n: int, groups: int, per_channel: bool) -> None:
    shape = (4, *SIZES[n])
    dequantize, constants = weight_of(
        int8((6, 4 // groups, *(3, 2, 2)[:n])), [-7, -6, -8, -7, -9, -7][: 6 if per_channel else 1], 0
    )
    scale = np.broadcast_to(constants["weight.scale"], (6,))
    bias = (np.arange(-3, 3) * 100 * scale * 2.0**-3).astype(np.float32)
    window = {"strides": [2, 1, 1][:n], "pads": [1, 0, 1, 2, 1, 0][: 2 * n], "dilations": [2, 1, 1][:n]}
    node = node_of("Conv", ["x.values", "weight", "bias"], {**window, "group": groups})
    for codes_exponent in (None, 1):
        model = net_of([dequantize, node], {**constants, "bias": bias}, shape, -3, codes_exponent)
        assert_same_as_oracle(model, random_codes(shape, -3))


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("groups", [1, 2])
def test_transposed_convolutions_of_every_dimension_are_exact(n: int, groups: int) -> None:
    shape = (4, *SIZES[n])
    dequantize, constants = weight_of(int8((4, 6 // groups, *(3, 2, 2)[:n])), [-7], 1)
    window = {
        "strides": [2, 3, 1][:n],
        "pads": [1, 0, 0, 2, 1, 0][: 2 * n],
        "dilations": [2, 1, 1][:n],
        "output_padding": [1, 2, 0][:n],
    }
    bias = (np.arange(-3, 3) * 2.0**-8).astype(np.float32)
    node = node_of("ConvTranspose", ["x.values", "weight", "bias"], {**window, "group": groups})
    for codes_exponent in (None, 1):
        model = net_of([dequantize, node], {**constants, "bias": bias}, shape, -3, codes_exponent)
        assert_same_as_oracle(model, random_codes(shape, -3))


@pytest.mark.parametrize("groups", [1, 2])
def test_transposed_convolutions_take_one_exponent_for_each_output_channel(groups: int) -> None:
    dequantize, constants = weight_of(int8((4, 3, 2, 2)), [-7, -4, -9], 1)
    node = helper.make_node("ConvTranspose", ["x.values", "weight"], ["y"], group=groups, strides=[2, 2])
    assert_same_as_oracle(net_of([dequantize, node], constants, (4, 3, 3), -3, None), random_codes((4, 3, 3), -3))


@settings(max_examples=80, deadline=None)
@given(data=st.data(), n=st.integers(1, 3), transposed=st.booleans())
def test_any_window_gives_torchs_float64_sums(data: st.DataObject, n: int, transposed: bool) -> None:
    def several(low: int, high: int) -> list[int]:
        return data.draw(st.lists(st.integers(low, high), min_size=n, max_size=n))

    kernel, stride, dilation, pad = several(1, 3), several(1, 3), several(1, 2), several(0, 2)
    size = [k * 2 + extra for k, extra in zip(kernel, several(0, 3), strict=True)]
    groups = data.draw(st.sampled_from([1, 2]))
    window: dict[str, int | float | str | list[int]] = {
        "strides": stride,
        "pads": pad * 2,
        "dilations": dilation,
        "group": groups,
    }
    batch, codes = random_codes((4, *size)), int8((4, 4 // groups, *kernel))
    x, w = torch.from_numpy(batch).double(), torch.from_numpy(codes).double()
    if transposed:
        limits = [max(s, d) for s, d in zip(stride, dilation, strict=True)]
        extra = [data.draw(st.integers(0, limit - 1)) for limit in limits]
        whole = [s * (c - 1) + d * (k - 1) + 1 for s, c, d, k in zip(stride, size, dilation, kernel, strict=True)]
        pad = [min(p, (total + e - 1) // 2) for p, total, e in zip(pad, whole, extra, strict=True)]
        window |= {"output_padding": extra, "pads": pad * 2}
        upward = (torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d)[n - 1]
        expected = upward(x, w, None, stride, pad, extra, groups, dilation)
    else:
        ends = several(0, 2)
        window |= {"pads": pad + ends}
        sides = [side for pair in zip(reversed(pad), reversed(ends), strict=True) for side in pair]
        function = (torch.conv1d, torch.conv2d, torch.conv3d)[n - 1]
        expected = function(torch.nn.functional.pad(x, sides), w, None, stride, 0, dilation, groups)
    dequantize, constants = weight_of(codes, [0], 0)
    node = node_of("ConvTranspose" if transposed else "Conv", ["x.values", "weight"], window)
    values = reference_of(net_of([dequantize, node], constants, (4, *size), 0, None), batch)
    assert values.tolist() == expected.float().numpy().tolist()


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("kind", ["MaxPool", "AveragePool"])
@pytest.mark.parametrize("ceil_mode", [0, 1])
def test_pools_of_one_and_three_dimensions_are_onnxruntimes(n: int, kind: str, ceil_mode: int) -> None:
    shape = (2, *SIZES[n])
    window = {"kernel_shape": [2, 3, 2][:n], "strides": [2, 2, 1][:n], "pads": [1, 1, 0, 0, 1, 0][: 2 * n]}
    node = node_of(kind, ["x.values"], {**window, "ceil_mode": ceil_mode})
    assert_same_as_oracle(net_of([node], {}, shape, -2, -2), random_codes(shape, -2))


@pytest.mark.parametrize("n", [1, 2, 3])
def test_global_averages_of_every_dimension_are_onnxruntimes(n: int) -> None:
    shape = (2, *SIZES[n])
    node = helper.make_node("GlobalAveragePool", ["x.values"], ["y"])
    assert_same_as_oracle(net_of([node], {}, shape, -2, -4), random_codes(shape, -2, images=9))


def test_matrices_of_constants_multiply_on_either_side() -> None:
    """An adaptive average pool: 0/1 matrices on both sides, one division by the counts."""
    rows = np.array([[1, 1, 1, 0, 0, 0, 0], [0, 0, 1, 1, 1, 0, 0], [0, 0, 0, 0, 1, 1, 1]], np.float32)
    columns = np.array([[1, 1, 1, 0, 0, 0], [0, 0, 1, 1, 0, 0], [0, 0, 0, 1, 1, 1]], np.float32).T
    nodes = [
        helper.make_node("MatMul", ["rows", "x.values"], ["a"]),
        helper.make_node("MatMul", ["a", "columns"], ["b"]),
        helper.make_node("Div", ["b", "counts"], ["y"]),
    ]
    counts = (rows.sum(1)[:, None] * columns.sum(0)[None]).astype(np.float32)
    constants: Constants = {"rows": rows, "columns": columns, "counts": counts}
    for codes_exponent in (None, -3):
        assert_same_as_oracle(net_of(nodes, constants, (3, 7, 6), -3, codes_exponent), random_codes((3, 7, 6), -3))


def test_matrices_of_weights_keep_one_exponent_for_each_column() -> None:
    dequantize, constants = weight_of(int8((6, 4)), [-7, -3, -9, -5], 1)
    node = helper.make_node("MatMul", ["x.values", "weight"], ["y"])
    assert_same_as_oracle(net_of([dequantize, node], constants, (3, 7, 6), -3, None), random_codes((3, 7, 6), -3))


def test_two_activations_multiply_exactly() -> None:
    nodes = [
        helper.make_node("Transpose", ["x.values"], ["turned"], perm=[0, 1, 3, 2]),
        helper.make_node("MatMul", ["x.values", "turned"], ["y"]),
    ]
    for codes_exponent in (None, 2):
        assert_same_as_oracle(net_of(nodes, {}, (2, 5, 9), -3, codes_exponent), random_codes((2, 5, 9), -3))


def float_net(kind: str) -> tuple[onnx.ModelProto, npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    rng = np.random.default_rng(0)
    shape = {"Conv": (5, 3, 2, 2), "ConvTranspose": (3, 5, 2, 2), "Gemm": (5, 48), "MatMul": (4, 6)}[kind]
    weight, bias = rng.normal(size=shape).astype(np.float32), rng.normal(size=5).astype(np.float32)
    before, last = [], "x.values"
    if kind == "Gemm":
        before, last = [helper.make_node("Flatten", ["x.values"], ["flat"])], "flat"
    inputs = [last, "weight"] if kind == "MatMul" else [last, "weight", "bias"]
    attributes = {"transB": 1} if kind == "Gemm" else {}
    nodes = [*before, node_of(kind, inputs, attributes)]
    constants: Constants = {"weight": weight} if kind == "MatMul" else {"weight": weight, "bias": bias}
    return net_of(nodes, constants, (3, 4, 4), -3, None), weight, bias


@pytest.mark.parametrize("kind", ["Conv", "ConvTranspose", "Gemm", "MatMul"])
def test_float_layers_are_float64_rounded_once(kind: str) -> None:
    model, weight, bias = float_net(kind)
    batch = random_codes((3, 4, 4), -3)
    x, w, b = (torch.from_numpy(array).double() for array in (batch, weight, bias))
    expected = {
        "Conv": lambda: torch.conv2d(x, w, b),
        "ConvTranspose": lambda: torch.conv_transpose2d(x, w, b),
        "Gemm": lambda: x.flatten(1) @ w.T + b,
        "MatMul": lambda: x @ w,
    }[kind]().float()
    values = torch.from_numpy(reference_of(model, batch))
    # NumPy and torch add in different orders: float64 keeps 29 bits more than the result
    assert torch.equal(values, expected) or (values - expected).abs().max() <= expected.abs().max() * 2**-23
    assert (values == expected).float().mean() > 0.99


def test_a_part_kept_in_float_runs_to_the_next_quantizer() -> None:
    rng = np.random.default_rng(0)
    constants: Constants = {"w": rng.normal(size=(4, 3, 3, 3)).astype(np.float32), "b": np.ones(4, np.float32) / 3}
    nodes = [
        helper.make_node("Conv", ["x.values", "w", "b"], ["c"], pads=[1] * 4),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("MaxPool", ["r"], ["m"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Slice", ["x.values", "from", "to", "axes", "steps"], ["s"]),
        helper.make_node("Concat", ["m", "s"], ["j"], axis=1),
        helper.make_node("AveragePool", ["j"], ["a"], kernel_shape=[2, 2], pads=[1] * 4),
        helper.make_node("Conv", ["a", "v"], ["y"]),
    ]
    constants |= {
        "v": rng.normal(size=(2, 7, 1, 1)).astype(np.float32),
        "from": np.array([0, 0], np.int64),
        "to": np.array([8, 8], np.int64),
        "axes": np.array([2, 3], np.int64),
        "steps": np.array([2, 2], np.int64),
    }
    # codes hide the last bit in which two float convolutions may differ
    codes = assert_same_as_oracle(net_of(nodes, constants, (3, 8, 8), -4, -1), random_codes((3, 8, 8), -4))
    assert len(np.unique(codes["y.codes"])) > 20


def test_the_graphs_own_input_may_be_read_in_float(tmp_path: Path) -> None:
    weight = np.random.default_rng(0).normal(size=(2, 3, 1, 1)).astype(np.float32)
    model = net_of([helper.make_node("Conv", ["input", "w"], ["y"])], {"w": weight}, (3, 2, 2), 0, -2)
    batch = np.random.default_rng(1).normal(size=(2, 3, 2, 2)).astype(np.float32)
    assert_same_as_oracle(model, batch)


def test_kernels_that_do_not_fit_are_named(tmp_path: Path) -> None:
    dequantize, constants = weight_of(int8((2, 1, 3, 3)), [0], 0)
    model = net_of(
        [dequantize, helper.make_node("Conv", ["x.values", "weight"], ["y"], name="c")], constants, (1, 2, 2)
    )
    with pytest.raises(InputError, match=r"Conv c .*: a window does not fit into its input of 2 x 2"):
        ReferenceRunner(saved(model, tmp_path))(np.zeros((1, 1, 2, 2), np.float32))
    node = helper.make_node("ConvTranspose", ["x.values", "weight"], ["y"], name="up", pads=[9] * 4)
    with pytest.raises(InputError, match=r"ConvTranspose up .*: its pads leave nothing"):
        ReferenceRunner(saved(net_of([dequantize, node], constants, (2, 2, 2)), tmp_path))(random_codes((2, 2, 2)))
