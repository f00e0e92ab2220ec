"""Lint: our own files are clean, errors come first, targets are known."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import helper

from engines.errors import InputError
from engines.lint import lint
from tests.onnx_nets import Target, around, residual_net, with_constant


@pytest.fixture(scope="module")
def trt() -> onnx.ModelProto:
    return residual_net("tensorrt", 0)


@pytest.mark.parametrize("target", ["tensorrt", "onnxruntime"])
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("gemm", [False, True])
def test_our_own_form_is_clean(target: Target, bits: int, gemm: bool) -> None:
    assert lint(residual_net(target, 3, bits=bits, gemm=gemm), target) == []
    assert {finding.level for finding in lint(residual_net(target, 3, bits=bits, gemm=gemm, factor=127), target)} == {
        "info"
    }


def test_errors_come_before_information(trt: onnx.ModelProto) -> None:
    model = with_constant(trt, "stem.out.scale", np.float32(0.3))
    model = with_constant(model, "last.out.scale", np.float32(-1))
    levels = [finding.level for finding in lint(model)]
    assert levels == sorted(levels)  # error, info, warning happen to sort so, and there is no warning
    assert set(levels) == {"error", "info"}


def test_an_unknown_target_is_refused(trt: onnx.ModelProto) -> None:
    with pytest.raises(InputError, match="no target 'tensorRT'"):
        lint(trt, "tensorRT")


def functions_net(steps: list[tuple[str, list[str], str]]) -> onnx.ModelProto:
    """Functions of one quantized tensor, from x.values to y."""
    constants = {"half": 0.5, "three": 3.0, "six": 6.0, "none": 0.0, "one": 1.0, "minus": -1.0, "up": 128.0}
    nodes = [helper.make_node(kind, inputs, [output], name=output) for kind, inputs, output in steps]
    values: dict[str, npt.ArrayLike] = {name: np.float32(value) for name, value in constants.items()}
    values["axes"] = np.array([1], np.int64)
    return around(nodes, values, (4, 5, 5), exponent=-4, codes_exponent=-7)


ISLANDS = {
    "silu": [("Sigmoid", ["x.values"], "s"), ("Mul", ["x.values", "s"], "y")],
    "hardswish": [
        ("Add", ["x.values", "three"], "a"), ("Clip", ["a", "none", "six"], "c"), ("Mul", ["x.values", "c"], "m"),
        ("Div", ["m", "six"], "y"),
    ],
    "hardtanh": [("Clip", ["x.values", "minus", "one"], "y")],
    "gelu_tanh": [
        ("Mul", ["x.values", "x.values"], "a"), ("Mul", ["a", "x.values"], "b"), ("Add", ["x.values", "b"], "c"),
        ("Tanh", ["c"], "d"), ("Mul", ["x.values", "d"], "y"),
    ],
    "norm": [
        ("ReduceSum", ["x.values", "axes"], "m"), ("Mul", ["x.values", "x.values"], "q"), ("Floor", ["q"], "hi"),
        ("Sub", ["q", "hi"], "lo"), ("ReduceSum", ["hi", "axes"], "h"), ("Mul", ["h", "up"], "h7"),
        ("ReduceSum", ["lo", "axes"], "l"), ("Add", ["h7", "l"], "v"), ("Sqrt", ["v"], "d"),
        ("Sub", ["x.values", "m"], "c"), ("Div", ["c", "d"], "y"),
    ],
}  # fmt: skip


@pytest.mark.parametrize("target", ["tensorrt", "onnxruntime", None])
@pytest.mark.parametrize("name", ISLANDS)
def test_functions_and_norms_of_one_quantized_tensor_are_clean(name: str, target: str | None) -> None:
    assert lint(functions_net(ISLANDS[name]), target) == []


@pytest.mark.parametrize("target", ["tensorrt", "onnxruntime", None])
def test_moves_and_resampling_matrices_are_clean(target: str | None) -> None:
    whole = [("pads", [0, 0, 1, 1, 0, 0, 1, 1]), ("from", [1]), ("to", [5]), ("axes", [2])]
    nodes = [
        helper.make_node("Pad", ["x.values", "pads"], ["padded"]),
        helper.make_node("Slice", ["padded", "from", "to", "axes"], ["cut"]),
        helper.make_node("Resize", ["cut", "", "scales"], ["large"], mode="nearest"),
        helper.make_node("Transpose", ["large"], ["turned"], perm=[0, 1, 3, 2]),
        helper.make_node("MatMul", ["rows", "turned"], ["a"], name="rows"),
        helper.make_node("MatMul", ["a", "columns"], ["y"], name="columns"),
    ]
    constants: dict[str, npt.ArrayLike] = {name: np.array(values, np.int64) for name, values in whole}
    constants |= {
        "scales": np.array([1, 1, 2, 1], np.float32),
        "rows": np.array([[1, 1, 0, 0, 0], [0, 0, 0.25, 0.75, 127 / 128]], np.float32),
        "columns": np.eye(8, 3, dtype=np.float32),
    }
    assert lint(around(nodes, constants, (2, 3, 3)), target) == []
    found = lint(around(nodes, constants | {"rows": np.full((2, 5), 0.3, np.float32)}, (2, 3, 3)), target)
    assert [(finding.rule, finding.node) for finding in found] == [("one-sided-layer", "rows")]


def test_an_island_ends_where_a_second_tensor_or_a_pool_comes_in() -> None:
    for maker in ("AveragePool", "Conv"):
        nodes = [
            helper.make_node(maker, ["x.values", *["w"] * (maker == "Conv")], ["p"], kernel_shape=[1, 1]),
            helper.make_node("Sigmoid", ["p"], ["s"]),
            helper.make_node("Add", ["x.values", "s"], ["y"], name="add"),
        ]
        model = around(nodes, {"w": np.ones((2, 2, 1, 1), np.float32)}, (2, 3, 3))
        found = [finding.node for finding in lint(model, "onnxruntime") if finding.rule == "add-inputs"]
        assert found == ["add"]
    steps = [("Clip", ["x.values", "none", "six"], "c"), ("Relu", ["c"], "y")]
    assert [finding.rule for finding in lint(functions_net(steps), "tensorrt")] == ["float-clip"]
