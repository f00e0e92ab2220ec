"""Which tensors are known to be never negative."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

from engines.not_negative import never_negative
from engines.qdq_graph import read_graph
from tests.onnx_nets import around

STEPS: dict[str, tuple[list[tuple[str, list[str]]], bool]] = {
    "relu": ([("Relu", ["x.values"])], True),
    "input": ([("Identity", ["x.values"])], False),
    "pool of relu": ([("Relu", ["x.values"]), ("GlobalAveragePool", ["0"])], True),
    "sum of relus": ([("Relu", ["x.values"]), ("Sigmoid", ["x.values"]), ("Add", ["0", "1"])], True),
    "sum with input": ([("Relu", ["x.values"]), ("Add", ["0", "x.values"])], False),
    "difference": ([("Relu", ["x.values"]), ("Sub", ["0", "0"])], False),
    "times a constant": ([("Relu", ["x.values"]), ("Mul", ["0", "half"])], True),
    "times a negative one": ([("Relu", ["x.values"]), ("Mul", ["0", "minus"])], False),
    "clip at zero": ([("Clip", ["x.values", "none", "half"])], True),
    "clip below zero": ([("Clip", ["x.values", "minus", "half"])], False),
    "codes around the lowest": (
        [("QuantizeLinear", ["x.values", "half", "lowest"]), ("DequantizeLinear", ["0", "half", "lowest"])], True,
    ),
    "codes around zero": (
        [("QuantizeLinear", ["x.values", "half", "middle"]), ("DequantizeLinear", ["0", "half", "middle"])], False,
    ),
    "codes of relu": (
        [
            ("Relu", ["x.values"]), ("QuantizeLinear", ["0", "half", "middle"]),
            ("DequantizeLinear", ["1", "half", "middle"]),
        ],
        True,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", STEPS)
def test_sign_is_followed_through_the_graph(name: str) -> None:
    steps, expected = STEPS[name]
    last = len(steps) - 1
    nodes = [
        helper.make_node(kind, inputs, ["y" if index == last else str(index)], f"n{index}")
        for index, (kind, inputs) in enumerate(steps)
    ]
    constants = {"half": np.float32(0.5), "minus": np.float32(-1), "none": np.float32(0)}
    points = {"lowest": np.int8(-128), "middle": np.int8(0)}
    graph = read_graph(around(nodes, {**constants, **points}, (2, 4, 4)))
    assert never_negative(graph, "y") is expected
