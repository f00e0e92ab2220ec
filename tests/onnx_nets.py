"""Small QDQ nets with random codes, in the two forms that `faq-deploy export` writes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

Target = Literal["tensorrt", "onnxruntime"]
Kind = Literal["relu", "signed", "signed-for-add"]


@dataclass(frozen=True)
class Edge:
    """A float tensor of the graph. `exponent` is its grid where it was quantized, else None."""

    name: str
    channels: int
    exponent: int | None = None


@dataclass
class Net:
    """Collects nodes and initializers; every weight is drawn from `seed`.

    Biases centre each channel and grids fit what flows, measured on images: a net whose signal has died in its biases
    would agree with anything.

    Args:
        target: which form of Q, Clip and bias to write.
        seed: of all random codes, and of the images measured.
        size: of the images.
        bits: of inner activations and weights.
        factor: largest odd factor of a weight scale (batch-norm modes have up to 127).
    """

    target: Target
    seed: int
    size: int = 32
    bits: int = 8
    factor: int = 1
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: list[onnx.TensorProto] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)

    def constant(self, name: str, value: npt.ArrayLike) -> str:
        self.initializers.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def op(self, kind: str, inputs: list[str], output: str, **attributes: object) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [output], name=output, **attributes))  # type: ignore[arg-type]
        return output

    def measure(self, tensor: str) -> npt.NDArray[np.float32]:
        """What onnxruntime computes for a tensor of the graph so far, on two images."""
        import onnxruntime

        images_in = images(self.seed, 2, self.size)
        if tensor == "input":
            return images_in
        graph = helper.make_graph(
            self.nodes,
            "so_far",
            [helper.make_tensor_value_info("input", TensorProto.FLOAT, None)],
            [helper.make_tensor_value_info(tensor, TensorProto.FLOAT, None)],
            self.initializers,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        values: npt.NDArray[np.float32] = session.run([tensor], {"input": images_in})[0]
        return values

    def quantize(
        self, x: Edge, name: str, kind: Kind = "relu", bits: int | None = None, exponent: int | None = None
    ) -> Edge:
        """Relu where asked, then Q and DQ on a grid that lets up to one value in fifty saturate."""
        bits = self.bits if bits is None else bits
        value = self.op("Relu", [x.name], f"{name}.relu") if kind == "relu" else x.name
        top = 2**bits - 1 if kind == "relu" and bits < 8 else 127
        y = float(np.quantile(np.abs(self.measure(value)), 0.98)) if exponent is None else 0.0
        exponent = math.ceil(math.log2(y / top)) if exponent is None else exponent
        unsigned = self.target == "onnxruntime"
        zero = 0 if kind == "relu" or not unsigned else 128 if kind == "signed-for-add" else 64
        clip = top if kind == "relu" else 127
        dtype = np.uint8 if unsigned else np.int8
        if not unsigned and bits == 4 and kind == "relu":
            low = self.constant(f"{name}.low", np.float32(0))
            high = self.constant(f"{name}.high", np.float32(clip * 2.0**exponent))
            value = self.op("Clip", [value, low, high], f"{name}.clipped")
        scale = self.constant(f"{name}.scale", np.float32(2.0**exponent))
        point = self.constant(f"{name}.zero_point", dtype(zero))
        if unsigned and kind != "signed-for-add":
            wide = self.op("QuantizeLinear", [value, scale, point], f"{name}.wide")
            low, high = self.constant(f"{name}.low", dtype(0)), self.constant(f"{name}.high", dtype(clip))
            codes = self.op("Clip", [wide, low, high], f"{name}.codes")
        else:
            codes = self.op("QuantizeLinear", [value, scale, point], f"{name}.codes")
        values = self.op("DequantizeLinear", [codes, scale, point], f"{name}.values")
        return Edge(values, x.channels, exponent)

    def conv(
        self,
        x: Edge,
        name: str,
        channels: int,
        kernel: int = 3,
        stride: int = 1,
        groups: int = 1,
        dilation: int = 1,
        gemm: bool = False,
        bits: int | None = None,
    ) -> Edge:
        """A Conv, or a Gemm, with int8 codes, one power of two per output channel, and a bias on the grid."""
        assert x.exponent is not None
        top = 2 ** ((self.bits if bits is None else bits) - 1) - 1
        shape = (channels, x.channels) if gemm else (channels, x.channels // groups, kernel, kernel)
        codes = self.rng.integers(-top, top + 1, shape).astype(np.int8)
        codes[self.rng.integers(channels)] = 0  # a dead channel
        exponents = self.rng.integers(-9, -6, channels)
        factors = 2 * self.rng.integers(0, (self.factor + 1) // 2, channels) + 1
        scales = (factors * 2.0**exponents).astype(np.float32)
        grid = scales.astype(np.float64) * 2.0**x.exponent
        weight_codes = self.constant(f"{name}.weight_codes", codes)
        weight_scale = self.constant(f"{name}.weight_scale", scales)
        weight_zero = self.constant(f"{name}.weight_zero_point", np.zeros(channels, np.int8))
        weight = self.op("DequantizeLinear", [weight_codes, weight_scale, weight_zero], f"{name}.weight", axis=0)
        window: dict[str, object] = {"transB": 1}
        if not gemm:
            pads, steps = [dilation * (kernel // 2)] * 4, [dilation] * 2
            window = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": pads, "dilations": steps}
            window["group"] = groups
        # the sums without a bias, seen once: centred, so that ReLU cuts each channel in half
        probe = self.op("Gemm" if gemm else "Conv", [x.name, weight], f"{name}.probe", **window)
        sums = self.measure(probe).swapaxes(0, 1).reshape(channels, -1)
        self.nodes.pop()
        bias = np.rint(self.rng.normal(-sums.mean(1), 0.3 * sums.std(1) + grid) / grid)
        if self.target == "onnxruntime":
            bias_codes = self.constant(f"{name}.bias_codes", bias.astype(np.int32))
            bias_scale = self.constant(f"{name}.bias_scale", grid.astype(np.float32))
            bias_name = self.op("DequantizeLinear", [bias_codes, bias_scale], f"{name}.bias", axis=0)
        else:
            bias_name = self.constant(f"{name}.bias", (bias * grid).astype(np.float32))
        self.op("Gemm" if gemm else "Conv", [x.name, weight, bias_name], name, **window)
        return Edge(name, channels)

    def model(self, logits: str, classes: int, image: tuple[int, int, int]) -> onnx.ModelProto:
        """The finished model, checked."""
        graph = helper.make_graph(
            self.nodes,
            "net",
            [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", *image])],
            [helper.make_tensor_value_info(logits, TensorProto.FLOAT, ["N", classes])],
            self.initializers,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
        onnx.checker.check_model(model, full_check=True)
        return model


def residual_net(
    target: Target, seed: int, bits: int = 8, size: int = 33, gemm: bool = False, factor: int = 1
) -> onnx.ModelProto:
    """A small ResNet: stem, max pool, identity block, strided block, grouped and dilated branches, pools, head.

    Args:
        target: "tensorrt" or "onnxruntime".
        seed: of all codes.
        bits: 8 or 4.
        size: of the square image; 33 ends in pools over 9, 32 in pools over 4 (neither can tie).
        gemm: classifier as Gemm with transB instead of a 1x1 Conv.
        factor: see Net.
    """
    net = Net(target, seed, size, bits, factor)
    both = target == "onnxruntime"  # there both inputs of an add are quantized, else only the skip
    x = net.quantize(Edge("input", 3), "input", "signed", bits=8)
    x = net.quantize(net.conv(x, "stem", 8, stride=2, bits=8), "stem.out")
    pool = net.op("MaxPool", [x.name], "stem.pool", kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    x = Edge(pool, 8, x.exponent)
    a = net.conv(net.quantize(net.conv(x, "one.a", 8), "one.a.out"), "one.b", 8)
    a = net.quantize(a, "one.b.out", "signed-for-add", bits=8) if both else a
    x = net.quantize(Edge(net.op("Add", [a.name, x.name], "one.add"), 8), "one.out")
    a = net.conv(net.quantize(net.conv(x, "two.a", 12, stride=2), "two.a.out"), "two.b", 12)
    a = net.quantize(a, "two.b.out", "signed-for-add", bits=8) if both else a
    skip = net.quantize(net.conv(x, "two.down", 12, kernel=1, stride=2), "two.skip", "signed-for-add", bits=8)
    x = net.quantize(Edge(net.op("Add", [a.name, skip.name], "two.add"), 12), "two.out")
    left = net.quantize(net.conv(x, "left", 6, kernel=1), "left.out")
    right = net.conv(x, "right", 12, groups=12, dilation=2)
    right = net.quantize(right, "right.out", exponent=left.exponent)  # one grid for both inputs of the concat
    joined = net.op("Concat", [left.name, right.name], "joined", axis=1)
    kernel, stride = (3, 1) if size % 2 else (2, 2)
    pooled = net.op("AveragePool", [joined], "pooled", kernel_shape=[kernel] * 2, strides=[stride] * 2)
    x = net.quantize(Edge(pooled, 18), "pooled.out", "signed", bits=8)
    x = net.quantize(net.conv(x, "last", 10), "last.out", bits=8 if both else 7)
    x = net.quantize(Edge(net.op("GlobalAveragePool", [x.name], "mean"), 10), "mean.out", "signed", bits=8)
    if gemm:
        net.conv(Edge(net.op("Flatten", [x.name], "flat"), 10, x.exponent), "logits", 7, gemm=True, bits=8)
    else:
        net.op("Flatten", [net.conv(x, "head", 7, kernel=1, bits=8).name], "logits")
    return net.model("logits", 7, (3, size, size))


def saved(model: onnx.ModelProto, folder: Path) -> Path:
    """Write the model into a folder and return its path."""
    path = folder / "model.onnx"
    onnx.save(model, path)
    return path


def images(seed: int, count: int, size: int) -> npt.NDArray[np.float32]:
    """Smooth random pictures, noise, exact ties, saturating values, and zeros of both signs."""
    rng = np.random.default_rng(seed)
    coarse = rng.normal(0, 1, (count, 3, -(-size // 8), -(-size // 8)))
    batch = coarse.repeat(8, 2).repeat(8, 3)[:, :, :size, :size] + rng.normal(0, 0.5, (count, 3, size, size))
    ties = np.rint(batch * 2**6) * 2.0**-6 + 2.0**-7
    batch = np.where(rng.random(batch.shape) < 0.3, ties, batch).astype(np.float32)
    extremes = np.array([0.0, -0.0, 1e30, -1e30, 1e-40, -1e-40], np.float32)
    return np.where(rng.random(batch.shape) < 0.02, rng.choice(extremes, batch.shape), batch)


def around(
    nodes: list[onnx.NodeProto],
    constants: Mapping[str, npt.ArrayLike],
    image: tuple[int, int, int],
    exponent: int = 0,
    codes_exponent: int | None = 0,
) -> onnx.ModelProto:
    """A few nodes from `x.values` to `y` between an int8 quantizer of the input and one of the result.

    Args:
        nodes: read `x.values` and make `y`.
        constants: their other inputs.
        image: channels, height and width of the input.
        exponent: of the grid of the input.
        codes_exponent: of the grid of `y.codes`; None returns `y` itself as logits.
    """
    every = {
        "x.scale": np.float32(2.0**exponent),
        "y.scale": np.float32(2.0 ** (codes_exponent or 0)),
        "zero": np.int8(0),
        **constants,
    }
    tail = [
        helper.make_node("QuantizeLinear", ["y", "y.scale", "zero"], ["y.codes"], name="y.codes"),
        helper.make_node("DequantizeLinear", ["y.codes", "y.scale", "zero"], ["logits"], name="logits"),
    ]
    graph = helper.make_graph(
        [
            helper.make_node("QuantizeLinear", ["input", "x.scale", "zero"], ["x.codes"], name="x.codes"),
            helper.make_node("DequantizeLinear", ["x.codes", "x.scale", "zero"], ["x.values"], name="x.values"),
            *nodes,
            *(tail if codes_exponent is not None else [helper.make_node("Identity", ["y"], ["logits"])]),
        ],
        "around",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", *image])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in every.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def with_constant(model: onnx.ModelProto, name: str, value: npt.ArrayLike) -> onnx.ModelProto:
    """A copy of the model with one initializer replaced."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    (tensor,) = (tensor for tensor in copy.graph.initializer if tensor.name == name)
    tensor.CopyFrom(numpy_helper.from_array(np.asarray(value), name))
    return copy


def constant_of(model: onnx.ModelProto, name: str) -> npt.NDArray[np.float32]:
    """The value of one float32 initializer, writable."""
    (tensor,) = (tensor for tensor in model.graph.initializer if tensor.name == name)
    return numpy_helper.to_array(tensor).copy()


def with_input(model: onnx.ModelProto, node: str, index: int, tensor: str) -> onnx.ModelProto:
    """A copy of the model in which one node reads another tensor."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    (found,) = (found for found in copy.graph.node if found.name == node)
    found.input[index] = tensor
    return copy
