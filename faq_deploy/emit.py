"""ONNX nodes for each kind of graph node (opset 13 forms, written by ourselves: S3, T2, U17)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, cast

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from faq_deploy.fixed_point import step_size
from faq_deploy.graph import Graph, Node
from faq_deploy.layers import ActivationQuantizer, WeightedLayer
from faq_deploy.net import QuantizedNet
from faq_deploy.place import Target
from faq_deploy.quantized_batch_norm import QuantizedBatchNorm
from faq_deploy.storage import Storage

__all__ = ["Emitter"]

Array = npt.NDArray[np.generic]


class Emitter:
    """Collects ONNX nodes and initializers while walking a calibrated net."""

    def __init__(self, net: QuantizedNet, target: Target) -> None:
        self.net, self.target = net, target
        self.graph: Graph = net.graph
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}
        self.tensor: dict[str, str] = {}  # graph node -> ONNX tensor with its values
        # For TensorRT the flattened tensors stay (N, C, H, W) and linear layers become convolutions over
        # them, since Turing has no FP32 GEMM (S7). Graph node -> the (C, H, W) that its tensor really has.
        self.unflattened: dict[str, list[int]] = {}
        # layer -> the batch norm that lives in its DQ scales and bias
        self.absorbed = {node.inputs[0]: node.name for node in net.graph if node.kind == "batch_norm"}

    def run(self, output_shape: Sequence[int]) -> onnx.GraphProto:
        """Emit every node and return the graph.

        Args:
            output_shape: of the logits, without the batch.
        """
        for node in self.graph:
            _EMIT[node.kind](self, node)
        shape = self.graph.by_name()["input"].integers("shape")
        source = helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", *shape])
        last = self.tensor[self.graph.outputs[0]]
        if self.graph.outputs[0] in self.unflattened:
            self.op("Flatten", [last], "logits", axis=1)
        else:
            self.op("Identity", [last], "logits")
        result = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", *output_shape])
        return helper.make_graph(self.nodes, "faq_deploy", [source], [result], list(self.initializers.values()))

    def op(self, kind: str, inputs: Sequence[str], output: str, **attributes: int | list[int]) -> str:
        """Add a node; it takes the name of its output without the suffix."""
        name = output.partition(".")[0] if kind in {"Conv", "Gemm"} else output
        self.nodes.append(helper.make_node(kind, list(inputs), [output], name=name))
        self.nodes[-1].attribute.extend(helper.make_attribute(key, value) for key, value in sorted(attributes.items()))
        return output

    def constant(self, name: str, value: Array) -> str:
        """Add an initializer (a scalar keeps rank 0: rank 1 leaves adds in float, T3)."""
        self.initializers[name] = numpy_helper.from_array(value, name)
        return name

    def quantize(self, name: str, source: str, scale: float, storage: Storage) -> str:
        """Q (with a Clip where the type does not saturate at the grid's ends), then DQ."""
        step = self.constant(f"{name}.scale", np.array(scale, np.float32))
        zero = self.constant(f"{name}.zero_point", np.array(storage.zero_point, storage.dtype))
        if self.target == "tensorrt" and not storage.saturates:
            low = self.constant(f"{name}.low", np.array(storage.low * scale, np.float32))
            high = self.constant(f"{name}.high", np.array(storage.high * scale, np.float32))
            source = self.op("Clip", [source, low, high], f"{name}.clipped")
        codes = f"{name}.codes"
        if self.target == "tensorrt" or storage.saturates:
            self.op("QuantizeLinear", [source, step, zero], codes)
        else:
            self.op("QuantizeLinear", [source, step, zero], f"{name}.wide")
            low = self.constant(f"{name}.low", np.array(storage.low + storage.zero_point, storage.dtype))
            high = self.constant(f"{name}.high", np.array(storage.high + storage.zero_point, storage.dtype))
            self.op("Clip", [f"{name}.wide", low, high], codes)
        return self.op("DequantizeLinear", [codes, step, zero], f"{name}.values")

    def flat(self, name: str) -> str:
        """The tensor of graph node `name` in the shape that the graph says."""
        if name not in self.unflattened:
            return self.tensor[name]
        return self.op("Flatten", [self.tensor[name]], f"{name}.flat", axis=1)

    def moved(self, node: Node, tensor: str) -> None:
        """Set the tensor of an op that only moves codes: the same Q/DQ again, lossless, lets it run in INT8."""
        sources = self.net.source_quantizers(node.name)
        if not sources:
            self.tensor[node.name] = tensor
            return
        layers = [cast(ActivationQuantizer, self.net.layers[s]) for s in sources]
        storage = max((Storage(self.target, layer) for layer in layers), key=lambda s: (s.zero_point, s.kind == "int8"))
        step = self.constant(f"{node.name}.scale", np.array(float(step_size(layers[0].exponent)), np.float32))
        zero = self.constant(f"{node.name}.zero_point", np.array(storage.zero_point, storage.dtype))
        self.op("QuantizeLinear", [tensor, step, zero], f"{node.name}.moved")
        self.tensor[node.name] = self.op("DequantizeLinear", [f"{node.name}.moved", step, zero], f"{node.name}.values")


def _input(out: Emitter, node: Node) -> None:
    out.tensor[node.name] = "input"


def _quantize(out: Emitter, node: Node) -> None:
    layer = cast(ActivationQuantizer, out.net.layers[node.name])
    source = out.tensor[node.inputs[0]]
    if layer.clip == "relu":
        source = out.op("Relu", [source], f"{node.name}.relu")
    scale = float(step_size(layer.exponent))
    out.tensor[node.name] = out.quantize(node.name, source, scale, Storage(out.target, layer))
    _inherit_shape(out, node)


def _inherit_shape(out: Emitter, node: Node) -> None:
    if node.inputs[0] in out.unflattened:
        out.unflattened[node.name] = out.unflattened[node.inputs[0]]


def _weighted(out: Emitter, node: Node) -> None:
    layer = cast(WeightedLayer, out.net.layers[node.name])
    codes = layer.weight_codes().numpy()
    scale = step_size(layer.weight_exponent).numpy()
    norm = out.absorbed.get(node.name)
    if norm is None:
        multiplier = np.ones(len(codes), np.float32)
        bias = (layer.bias_codes() * step_size(layer.accumulator_exponent).double()).float().numpy()
    else:
        batch_norm = cast(QuantizedBatchNorm, out.net.layers[norm])
        a, c = (t.detach().numpy() for t in batch_norm.constants(batch_norm.running_mean, batch_norm.running_var))
        signs = np.sign(a).astype(np.int8).reshape(-1, *[1] * (codes.ndim - 1))
        codes = codes * signs  # a sign flip loses nothing on the narrow grid; a = 0 zeroes the codes
        multiplier, bias = np.where(a == 0, 1.0, np.abs(a)).astype(np.float32), c
    scale = (scale * multiplier).astype(np.float32)
    if norm is None and not layer.per_channel:
        scale = scale[:1]
    name = node.name
    if node.kind == "linear" and out.target == "tensorrt":
        codes = _linear_as_conv(out, node, codes)
    per_channel = len(scale) > 1
    weights = out.constant(f"{name}.weight_codes", codes.astype(np.int8))
    step = out.constant(f"{name}.weight_scale", scale if per_channel else scale.reshape(()))
    zero = out.constant(f"{name}.weight_zero_point", np.zeros(scale.shape if per_channel else (), np.int8))
    axis = {"axis": 0} if per_channel else {}
    out.op("DequantizeLinear", [weights, step, zero], f"{name}.weight", **axis)
    source = out.tensor[node.inputs[0]]
    inputs = [source, f"{name}.weight", _bias(out, layer, name, bias, scale)]
    out.tensor[name] = _product(out, node, layer, inputs)


def _bias(out: Emitter, layer: WeightedLayer, name: str, bias: Array, weight_scale: npt.NDArray[np.float32]) -> str:
    if out.target != "onnxruntime":
        return out.constant(f"{name}.bias", bias.astype(np.float32))
    scale = np.broadcast_to(weight_scale * np.float32(step_size(layer.input_exponent)), bias.shape).astype(np.float32)
    codes = out.constant(f"{name}.bias_codes", np.rint(bias.astype(np.float64) / scale).astype(np.int32))
    step = out.constant(f"{name}.bias_scale", np.ascontiguousarray(scale))
    zero = out.constant(f"{name}.bias_zero_point", np.zeros(scale.shape, np.int32))
    return out.op("DequantizeLinear", [codes, step, zero], f"{name}.bias", axis=0)


def _product(out: Emitter, node: Node, layer: WeightedLayer, inputs: list[str]) -> str:
    if node.kind == "linear":
        if out.target != "tensorrt":
            return out.op("Gemm", inputs, f"{node.name}.out", transB=1)
        out.unflattened[node.name] = [len(layer.weight), 1, 1]
        kernel = out.unflattened.get(node.inputs[0], [0, 1, 1])[1:]
        return out.op("Conv", inputs, f"{node.name}.out", kernel_shape=kernel)
    padding = node.integers("padding")
    return out.op(
        "Conv",
        inputs,
        f"{node.name}.out",
        kernel_shape=list(layer.weight.shape[2:]),
        strides=node.integers("stride"),
        pads=padding * 2,
        dilations=node.integers("dilation"),
        group=node.integer("groups"),
    )


def _linear_as_conv(out: Emitter, node: Node, codes: Array) -> Array:
    """Weight codes (out, features) as the kernel of a convolution over the tensor before its flatten."""
    source = node.inputs[0]
    if source not in out.unflattened:
        shape = out.constant(f"{node.name}.shape", np.array([0, codes.shape[1], 1, 1], np.int64))
        out.tensor[source] = out.op("Reshape", [out.tensor[source], shape], f"{node.name}.image")
        out.unflattened[source] = [codes.shape[1], 1, 1]
    return codes.reshape(len(codes), *out.unflattened[source])


def _alias(out: Emitter, node: Node) -> None:
    """Dropout is nothing at inference; a batch norm is in the scales and bias of the layer before."""
    out.tensor[node.name] = out.tensor[node.inputs[0]]
    _inherit_shape(out, node)


def _relu(out: Emitter, node: Node) -> None:
    cap, source = node.settings["cap"], out.tensor[node.inputs[0]]
    _inherit_shape(out, node)
    if cap is None:
        out.tensor[node.name] = out.op("Relu", [source], f"{node.name}.out")
        return
    low = out.constant(f"{node.name}.low", np.array(0, np.float32))
    high = out.constant(f"{node.name}.high", np.array(cap, np.float32))
    out.tensor[node.name] = out.op("Clip", [source, low, high], f"{node.name}.out")


def _add(out: Emitter, node: Node) -> None:
    out.tensor[node.name] = out.op("Add", [out.flat(i) for i in node.inputs], f"{node.name}.out")


def _cat(out: Emitter, node: Node) -> None:
    out.moved(node, out.op("Concat", [out.flat(i) for i in node.inputs], f"{node.name}.out", axis=1))


def _max_pool(out: Emitter, node: Node) -> None:
    pooled = out.op(
        "MaxPool",
        [out.tensor[node.inputs[0]]],
        f"{node.name}.out",
        **_window(node),
        dilations=node.integers("dilation"),
    )
    out.moved(node, pooled)


def _avg_pool(out: Emitter, node: Node) -> None:
    out.tensor[node.name] = out.op(
        "AveragePool",
        [out.tensor[node.inputs[0]]],
        f"{node.name}.out",
        **_window(node),
        # without padding it says nothing, and optimized onnxruntime gets ceil_mode wrong with it
        count_include_pad=int(bool(node.settings["count_include_pad"]) and any(node.integers("padding"))),
    )


def _window(node: Node) -> dict[str, int | list[int]]:
    return {
        "kernel_shape": node.integers("kernel"),
        "strides": node.integers("stride"),
        "pads": node.integers("padding") * 2,
        "ceil_mode": int(bool(node.settings["ceil_mode"])),
    }


def _global_avg_pool(out: Emitter, node: Node) -> None:
    out.tensor[node.name] = out.op("GlobalAveragePool", [out.tensor[node.inputs[0]]], f"{node.name}.out")


def _flatten(out: Emitter, node: Node) -> None:
    source, shape = node.inputs[0], node.integers("shape")
    if out.target == "tensorrt" and len(shape) == 3:
        out.tensor[node.name] = out.tensor[source]
        out.unflattened[node.name] = shape
        return
    out.moved(node, out.op("Flatten", [out.tensor[source]], f"{node.name}.out", axis=1))


def _reshape(out: Emitter, node: Node) -> None:
    shape = out.constant(f"{node.name}.shape", np.array([0, *node.integers("shape")], np.int64))
    out.moved(node, out.op("Reshape", [out.flat(node.inputs[0]), shape], f"{node.name}.out"))


_EMIT: Final[dict[str, Callable[[Emitter, Node], None]]] = {
    "input": _input,
    "quantize": _quantize,
    "conv": _weighted,
    "linear": _weighted,
    "batch_norm": _alias,
    "relu": _relu,
    "add": _add,
    "cat": _cat,
    "max_pool": _max_pool,
    "avg_pool": _avg_pool,
    "global_avg_pool": _global_avg_pool,
    "flatten": _flatten,
    "reshape": _reshape,
    "dropout": _alias,
}
