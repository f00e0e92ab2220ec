"""Lint rule about INT8 kernels that TensorRT doesn't have."""

from __future__ import annotations

from collections.abc import Iterator

import onnx

from engines.int8_rules import Convolution, no_int8_kernel
from engines.lint_view import Hit, grids, hit
from engines.qdq_graph import QdqGraph, attributes

__all__ = ["grouped_int8", "without_kernel"]


def grouped_int8(graph: QdqGraph) -> Iterator[Hit]:
    """A quantized convolution for which TensorRT has no INT8 kernel runs in float: exact, but slow (C52)."""
    for node in graph.nodes:
        if node.op_type in ("Conv", "ConvTranspose") and all(grids(graph, name) for name in node.input[:2]):
            why = without_kernel(graph, node)
            if why is not None:
                yield hit(
                    node,
                    f": TensorRT has no INT8 kernel for it: {why}.",
                    "the codes stay the same, only slower: change the number of groups, or --skip it.",
                )


def without_kernel(graph: QdqGraph, node: onnx.NodeProto) -> str | None:
    """Why TensorRT has no INT8 kernel for a convolution with a quantized weight; None where it has.

    Args:
        graph: the graph.
        node: a Conv or ConvTranspose of it.

    Returns:
        A clause; see `int8_rules`.
    """
    found = grids(graph, node.input[1])
    weight = graph.constants.get(found[0].input[0]) if found else None
    if weight is None or weight.ndim < 3:
        return None
    group = attributes(node).get("group", 1)
    groups = group if isinstance(group, int) else 1
    transposed = node.op_type == "ConvTranspose"
    first, second = weight.shape[0], weight.shape[1] * groups
    inputs, outputs = (first, second) if transposed else (second, first)
    return no_int8_kernel(Convolution(inputs, outputs, groups, weight.ndim - 2, transposed))
