"""One operator between two quantizers, run by the golden model and by onnxruntime without optimizations."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from engines.ort import OrtRunner
from engines.reference import ReferenceRunner
from tests.onnx_nets import saved

__all__ = ["Constants", "assert_same_as_oracle", "net_of", "node_of", "random_codes", "reference_of", "weight_of"]

Constants = dict[str, npt.ArrayLike]


def net_of(
    nodes: list[onnx.NodeProto],
    constants: Constants,
    shape: tuple[int, ...],
    exponent: int = 0,
    codes_exponent: int | None = 0,
) -> onnx.ModelProto:
    """Nodes that read `x.values` and make `y`, for images of any rank.

    Args:
        nodes: the operators.
        constants: their other inputs.
        shape: of one image.
        exponent: of the grid of the input.
        codes_exponent: of the grid of `y.codes`; None returns the floats of `y` as logits.
    """
    every: Constants = {
        "x.scale": np.float32(2.0**exponent),
        "y.scale": np.float32(2.0 ** (codes_exponent or 0)),
        "zero": np.int8(0),
        **constants,
    }
    tail = [
        helper.make_node("QuantizeLinear", ["y", "y.scale", "zero"], ["y.codes"]),
        helper.make_node("DequantizeLinear", ["y.codes", "y.scale", "zero"], ["logits"]),
    ]
    graph = helper.make_graph(
        [
            helper.make_node("QuantizeLinear", ["input", "x.scale", "zero"], ["x.codes"]),
            helper.make_node("DequantizeLinear", ["x.codes", "x.scale", "zero"], ["x.values"]),
            *nodes,
            *(tail if codes_exponent is not None else [helper.make_node("Identity", ["y"], ["logits"])]),
        ],
        "one_operator",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", *shape])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in every.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def node_of(kind: str, inputs: list[str], attributes: Mapping[str, int | float | str | list[int]]) -> onnx.NodeProto:
    """A node that makes `y`, with its attributes as a mapping."""
    node = helper.make_node(kind, inputs, ["y"])
    node.attribute.extend(helper.make_attribute(name, value) for name, value in attributes.items())
    return node


def random_codes(shape: tuple[int, ...], exponent: int = 0, images: int = 2, seed: int = 0) -> npt.NDArray[np.float32]:
    """Images whose values lie on the grid of 8-bit codes, extremes among them."""
    codes = np.random.default_rng(seed).integers(-128, 128, (images, *shape))
    codes.reshape(-1)[:2] = -128, 127
    return (codes * 2.0**exponent).astype(np.float32)


def assert_same_as_oracle(
    model: onnx.ModelProto, batch: npt.NDArray[np.float32], constant: bool = False
) -> dict[str, npt.NDArray[np.int64]]:
    """Codes and bits of the reference, after asserting that onnxruntime without optimizations has the same.

    Args:
        model: with a last tensor named `logits`.
        batch: images.
        constant: whether the result may be one code throughout; otherwise such a net proves nothing, and fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = saved(model, Path(folder))
        codes = ReferenceRunner(path).codes(batch)
        oracle = OrtRunner(path, oracle=True, threads=1, with_codes=True).codes(batch)
    assert list(codes) == list(oracle)
    for name, values in codes.items():
        assert values.shape == oracle[name].shape, name
        assert np.array_equal(values, oracle[name]), (name, int((values != oracle[name]).sum()), values.size)
    assert constant or len(np.unique(codes["logits"])) > 1
    return codes


def reference_of(model: onnx.ModelProto, batch: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """What the golden model returns."""
    with tempfile.TemporaryDirectory() as folder:
        return ReferenceRunner(saved(model, Path(folder)))(batch)


def weight_of(
    codes: npt.NDArray[np.int8], exponents: list[int], axis: int, name: str = "weight"
) -> tuple[onnx.NodeProto, Constants]:
    """A weight behind DequantizeLinear: one exponent, or one for each index of the axis."""
    per_channel = len(exponents) > 1
    scale = np.array([2.0**e for e in exponents], np.float32) if per_channel else np.float32(2.0 ** exponents[0])
    point = np.zeros(len(exponents), np.int8) if per_channel else np.int8(0)
    inputs = [f"{name}.codes", f"{name}.scale", f"{name}.zero"]
    node = helper.make_node("DequantizeLinear", inputs, [name], axis=axis)
    return node, dict(zip(inputs, (codes, scale, point), strict=True))
