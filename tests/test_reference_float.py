"""Functions and norms: float32 one operation at a time, the bits of onnxruntime without optimizations."""

from __future__ import annotations

import math
import tempfile
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
from engines.reference import ReferenceRunner
from tests.onnx_nets import saved
from tests.reference_checks import Constants, assert_same_as_oracle, net_of, node_of, random_codes

# operator -> its function in float64, the exponent of its input
FUNCTIONS = {
    "Cos": (math.cos, -5),
    "Erf": (math.erf, -5),
    "Exp": (math.exp, -5),
    "Sigmoid": (lambda x: 1 / (1 + math.exp(-x)), -4),
    "Sin": (math.sin, -5),
    "Softplus": (lambda x: math.log1p(math.exp(x)), -4),
    "Softsign": (lambda x: x / (1 + abs(x)), -4),
    "Tanh": (math.tanh, -5),
}


def all_codes(exponent: int) -> npt.NDArray[np.float32]:
    return (np.arange(-128, 128) * 2.0**exponent).astype(np.float32).reshape(1, 1, 16, 16)


@pytest.mark.parametrize("kind", FUNCTIONS)
def test_a_function_of_every_code_is_the_float32_nearest_to_it(kind: str, tmp_path: Path) -> None:
    function, exponent = FUNCTIONS[kind]
    model = net_of([helper.make_node(kind, ["x.values"], ["y"])], {}, (1, 16, 16), exponent, None)
    x = all_codes(exponent)
    values = ReferenceRunner(saved(model, tmp_path))(x)
    expected = np.array([function(value) for value in x.reshape(-1).tolist()], np.float64).astype(np.float32)
    assert values.reshape(-1).tolist() == expected.tolist()


@pytest.mark.parametrize("kind", [*FUNCTIONS, "Elu"])
def test_codes_behind_a_function_are_onnxruntimes(kind: str) -> None:
    _, exponent = FUNCTIONS.get(kind, (None, -4))
    model = net_of([node_of(kind, ["x.values"], {"alpha": 0.75} if kind == "Elu" else {})], {}, (3, 9, 5), exponent, -6)
    found = same_codes(model, random_codes((3, 9, 5), exponent, images=9))
    assert len(np.unique(found)) > 20


@pytest.mark.parametrize("kind", ["Log", "Reciprocal", "Sqrt"])
def test_functions_of_positive_codes_are_onnxruntimes(kind: str) -> None:
    model = net_of([helper.make_node(kind, ["x.values"], ["y"])], {}, (3, 8, 5), -5, -5)
    assert len(np.unique(same_codes(model, np.abs(random_codes((3, 8, 5), -5)) + np.float32(2**-5)))) > 20


def test_log_of_zero_saturates_and_nan_is_refused(tmp_path: Path) -> None:
    model = net_of([helper.make_node("Log", ["x.values"], ["y"], name="log")], {}, (1, 1, 2))
    runner = ReferenceRunner(saved(model, tmp_path))
    assert runner.codes(np.array([0, 1], np.float32).reshape(1, 1, 1, 2))["y.codes"].tolist() == [[[[-128, 0]]]]
    with pytest.raises(InputError, match="quantizes NaN"):
        runner(np.array([0, -1], np.float32).reshape(1, 1, 1, 2))


GATES: dict[str, tuple[list[tuple[str, list[str], str]], Constants]] = {
    "silu": ([("Sigmoid", ["x.values"], "s"), ("Mul", ["x.values", "s"], "y")], {}),
    "hardswish": (
        [
            ("Add", ["x.values", "three"], "a"),
            ("Clip", ["a", "zero_", "six"], "b"),
            ("Mul", ["x.values", "b"], "c"),
            ("Div", ["c", "six"], "y"),
        ],
        {"three": np.float32(3), "zero_": np.float32(0), "six": np.float32(6)},
    ),
    "gelu": (
        [
            ("Div", ["x.values", "root"], "a"),
            ("Erf", ["a"], "b"),
            ("Add", ["b", "one"], "c"),
            ("Mul", ["x.values", "c"], "d"),
            ("Mul", ["d", "half"], "y"),
        ],
        {"root": np.float32(math.sqrt(2)), "one": np.float32(1), "half": np.float32(0.5)},
    ),
    "mish": ([("Softplus", ["x.values"], "a"), ("Tanh", ["a"], "b"), ("Mul", ["x.values", "b"], "y")], {}),
    "rsqrt": (
        [("Mul", ["x.values", "x.values"], "a"), ("Add", ["a", "one"], "b"), ("Sqrt", ["b"], "c"),
         ("Div", ["one", "c"], "y")],
        {"one": np.float32(1)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", GATES)
def test_gates_written_out_give_onnxruntimes_codes(name: str) -> None:
    steps, constants = GATES[name]
    nodes = [helper.make_node(kind, inputs, [output]) for kind, inputs, output in steps]
    found = same_codes(net_of(nodes, constants, (1, 16, 16), -4, -5), all_codes(-4))
    assert len(np.unique(found)) > 20


def norm_net(
    shape: tuple[int, int, int], groups: int | None, exponent: int, eps: float, split: bool, seed: int
) -> onnx.ModelProto:
    """LayerNorm over channels (groups None), or GroupNorm, in single float32 operations."""
    rng = np.random.default_rng(seed)
    channels = shape[0]
    axis, count = (1, channels) if groups is None else (2, math.prod(shape) // groups)
    wide = (channels, 1, 1)
    constants: Constants = {
        "inverse": np.float32(2.0**-exponent),
        "N": np.float32(count),
        "eps": np.float32(eps * 2.0 ** (-2 * exponent)),
        "gamma": rng.normal(1, 0.5, wide).astype(np.float32),
        "beta": rng.normal(0, 1, wide).astype(np.float32),
        "axes": np.array([axis], np.int64),
        "grouped": np.array([0, groups or 1, -1], np.int64),
        "whole": np.array([0, *shape], np.int64),
        "down": np.float32(2.0**-7),
        "up": np.float32(2.0**7),
    }
    squares = [("Mul", ["k", "k"], "q")]
    if split:
        squares += [
            ("Mul", ["q", "down"], "q7"), ("Floor", ["q7"], "hi"), ("Mul", ["hi", "up"], "hi7"),
            ("Sub", ["q", "hi7"], "lo"), ("ReduceSum", ["hi", "axes"], "high"), ("ReduceSum", ["lo", "axes"], "low"),
            ("Mul", ["high", "up"], "high7"), ("Add", ["high7", "low"], "s2"),
        ]  # fmt: skip
    else:
        squares += [("ReduceSum", ["q", "axes"], "s2")]
    steps = [
        ("Mul", ["x.values", "inverse"], "k0"),
        ("Reshape" if groups else "Identity", ["k0", "grouped"] if groups else ["k0"], "k"),
        ("ReduceSum", ["k", "axes"], "s1"),
        ("Div", ["s1", "N"], "m"),
        *squares,
        ("Div", ["s2", "N"], "e2"),
        ("Mul", ["m", "m"], "mm"),
        ("Sub", ["e2", "mm"], "v0"),
        ("Relu", ["v0"], "v"),
        ("Add", ["v", "eps"], "ve"),
        ("Sqrt", ["ve"], "d"),
        ("Sub", ["k", "m"], "c"),
        ("Div", ["c", "d"], "n0"),
        ("Reshape" if groups else "Identity", ["n0", "whole"] if groups else ["n0"], "n"),
        ("Mul", ["n", "gamma"], "scaled"),
        ("Add", ["scaled", "beta"], "y"),
    ]
    nodes = [helper.make_node(kind, inputs, [output]) for kind, inputs, output in steps]
    return net_of(nodes, constants, shape, exponent, None)


@settings(max_examples=40, deadline=None)
@given(
    channels=st.sampled_from([1, 2, 3, 6, 8, 12, 64, 96, 100]),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    groups=st.sampled_from([None, 1, 2, "all"]),
    exponent=st.integers(-9, 5),
    eps=st.sampled_from([1e-5, 1e-6, 1e-3]),
    spread=st.sampled_from([1, 3, 128]),
    seed=st.integers(0, 2**31),
)
def test_norms_have_onnxruntimes_bits(
    channels: int, height: int, width: int, groups: int | str | None, exponent: int, eps: float, spread: int, seed: int
) -> None:
    count = channels if groups == "all" else groups
    assert count is None or isinstance(count, int)
    if count and channels % count:
        count = 1
    shape = (channels, height, width)
    codes = np.random.default_rng(seed).integers(-spread, spread, (2, *shape))
    batch = (codes * 2.0**exponent).astype(np.float32)
    elements = math.prod(shape) // count if count else channels
    for split in [True] if elements * spread**2 >= 2**24 else [False, True]:
        assert_same_as_oracle(norm_net(shape, count, exponent, eps, split, seed), batch, constant=True)


@pytest.mark.parametrize("shape", [(16, 64, 64), (4, 128, 128), (1, 131, 1000)])
def test_norms_of_many_elements_have_onnxruntimes_bits(shape: tuple[int, int, int]) -> None:
    assert_same_as_oracle(norm_net(shape, 1, -3, 1e-5, True, 0), random_codes(shape, -3, images=1))
    assert_same_as_oracle(norm_net(shape, 1, -3, 1e-5, True, 0), np.full((1, *shape), -16, np.float32), constant=True)


def test_float32_operations_refuse_inputs_they_would_round(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "x.scale", "zero"], ["weight"]),
        helper.make_node("Conv", ["x.values", "weight"], ["sums"], kernel_shape=[1, 1]),
        helper.make_node("Sigmoid", ["sums"], ["y"], name="gate"),
    ]
    weight = np.full((1, 2000, 1, 1), 127, np.int8)
    weight[0, 0] = 126
    model = net_of(nodes, {"w": weight}, (2000, 1, 1))
    with pytest.raises(InputError, match="Sigmoid gate cannot be computed exactly: its input has more than 24 bits"):
        ReferenceRunner(saved(model, tmp_path))(np.full((1, 2000, 1, 1), 127, np.float32))


def same_codes(model: onnx.ModelProto, batch: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    """`y.codes`, the same in onnxruntime, whose functions may differ in a float32's last bit before the quantizer."""
    with tempfile.TemporaryDirectory() as folder:
        path = saved(model, Path(folder))
        codes = ReferenceRunner(path).codes(batch)["y.codes"]
        oracle = OrtRunner(path, oracle=True, threads=1).codes(batch)["y.codes"]
    assert np.array_equal(codes, oracle)
    return codes
