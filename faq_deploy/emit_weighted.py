"""ONNX nodes of convolutions, linear layers, and the batch norms behind them."""

from __future__ import annotations

from typing import cast

import numpy as np
import numpy.typing as npt

from faq_deploy.emitter import Array, Emitter
from faq_deploy.fixed_point import step_size
from faq_deploy.graph import Node
from faq_deploy.layers import FloatLayer, WeightedLayer
from faq_deploy.quantized_batch_norm import QuantizedBatchNorm

__all__ = ["emit_batch_norm", "emit_weighted"]


def emit_weighted(out: Emitter, node: Node) -> None:
    """A convolution or linear layer: int8 weight codes into DequantizeLinear, or float weights."""
    layer = cast(FloatLayer, out.net.layers[node.name])
    weight, bias = _quantized(out, node, layer) if isinstance(layer, WeightedLayer) else _float(out, node, layer)
    source = out.tensor[node.inputs[0]]
    inputs = [source, weight] if bias is None else [source, weight, bias]
    out.tensor[node.name] = _product(out, node, layer, inputs)


def emit_batch_norm(out: Emitter, node: Node) -> None:
    """Nothing where the layer before has it in its scales and bias; else a multiply-add per channel."""
    source = node.inputs[0]
    if source in out.absorbed:
        out.tensor[node.name] = out.tensor[source]
        if source in out.unflattened:
            out.unflattened[node.name] = out.unflattened[source]
        return
    layer = cast(QuantizedBatchNorm, out.net.layers[node.name])
    a, c = (t.detach().numpy() for t in layer.constants(layer.running_mean, layer.running_var))
    (tensor,) = out.elementwise(node)
    rank = 4 if node.name in out.unflattened else len(out.shapes[node.name]) + 1
    scaled = out.op("Mul", [tensor, out.by_channel(f"{node.name}.multiplier", a, rank)], f"{node.name}.scaled")
    offset = out.by_channel(f"{node.name}.offset", c, rank)
    out.tensor[node.name] = out.op("Add", [scaled, offset], f"{node.name}.out")


def _float(out: Emitter, node: Node, layer: FloatLayer) -> tuple[str, str | None]:
    weight, bias = (None if t is None else t.detach().numpy() for t in layer.folded())
    assert weight is not None
    if node.kind == "linear" and out.target == "tensorrt":
        weight = _linear_as_conv(out, node, weight)
    name = out.constant(f"{node.name}.weight", weight)
    return name, None if bias is None else out.constant(f"{node.name}.bias", bias)


def _quantized(out: Emitter, node: Node, layer: WeightedLayer) -> tuple[str, str]:
    codes = layer.weight_codes().numpy()
    scale = step_size(layer.weight_exponent).numpy()
    norm = out.absorbed.get(node.name)
    own = layer.folded()[1] is not None
    if norm is not None:
        batch_norm = cast(QuantizedBatchNorm, out.net.layers[norm])
        a, c = (t.detach().numpy() for t in batch_norm.constants(batch_norm.running_mean, batch_norm.running_var))
        signs = np.sign(a).astype(np.int8).reshape(-1, *[1] * (codes.ndim - 1))
        codes = codes * signs  # a sign flip loses nothing on the narrow grid; a = 0 zeroes the codes
        scale, bias = (scale * np.where(a == 0, 1.0, np.abs(a))).astype(np.float32), c
    elif own:
        bias = (layer.bias_codes() * step_size(layer.accumulator_exponent).double()).float().numpy()
    else:
        bias = np.zeros(len(layer.product.by_channel(layer.weight)), np.float32)
    name = node.name
    if node.kind == "linear" and out.target == "tensorrt":
        codes = _linear_as_conv(out, node, codes)
    per_channel = len(scale) > 1
    weights = out.constant(f"{name}.weight_codes", codes.astype(np.int8))
    step = out.constant(f"{name}.weight_scale", scale if per_channel else scale.reshape(()))
    zero = out.constant(f"{name}.weight_zero_point", np.zeros(scale.shape if per_channel else (), np.int8))
    axis = {"axis": 0} if per_channel else {}
    out.op("DequantizeLinear", [weights, step, zero], f"{name}.weight", **axis)
    return f"{name}.weight", _bias(out, layer, name, bias, scale)


def _bias(out: Emitter, layer: WeightedLayer, name: str, bias: Array, weight_scale: npt.NDArray[np.float32]) -> str:
    if out.target != "onnxruntime":
        return out.constant(f"{name}.bias", bias.astype(np.float32))
    scale = np.broadcast_to(weight_scale * np.float32(step_size(layer.input_exponent)), bias.shape).astype(np.float32)
    codes = out.constant(f"{name}.bias_codes", np.rint(bias.astype(np.float64) / scale).astype(np.int32))
    step = out.constant(f"{name}.bias_scale", scale)
    zero = out.constant(f"{name}.bias_zero_point", np.zeros(scale.shape, np.int32))
    return out.op("DequantizeLinear", [codes, step, zero], f"{name}.bias", axis=0)


def _product(out: Emitter, node: Node, layer: FloatLayer, inputs: list[str]) -> str:
    if node.kind == "linear":
        if out.target != "tensorrt":
            return out.op("Gemm", inputs, f"{node.name}.out", transB=1)
        out.unflattened[node.name] = [len(layer.weight), 1, 1]
        kernel = out.unflattened.get(node.inputs[0], [0, 1, 1])[1:]
        return out.op("Conv", inputs, f"{node.name}.out", kernel_shape=kernel)
    padding, count = node.integers("padding"), layer.weight.dim() - 2
    window: dict[str, int | float | str | list[int]] = {
        "kernel_shape": list(layer.weight.shape[2:]),
        "strides": node.integers("stride"),
        "pads": padding if len(padding) > count else padding * 2,
        "dilations": node.integers("dilation"),
        "group": node.integer("groups"),
    }
    if node.kind == "conv":
        return out.op("Conv", inputs, f"{node.name}.out", **window)
    window["output_padding"] = node.integers("output_padding")
    return out.op("ConvTranspose", inputs, f"{node.name}.out", **window)


def _linear_as_conv(out: Emitter, node: Node, codes: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    """Weights (out, features) as the kernel of a convolution over the tensor before its flatten."""
    source = node.inputs[0]
    if source not in out.unflattened:
        shape = out.integers(f"{node.name}.shape", [0, codes.shape[1], 1, 1])
        out.tensor[source] = out.op("Reshape", [out.tensor[source], shape], f"{node.name}.image")
        out.unflattened[source] = [codes.shape[1], 1, 1]
    return codes.reshape(len(codes), *out.unflattened[source])
