"""One small ONNX file for each lint rule that breaks it: `python -m tests.bad_models FOLDER` writes them all."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.onnx_nets import around

__all__ = ["BAD_MODELS", "BadModel", "bad_layer"]

Constants = dict[str, npt.ArrayLike]
Steps = Sequence[tuple[str, list[str], str]]
HALF: Final = np.float32(0.5)


@dataclass(frozen=True)
class BadModel:
    """A model that breaks one rule.

    Args:
        make: the model.
        message: what the linter says of it, at one place at least.
        target: what it has to be linted for; None where the rule holds for all.
        others: rules that the same flaw breaks besides.
    """

    make: Callable[[], onnx.ModelProto]
    message: str
    target: str | None = None
    others: Sequence[str] = ()

    def model(self) -> onnx.ModelProto:
        """The model, its output's shape filled in as the ONNX checker wants it."""
        return _with_output_shape(self.make())


def bad_layer(
    kind: str = "Conv",
    *,
    weight: npt.ArrayLike | None = None,
    scale: npt.ArrayLike = HALF,
    bias: npt.ArrayLike | None = None,
    axis: int = 0,
    **attributes: int | list[int],
) -> onnx.ModelProto:
    """A quantized layer `layer` with one weight quantizer `w` between two quantizers of activations."""
    codes = np.ones((2, 2, 1, 1), np.int8) if weight is None else np.asarray(weight)
    zeros = np.zeros(np.shape(scale), np.int8)
    constants: Constants = {"codes": codes, "scale": scale, "zeros": zeros}
    nodes = [
        helper.make_node("DequantizeLinear", ["codes", "scale", "zeros"], ["weight"], "w", axis=axis),
        helper.make_node(kind, ["x.values", "weight", *["bias"] * (bias is not None)], ["y"], "layer"),
    ]
    nodes[1].attribute.extend(helper.make_attribute(name, value) for name, value in attributes.items())
    if bias is not None:
        constants["bias"] = bias
    groups = attributes.get("group", 1)
    assert isinstance(groups, int)
    channels = codes.shape[0] if kind == "ConvTranspose" else codes.shape[1] * groups
    return around(nodes, constants, (channels, 4, 4))


def _functions(
    steps: Sequence[tuple[str, list[str], str]], constants: Constants, **kept: int | None
) -> onnx.ModelProto:
    """A few nodes from x.values to y, each named after its output."""
    nodes = [helper.make_node(kind, inputs, [output], output) for kind, inputs, output in steps]
    return around(nodes, constants, (2, 4, 4), **kept)  # type: ignore[arg-type]


def _with_output_shape(model: onnx.ModelProto) -> onnx.ModelProto:
    if not model.graph.output[0].type.tensor_type.HasField("shape"):
        inferred = onnx.shape_inference.infer_shapes(model).graph.output[0]
        if inferred.type.tensor_type.HasField("shape"):
            model.graph.output[0].CopyFrom(inferred)
    return model


def _of_file(change: Callable[[onnx.ModelProto], None]) -> onnx.ModelProto:
    model = _with_output_shape(bad_layer())
    change(model)
    return model


def _external(model: onnx.ModelProto) -> None:
    (tensor,) = (tensor for tensor in model.graph.initializer if tensor.name == "codes")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../elsewhere/weights.bin")


def _custom_domain(model: onnx.ModelProto) -> None:
    next(node for node in model.graph.node if node.name == "layer").domain = "com.example"


def _newer_ir(model: onnx.ModelProto) -> None:
    model.ir_version = 12


def _without_zero_point(model: onnx.ModelProto) -> None:
    del next(node for node in model.graph.node if node.name == "w").input[2:]


def _int4(shape: tuple[int, ...], *, opset: int = 21, ours: bool = False) -> onnx.ModelProto:
    model = bad_layer(weight=np.ones(shape, np.int8))
    kept = [tensor for tensor in model.graph.initializer if tensor.name not in ("codes", "zeros")]
    ones = np.ones(shape, np.int8).reshape(-1).tolist()
    four = [
        helper.make_tensor("codes", TensorProto.INT4, shape, ones),
        helper.make_tensor("zeros", TensorProto.INT4, [], [0]),
    ]
    del model.graph.initializer[:]
    model.graph.initializer.extend([*kept, *four])
    model.opset_import[0].version, model.ir_version = opset, 10 if opset >= 21 else 8
    if ours:
        model.metadata_props.add(key="faq_deploy.target", value=json.dumps("tensorrt"))
    return model


def _operators() -> onnx.ModelProto:
    grid = ["x.scale", "zero"]
    inputs = ["x.codes", *grid, "codes", "scale", "zeros", "y.scale", "zero"]
    nodes = [helper.make_node("QLinearConv", inputs, ["y.int"], "layer")]
    nodes.append(helper.make_node("DequantizeLinear", ["y.int", "y.scale", "zero"], ["y"], "out"))
    constants: Constants = {
        "codes": np.ones((2, 2, 1, 1), np.int8),
        "scale": np.float32(0.5),
        "zeros": np.int8(0),
    }
    model = around(nodes, constants, (2, 4, 4), codes_exponent=None)
    del model.graph.node[1]  # the DequantizeLinear of the input, which nobody reads
    return model


def _float_only() -> onnx.ModelProto:
    model = _functions([("Relu", ["x.values"], "y")], {}, codes_exponent=None)
    del model.graph.node[:2]
    model.graph.node[0].input[0] = "input"
    return model


def _skip(*, quantized: bool) -> onnx.ModelProto:
    """A convolution and a skip branch with another one, added."""
    nodes = [
        helper.make_node("DequantizeLinear", ["codes", "half", "zero"], ["weight"], "w"),
        helper.make_node("Conv", ["x.values", "weight"], ["a"], "conv"),
        helper.make_node("Conv", ["x.values", "weight"], ["b"], "down"),
        helper.make_node("QuantizeLinear", ["b", "half", "zero"], ["b.codes"], "b.q"),
        helper.make_node("DequantizeLinear", ["b.codes", "half", "zero"], ["b.values"], "b.dq"),
        helper.make_node("Add", ["a", "b.values" if quantized else "b"], ["y"], "add"),
    ]
    if not quantized:
        del nodes[3:5]
    return around(nodes, {"codes": np.ones((2, 2, 1, 1), np.int8), "half": np.float32(0.5)}, (2, 4, 4))


def _concat() -> onnx.ModelProto:
    nodes = []
    for name in "ab":
        nodes += [
            helper.make_node("Relu", ["x.values"], [f"{name}.relu"]),
            helper.make_node("QuantizeLinear", [f"{name}.relu", f"{name}.scale", "zero"], [f"{name}.codes"]),
            helper.make_node("DequantizeLinear", [f"{name}.codes", f"{name}.scale", "zero"], [f"{name}.values"]),
        ]
    nodes.append(helper.make_node("Concat", ["a.values", "b.values"], ["y"], "joined", axis=1))
    return around(nodes, {"a.scale": np.float32(0.25), "b.scale": np.float32(2)}, (2, 4, 4))


def _turned() -> onnx.ModelProto:
    nodes = [
        helper.make_node("DequantizeLinear", ["codes", "half", "zero"], ["weight"], "w"),
        helper.make_node("Transpose", ["weight"], ["turned"], "turn", perm=[1, 0]),
        helper.make_node("Flatten", ["x.values"], ["flat"]),
        helper.make_node("MatMul", ["flat", "turned"], ["y"], "fc"),
    ]
    return around(nodes, {"codes": np.ones((3, 32), np.int8), "half": np.float32(0.5)}, (2, 4, 4))


def _pool(**attributes: int | list[int]) -> onnx.ModelProto:
    node = helper.make_node("AveragePool", ["x.values"], ["y"], "pool")
    node.attribute.extend(helper.make_attribute(name, value) for name, value in attributes.items())
    return around([node], {}, (2, 4, 4))


def _codes_clip() -> onnx.ModelProto:
    nodes = [
        helper.make_node("QuantizeLinear", ["x.values", "x.scale", "zero"], ["wide"], "q"),
        helper.make_node("Clip", ["wide", "low", "high"], ["narrow"], "clip"),
        helper.make_node("DequantizeLinear", ["narrow", "x.scale", "zero"], ["y"], "dq"),
    ]
    nodes.insert(0, helper.make_node("Relu", ["x.values"], ["relu"]))
    nodes[1].input[0] = "relu"
    return around(nodes, {"low": np.int8(0), "high": np.int8(7)}, (2, 4, 4), codes_exponent=None)


def _float_clip() -> onnx.ModelProto:
    model = bad_layer()
    for name, value in (("low", -128.0), ("high", 127.0)):
        model.graph.initializer.append(numpy_helper.from_array(np.array(value, np.float32), name))
    nodes = list(model.graph.node)
    at = next(index for index, node in enumerate(nodes) if node.name == "layer")
    nodes[at].output[0] = "sum"
    nodes.insert(at + 1, helper.make_node("Clip", ["sum", "low", "high"], ["y"], "clip"))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


def _half() -> onnx.ModelProto:
    nodes = [
        helper.make_node("DequantizeLinear", ["codes", "half", "zero"], ["short"], "w"),
        helper.make_node("Cast", ["short"], ["weight"], "wide", to=TensorProto.FLOAT),
        helper.make_node("Mul", ["x.values", "weight"], ["y"], "times"),
    ]
    model = around(nodes, {"codes": np.ones((2, 1, 1), np.int8), "half": np.float16(0.5)}, (2, 4, 4))
    model.opset_import[0].version, model.ir_version = 19, 9
    return model


_Q_DQ: Final[list[tuple[str, list[str], str]]] = [
    ("QuantizeLinear", ["r", "s", "z"], "codes"),
    ("DequantizeLinear", ["codes", "s", "z"], "y"),
]
_RELU: Final[tuple[str, list[str], str]] = ("Relu", ["x.values"], "r")
_GRID: Final[Constants] = {"s": np.float32(0.5), "z": np.int8(0)}


def _quantized_relu(**changed: npt.ArrayLike) -> onnx.ModelProto:
    return _functions([_RELU, *_Q_DQ], _GRID | changed, codes_exponent=None)


BAD_MODELS: Final[Mapping[str, BadModel]] = {
    "external-data": BadModel(
        lambda: _of_file(_external),
        "the weight codes lies in ../elsewhere/weights.bin, outside the folder of the file: nothing else was checked.",
    ),
    "missing-opset": BadModel(
        lambda: _of_file(_custom_domain),
        "Conv layer: the file does not say which version of the operator set com.example it asks for.",
    ),
    "ir-version": BadModel(
        lambda: _of_file(_newer_ir),
        "the file has IR version 12, but opset 13 needs only 8: older runtimes will refuse it.",
    ),
    "scale-positive": BadModel(
        lambda: bad_layer(scale=np.array([0.5, 0], np.float32)),
        "DequantizeLinear w: the scale of channel 1 is 0, not a positive normal float32.",
    ),
    "dynamic-scale": BadModel(
        lambda: _functions(
            [
                *(_RELU, ("ReduceMax", ["r"], "top"), ("Mul", ["top", "s"], "step")),
                *(("QuantizeLinear", ["r", "step", "z"], "codes"), ("DequantizeLinear", ["codes", "s", "z"], "y")),
            ],
            _GRID,
            codes_exponent=None,
        ),
        "QuantizeLinear codes: the scale is computed, not a constant.",
    ),
    "explicit-zero-point": BadModel(
        lambda: _of_file(_without_zero_point),
        "DequantizeLinear w has no zero point: runtimes take it for uint8, and negative codes become 0.",
    ),
    "per-channel-activation": BadModel(
        lambda: _quantized_relu(s=np.full(2, 0.5, np.float32), z=np.zeros(2, np.int8)),
        "QuantizeLinear codes has 2 scales for an activation; engines take one.",
    ),
    "zero-point": BadModel(
        lambda: _quantized_relu(z=np.int8(3)),
        "QuantizeLinear codes: the zero point is 3; TensorRT takes 0 only.",
        "tensorrt",
    ),
    "unsigned-codes": BadModel(
        lambda: _quantized_relu(z=np.uint8(0)),
        "QuantizeLinear codes works on uint8 codes, which TensorRT refuses or reads as int8.",
        "tensorrt",
    ),
    "clip-on-codes": BadModel(
        _codes_clip, "Clip clip stands between Q and DQ; TensorRT's Clip takes floats only.", "tensorrt"
    ),
    "float-clip": BadModel(
        _float_clip, "Clip clip clips to codes -128..127, where int8 saturates by itself.", "tensorrt"
    ),
    "bias-grid": BadModel(
        lambda: bad_layer(bias=np.array([0.5, 0.75], np.float32)),
        "Conv layer: the bias of channel 1 is 1.5 steps of the accumulator grid 2^-1, not a whole number.",
    ),
    "conv-transpose-axis": BadModel(
        lambda: bad_layer("ConvTranspose", scale=np.full(2, 0.5, np.float32), axis=1),
        "ConvTranspose layer: its weight has 2 scales on axis 1; TensorRT does not quantize it per output channel.",
    ),
    "pool-ceil-mode": BadModel(
        lambda: _pool(kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1, count_include_pad=1),
        "AveragePool pool combines ceil_mode with count_include_pad: runtimes divide the windows at the border "
        "differently.",
    ),
    "int4-opset": BadModel(
        lambda: _int4((2, 2, 1, 2), opset=13),
        "DequantizeLinear w reads INT4, which operator set 13 of the file doesn't have.",
        others=("int4-convolution",),
    ),
    "int4-odd": BadModel(
        lambda: _int4((2, 2, 3, 3)),
        "DequantizeLinear w reads INT4 of shape 2 x 2 x 3 x 3; TensorRT needs an even last dimension.",
        "tensorrt",
        others=("int4-convolution",),
    ),
    "operator-format": BadModel(
        _operators, "QLinearConv layer: the file is in operator format, which onnxruntime alone reads."
    ),
    "double-quantization": BadModel(
        lambda: _functions(
            [
                ("QuantizeLinear", ["x.values", "s", "z"], "codes"),
                *(("DequantizeLinear", ["codes", "s", "z"], "v"), ("Relu", ["v"], "y")),
            ],
            _GRID,
        ),
        "QuantizeLinear codes quantizes what DequantizeLinear x.values gives a second time, from the grid 2^0 to 2^-1.",
    ),
    "dead-quantizer": BadModel(
        lambda: _functions([_RELU, ("QuantizeLinear", ["r", "s", "z"], "codes"), ("Abs", ["r"], "y")], _GRID),
        "QuantizeLinear codes is read by no node.",
    ),
    "scalar-scale": BadModel(
        lambda: _quantized_relu(s=np.full(1, 0.5, np.float32)),
        "QuantizeLinear codes: the scale has shape (1,) where a scalar is meant; onnxruntime will not fuse it.",
    ),
    "one-sided-layer": BadModel(
        lambda: around(
            [helper.make_node("Conv", ["x.values", "weight"], ["y"], "layer")],
            {"weight": np.full((2, 2, 1, 1), 0.3, np.float32)},
            (2, 4, 4),
        ),
        "Conv layer: only its input is quantized, so that it runs in float.",
    ),
    "conv-transpose-dilated": BadModel(
        lambda: bad_layer("ConvTranspose", strides=[2, 2], dilations=[2, 2]),
        "ConvTranspose layer has both strides and dilations over 1, which TensorRT does not run.",
        "tensorrt",
    ),
    "skip-input": BadModel(
        lambda: _skip(quantized=False), "Add add: its skip input b is not quantized, so that the Add runs in float."
    ),
    "add-inputs": BadModel(
        lambda: _skip(quantized=True),
        "Add add: its input a is not quantized; onnxruntime then adds in float.",
        "onnxruntime",
    ),
    "grouped-int8": BadModel(
        lambda: bad_layer(weight=np.ones((6, 2, 1, 1), np.int8), group=2),
        "Conv layer: TensorRT has no INT8 kernel for it: the channels of a group must be a multiple of 4, both in and "
        "out.",
    ),
    "concat-scales": BadModel(_concat, "Concat joined joins tensors with the scales 2^-2, 2^1."),
    "transposed-weight": BadModel(
        _turned, "MatMul fc reads its weight through Transpose turn behind DequantizeLinear and may run in float."
    ),
    "pool-ties": BadModel(
        lambda: _pool(kernel_shape=[2, 3]),
        "AveragePool pool averages 6 values, which can tie: an engine that multiplies by 1/6 may round a tie the "
        "other way.",
    ),
    "int4-convolution": BadModel(
        lambda: _int4((2, 2, 1, 2)),
        "Conv layer has a weight in INT4, and TensorRT has no INT4 convolution: other builders than `faq-deploy build` "
        "refuse it or compute in float, without a word.",
    ),
    "not-quantized": BadModel(
        _float_only, "There is no QuantizeLinear or DequantizeLinear in the file: nothing is quantized."
    ),
    "scale-power-of-two": BadModel(
        lambda: bad_layer(scale=np.float32(0.3)), "DequantizeLinear w: the scale is 0.3: no power of two."
    ),
    "sum-over-24-bits": BadModel(
        lambda: bad_layer(weight=np.full((2, 1040, 1, 1), 127, np.int8)),
        "Conv layer: the sums of channel 0 (and 1 more) can reach 1.01 x 2^24, where float32 no longer holds every "
        "integer.",
    ),
    "half-precision-scale": BadModel(_half, "DequantizeLinear w: the scale is float16, not float32."),
    "packed-weights": BadModel(
        lambda: _int4((2, 2, 1, 2), ours=True),
        "1 weights are stored in 4 bits: `faq-deploy build` unpacks them, and convolutions run as 4-bit values in INT8 "
        "kernels.",
    ),
}


def write_all(folder: Path) -> None:
    """Write each model as RULE.onnx."""
    folder.mkdir(parents=True, exist_ok=True)
    for rule, bad in BAD_MODELS.items():
        (folder / f"{rule}.onnx").write_bytes(bad.model().SerializeToString())


if __name__ == "__main__":
    write_all(Path(sys.argv[1]))
