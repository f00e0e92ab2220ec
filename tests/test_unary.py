"""Functions of one value: their tables stay clear of ties, so that every library gives the same codes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from faq_deploy.graph import Setting
from faq_deploy.unary import FUNCTIONS, MARGIN, CodeRange, Shape, Unary, settle_offset
from tests.hand_graphs import GraphBuilder, onnx_model, run_onnx

NUMBERS: dict[str, Shape] = {
    "clip": Shape(low=-0.7, high=1.3),
    "elu": Shape(alpha=0.7),
    "celu": Shape(alpha=1.7),
    "softplus": Shape(alpha=2.0),
}
POSITIVE = {"log", "sqrt", "rsqrt"}


def exact(name: str, grid: CodeRange, gain: float) -> np.ndarray:
    with np.errstate(all="ignore"):
        return FUNCTIONS[name].exact(grid.values(), NUMBERS.get(name, Shape())) * gain


def fitting(name: str, read: CodeRange, gain: float, finer: int) -> CodeRange:
    """A signed grid that ends at the function's largest value, or 2^finer below it."""
    table = np.abs(exact(name, read, gain))
    top = float(np.max(table[np.isfinite(table)]))
    exponent = (math.ceil(math.log2(top)) if top > 0 else 0) - 7 - finer
    return CodeRange(exponent, -128, 127)


@settings(deadline=None, max_examples=300)
@given(
    st.sampled_from(sorted(FUNCTIONS)),
    st.integers(-9, 0),
    st.booleans(),
    st.integers(-14, 3),
    st.sampled_from([1.0, -0.3, 2.5]),
)
def test_no_entry_of_a_table_lies_next_to_a_tie(name: str, exponent: int, signed: bool, out: int, gain: float) -> None:
    signed = signed and name not in POSITIVE
    read = CodeRange(exponent, -128 if signed else 0, 127)
    written = CodeRange(out, -128, 127)
    offset = settle_offset(name, NUMBERS.get(name, Shape()), gain, read, [written])
    table = exact(name, read, gain)
    table = table[np.isfinite(table)]
    steps = (table + offset) / 2.0**written.exponent
    ties = np.clip(np.floor(steps), written.low, written.high - 1) + 0.5
    assert np.abs(steps - ties).min() >= MARGIN
    assert abs(offset) <= 2.0**written.exponent / 2


@pytest.mark.parametrize("gain", [1.0, -0.75])
@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_torch_numpy_and_onnxruntime_have_the_same_code_for_every_input(name: str, gain: float) -> None:
    codes = torch.arange(0 if name in POSITIVE else -128, 128)
    for exponent, finer in ((-7, 0), (-5, 1), (-4, -1), (-9, 0)):
        read = CodeRange(exponent, int(codes[0]), 127)
        written = fitting(name, read, gain, finer)
        g = GraphBuilder("tensorrt")
        shape = NUMBERS.get(name, Shape())
        numbers: dict[str, Setting] = {"alpha": shape.alpha, "low": shape.low, "high": shape.high, "gain": gain}
        y = g.quantize(g.node("unary", g.input(1), name="f", function=name, also=numbers))
        x = (codes * 2.0**exponent).reshape(-1, 1)
        net = g.net([y], [x.abs() + 1])  # NaN and Inf stop a calibration
        net.quantizers()["input_quantizer"].set_exponent(exponent)
        net.quantizers()[y].set_exponent(written.exponent)
        net.link_exponents()
        layer = net.layers["f"]
        assert isinstance(layer, Unary)
        with np.errstate(all="ignore"):
            table = FUNCTIONS[name].exact(x.double().numpy(), shape) * gain + float(layer.offset)
            wanted = np.clip(np.rint(table / 2.0**written.exponent), written.low, written.high)
        with torch.inference_mode():
            assert np.array_equal(net.codes(x)[0][y].numpy(), wanted)
        model = onnx_model(net, "tensorrt")
        for optimized in (False, True):
            assert np.array_equal(run_onnx(model, [x], optimized=optimized)[f"{y}.codes"], wanted), (
                exponent,
                optimized,
            )
