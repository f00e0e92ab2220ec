"""A calibrated net as an ONNX graph (opset 13 forms, written by ourselves: S3, T2, U17)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import onnx
from onnx import TensorProto, helper

from faq_deploy.emit_norm import emit_norm
from faq_deploy.emit_plain import PLAIN
from faq_deploy.emit_resample import emit_adaptive_avg_pool, emit_resize
from faq_deploy.emit_unary import emit_sloped, emit_unary
from faq_deploy.emit_weighted import emit_batch_norm, emit_weighted
from faq_deploy.emitter import Emitter
from faq_deploy.graph import Node
from faq_deploy.net import QuantizedNet
from faq_deploy.place import Target

__all__ = ["emit_graph", "emit_with_modules", "output_name", "output_names"]

_EMIT: Final[dict[str, Callable[[Emitter, Node], None]]] = {
    **PLAIN,
    "conv": emit_weighted,
    "conv_transpose": emit_weighted,
    "linear": emit_weighted,
    "batch_norm": emit_batch_norm,
    "norm": emit_norm,
    "prelu": emit_sloped,
    "unary": emit_unary,
    "resize": emit_resize,
    "adaptive_avg_pool": emit_adaptive_avg_pool,
}


def emit_graph(net: QuantizedNet, target: Target) -> onnx.GraphProto:
    """All nodes of a net.

    Args:
        net: calibrated, in mode `quantize`.
        target: whose form of quantizers and biases is written.

    Returns:
        A graph whose inputs bear the names of the net's input nodes and whose outputs are named as `output_names` says.
    """
    return emit_with_modules(net, target)[0]


def emit_with_modules(net: QuantizedNet, target: Target) -> tuple[onnx.GraphProto, dict[str, str]]:
    """As `emit_graph`, and the path of the module in the user's model that each ONNX node comes from, by its name."""
    out = Emitter(net, target)
    modules: dict[str, str] = {}
    for node in net.graph:
        before = len(out.nodes)
        _EMIT[node.kind](out, node)
        if node.module:
            modules.update((made.name, node.module) for made in out.nodes[before:])
    results, layers = [], {node.name for node in net.graph}
    for node_name, output in zip(net.graph.outputs, output_names(net), strict=True):
        last = out.tensor[node_name]
        if node_name in out.unflattened:
            out.op("Flatten", [last], output, axis=1)
        else:
            out.op("Identity", [last], output)
        if output in layers:
            out.nodes[-1].name = f"{output}.output"  # a layer has the name itself
        results.append(helper.make_tensor_value_info(output, TensorProto.FLOAT, ["N", *out.shapes[node_name]]))
    inputs = [
        helper.make_tensor_value_info(node.name, TensorProto.FLOAT, ["N", *node.integers("shape")])
        for node in net.graph
        if node.kind == "input"
    ]
    graph = helper.make_graph(out.nodes, "faq_deploy", inputs, results, list(out.initializers.values()))
    return graph, modules


def output_names(net: QuantizedNet) -> list[str]:
    """Names of the ONNX outputs: `logits` if there is one, else what the model calls them, or their nodes' names.

    A position becomes `output_0`; the name of an input, and one that comes again, gets its number: `NAME.output_2`.
    """
    graph = net.graph
    if len(graph.outputs) == 1:
        return ["logits"]
    inputs = {node.name for node in graph if node.kind == "input"}
    found: list[str] = []
    for label in graph.labels or graph.outputs:
        name = output_name(label)
        found.append(f"{name}.output_{len(found)}" if name in inputs or name in found else name)
    return found


def output_name(label: str) -> str:
    """The ONNX output of what the model calls `label`: a key as it is, a position as `output_0`."""
    return f"output_{label}" if label[:1].isdigit() else label
