"""ONNX nodes of LayerNorm, GroupNorm and InstanceNorm: the steps of `ExactNorm`, one operator each."""

from __future__ import annotations

from typing import cast

from faq_deploy.emitter import Emitter
from faq_deploy.fixed_point import step_size
from faq_deploy.graph import Node
from faq_deploy.norm_layer import SPLIT, ExactNorm, fits_one_sum

__all__ = ["emit_norm"]


def emit_norm(out: Emitter, node: Node) -> None:
    """Mean and variance from exact integer sums of codes; from plain means where the norm stays in float."""
    layer, name = cast(ExactNorm, out.net.layers[node.name]), node.name
    source, shape = node.inputs[0], out.shapes[node.inputs[0]]
    axis = 1
    tensor, rank = _channels_on_axis_1(out, node, shape)
    quantized = layer.mode == "quantize"
    if quantized:
        scale = out.number(f"{name}.per_step", float(step_size(-layer.input_exponent)))
        tensor = out.op("Mul", [tensor, scale], f"{name}.integers")
    if layer.spatial:
        groups = out.integers(f"{name}.groups", [0, layer.groups, -1])
        tensor, axis = out.op("Reshape", [tensor, groups], f"{name}.grouped"), 2
    count = layer.elements((1, *shape)) if quantized else 0
    centred, variance = (
        _exact(out, layer, name, tensor, axis, count) if quantized else _float(out, layer, name, tensor, axis)
    )
    eps = out.number(f"{name}.eps", float(layer.scaled_eps()) if quantized else layer.eps)
    deviation = out.op("Sqrt", [out.op("Add", [variance, eps], f"{name}.shifted")], f"{name}.deviation")
    tensor = out.op("Div", [centred, deviation], f"{name}.normalized")
    if layer.spatial:
        lying = out.unflattened.get(source, list(shape))
        tensor = out.op("Reshape", [tensor, out.integers(f"{name}.shape", [0, *lying])], f"{name}.ungrouped")
    weight, bias = (t.detach().numpy() for t in (layer.weight, layer.bias))
    tensor = out.op("Mul", [tensor, out.by_channel(f"{name}.weight", weight, rank)], f"{name}.scaled")
    out.tensor[name] = out.op("Add", [tensor, out.by_channel(f"{name}.bias", bias, rank)], f"{name}.out")


def _channels_on_axis_1(out: Emitter, node: Node, shape: tuple[int, ...]) -> tuple[str, int]:
    """The input, its flattened axis still in three only if the channels are one of them; and its rank."""
    source = node.inputs[0]
    lying = out.unflattened.get(source)
    if lying is not None and lying[0] != shape[0]:
        return out.flat(source), 2
    (tensor,) = out.elementwise(node)
    return tensor, (len(shape) if lying is None else len(lying)) + 1


def _exact(out: Emitter, layer: ExactNorm, name: str, k: str, axis: int, count: int) -> tuple[str, str]:
    """Centred codes and their variance."""
    axes = out.integers(f"{name}.axes", [axis])
    number = out.number(f"{name}.count", count)

    def total(tensor: str, what: str) -> str:
        return out.op("ReduceSum", [tensor, axes], f"{name}.{what}", keepdims=1)

    square = out.op("Mul", [k, k], f"{name}.square")
    if fits_one_sum(count, layer.largest_code):
        squares = total(square, "squares")
    else:
        split, share = out.number(f"{name}.split", SPLIT), out.number(f"{name}.share", 1 / SPLIT)
        high = out.op("Floor", [out.op("Mul", [square, share], f"{name}.parts")], f"{name}.high")
        low = out.op("Sub", [square, out.op("Mul", [high, split], f"{name}.high_part")], f"{name}.low")
        highs = out.op("Mul", [total(high, "highs"), split], f"{name}.high_squares")
        squares = out.op("Add", [highs, total(low, "lows")], f"{name}.squares")
    second = out.op("Div", [squares, number], f"{name}.second_moment")
    if not layer.centered:
        return k, second
    mean = out.op("Div", [total(k, "sum"), number], f"{name}.mean")
    first = out.op("Mul", [mean, mean], f"{name}.first_moment")
    variance = out.op("Relu", [out.op("Sub", [second, first], f"{name}.difference")], f"{name}.variance")
    return out.op("Sub", [k, mean], f"{name}.centred"), variance


def _float(out: Emitter, layer: ExactNorm, name: str, x: str, axis: int) -> tuple[str, str]:
    """Centred values and their variance."""
    if not layer.centered:
        square = out.op("Mul", [x, x], f"{name}.square")
        return x, out.op("ReduceMean", [square], f"{name}.variance", axes=[axis], keepdims=1)
    mean = out.op("ReduceMean", [x], f"{name}.mean", axes=[axis], keepdims=1)
    centred = out.op("Sub", [x, mean], f"{name}.centred")
    square = out.op("Mul", [centred, centred], f"{name}.square")
    return centred, out.op("ReduceMean", [square], f"{name}.variance", axes=[axis], keepdims=1)
