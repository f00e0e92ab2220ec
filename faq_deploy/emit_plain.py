"""ONNX nodes of quantizers, sums, products, pools, and ops that only move values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, cast

import numpy as np

from faq_deploy.emitter import Emitter
from faq_deploy.fixed_point import step_size
from faq_deploy.graph import Node
from faq_deploy.layers import ActivationQuantizer
from faq_deploy.plain_layers import Constant
from faq_deploy.storage import Storage

__all__ = ["PLAIN"]


def _input(out: Emitter, node: Node) -> None:
    out.tensor[node.name] = node.name


def _constant(out: Emitter, node: Node) -> None:
    layer = cast(Constant, out.net.layers[node.name])
    value = out.constant(f"{node.name}.value", layer.value.numpy())
    out.tensor[node.name] = value
    if not layer.batched:
        return
    source = next(n.name for n in out.graph if n.kind == "input")
    shape = out.op("Shape", [source], f"{node.name}.shape")
    ends = [out.integers(f"{node.name}.{key}", [position]) for key, position in (("first", 0), ("second", 1))]
    batch = out.op("Slice", [shape, *ends], f"{node.name}.batch")
    rest = out.integers(f"{node.name}.rest", list(layer.value.shape[1:]))
    whole = out.op("Concat", [batch, rest], f"{node.name}.expanded_shape", axis=0)
    out.tensor[node.name] = out.op("Expand", [value, whole], f"{node.name}.out")


def _quantize(out: Emitter, node: Node) -> None:
    layer = cast(ActivationQuantizer, out.net.layers[node.name])
    scale = float(step_size(layer.exponent))
    if out.net.holds_constant(node.name):
        _quantized_constant(out, node, layer, scale)
        return
    (source,) = out.elementwise(node)
    if layer.clip == "relu":
        source = out.op("Relu", [source], f"{node.name}.relu")
    out.tensor[node.name] = out.quantize(node.name, source, scale, Storage(out.target, layer))


def _quantized_constant(out: Emitter, node: Node, layer: ActivationQuantizer, scale: float) -> None:
    """Codes of a tensor that is the same for all images, stored as a weight is."""
    storage = Storage(out.target, layer)
    codes = layer.codes(layer(cast(Constant, out.net.layers[node.inputs[0]]).value))
    stored = out.constant(f"{node.name}.constant_codes", (codes.numpy() + storage.zero_point).astype(storage.dtype))
    step = out.number(f"{node.name}.scale", scale)
    zero = out.constant(f"{node.name}.zero_point", np.array(storage.zero_point, storage.dtype))
    out.tensor[node.name] = out.op("DequantizeLinear", [stored, step, zero], f"{node.name}.values")
    if len(out.graph.consumers()[node.inputs[0]]) == 1:
        del out.initializers[out.tensor[node.inputs[0]]]  # nobody else reads the floats


def _same(out: Emitter, node: Node) -> None:
    """Dropout and stochastic depth are nothing at inference."""
    (out.tensor[node.name],) = out.elementwise(node)


def _relu(out: Emitter, node: Node) -> None:
    cap = node.settings["cap"]
    (source,) = out.elementwise(node)
    if cap is None:
        out.tensor[node.name] = out.op("Relu", [source], f"{node.name}.out")
        return
    assert isinstance(cap, (int, float))
    bounds = [out.number(f"{node.name}.low", 0.0), out.number(f"{node.name}.high", cap)]
    out.tensor[node.name] = out.op("Clip", [source, *bounds], f"{node.name}.out")


def _binary(kind: str) -> Callable[[Emitter, Node], None]:
    def emit(out: Emitter, node: Node) -> None:
        out.tensor[node.name] = out.op(kind, out.elementwise(node), f"{node.name}.out")

    return emit


def _cat(out: Emitter, node: Node) -> None:
    axis = node.integer("axis") if "axis" in node.settings else 1
    out.moved(node, out.op("Concat", [out.flat(i) for i in node.inputs], f"{node.name}.out", axis=axis))


def _pad(out: Emitter, node: Node) -> None:
    pads = node.integers("pads")
    half = len(pads) // 2
    inputs = [out.flat(node.inputs[0]), out.integers(f"{node.name}.pads", [0, *pads[:half], 0, *pads[half:]])]
    if node.text("mode") == "constant":
        inputs.append(out.number(f"{node.name}.zero", 0.0))
    out.moved(node, out.op("Pad", inputs, f"{node.name}.out", mode=node.text("mode")))


def _permute(out: Emitter, node: Node) -> None:
    out.moved(node, out.op("Transpose", [out.flat(node.inputs[0])], f"{node.name}.out", perm=node.integers("perm")))


def _slice(out: Emitter, node: Node) -> None:
    values = ((key, node.integer(key)) for key in ("start", "end", "axis", "step"))
    bounds = [out.integers(f"{node.name}.{key}", [value]) for key, value in values]
    out.moved(node, out.op("Slice", [out.flat(node.inputs[0]), *bounds], f"{node.name}.out"))


def _max_pool(out: Emitter, node: Node) -> None:
    source, dilations = out.tensor[node.inputs[0]], node.integers("dilation")
    out.moved(node, out.op("MaxPool", [source], f"{node.name}.out", **_window(node), dilations=dilations))


def _avg_pool(out: Emitter, node: Node) -> None:
    mean = out.op(
        "AveragePool",
        [out.tensor[node.inputs[0]]],
        f"{node.name}.out",
        **_window(node),
        # without padding it says nothing, and optimized onnxruntime gets ceil_mode wrong with it
        count_include_pad=int(bool(node.settings["count_include_pad"]) and any(node.integers("padding"))),
    )
    out.tensor[node.name] = out.shifted(node, mean)


def _window(node: Node) -> dict[str, int | float | str | list[int]]:
    kernel, padding = node.integers("kernel"), node.integers("padding")
    return {
        "kernel_shape": kernel,
        "strides": node.integers("stride"),
        "pads": padding if len(padding) > len(kernel) else padding * 2,
        "ceil_mode": int(bool(node.settings["ceil_mode"])),
    }


def _global_avg_pool(out: Emitter, node: Node) -> None:
    mean = out.op("GlobalAveragePool", [out.tensor[node.inputs[0]]], f"{node.name}.out")
    out.tensor[node.name] = out.shifted(node, mean)


def _flatten(out: Emitter, node: Node) -> None:
    source, shape = node.inputs[0], node.integers("shape")
    if out.target == "tensorrt" and len(shape) == 3:
        out.tensor[node.name] = out.tensor[source]
        out.unflattened[node.name] = shape
        return
    out.moved(node, out.op("Flatten", [out.flat(source)], f"{node.name}.out", axis=1))


def _reshape(out: Emitter, node: Node) -> None:
    source, shape = node.inputs[0], node.integers("shape")
    if out.unflattened.get(source) == shape:
        out.tensor[node.name] = out.tensor[source]
        return
    wanted = out.integers(f"{node.name}.shape", [0, *shape])
    out.moved(node, out.op("Reshape", [out.flat(source), wanted], f"{node.name}.out"))


PLAIN: Final[dict[str, Callable[[Emitter, Node], None]]] = {
    "input": _input,
    "constant": _constant,
    "quantize": _quantize,
    "relu": _relu,
    "add": _binary("Add"),
    "sub": _binary("Sub"),
    "mul": _binary("Mul"),
    "cat": _cat,
    "pad": _pad,
    "permute": _permute,
    "slice": _slice,
    "max_pool": _max_pool,
    "avg_pool": _avg_pool,
    "global_avg_pool": _global_avg_pool,
    "flatten": _flatten,
    "reshape": _reshape,
    "dropout": _same,
    "stochastic_depth": _same,
}
