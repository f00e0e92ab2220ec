"""Small edits of an ONNX model in place: a constant more, and what nobody reads any more less."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

from engines.qdq_graph import Constant

__all__ = ["add_constant", "drop_orphans", "free_name", "inner_reads", "read_names"]


def add_constant(model: onnx.ModelProto, value: Constant, name: str) -> str:
    """Add an initializer.

    Args:
        model: is changed.
        value: what it holds, of any rank.
        name: wanted; a number is appended where it is taken.

    Returns:
        The name that it got.
    """
    fresh = free_name(model, name)
    model.graph.initializer.append(numpy_helper.from_array(np.asarray(value, order="C"), fresh))
    return fresh


def free_name(model: onnx.ModelProto, name: str) -> str:
    """`name`, or `name.2` and so on where a tensor has it already."""
    graph = model.graph
    taken = {tensor.name for tensor in graph.initializer} | {value.name for value in (*graph.input, *graph.output)}
    taken |= {made for node in graph.node for made in node.output}
    fresh, number = name, 1
    while fresh in taken:
        number += 1
        fresh = f"{name}.{number}"
    return fresh


def read_names(graph: onnx.GraphProto) -> set[str]:
    """Every tensor that a node reads, inner graphs included, and every output of the graph."""
    names = {value.name for value in graph.output}
    for node in graph.node:
        names.update(node.input)
    return names | inner_reads(graph)


def inner_reads(graph: onnx.GraphProto) -> set[str]:
    """Every tensor that the inner graphs of If, Loop and Scan read."""
    inner = (held for node in graph.node for attribute in node.attribute for held in (attribute.g, *attribute.graphs))
    return {name for graph in inner for name in read_names(graph)}


def drop_orphans(model: onnx.ModelProto, before: set[str]) -> None:
    """Drop constants that were read and are not any more.

    Args:
        model: is changed.
        before: `read_names` of what it was.
    """
    orphans = before - read_names(model.graph)
    constants = {tensor.name for tensor in model.graph.initializer} & orphans
    for held in (model.graph.initializer, model.graph.input):  # old files list initializers as inputs, too
        for index in reversed([i for i, entry in enumerate(held) if entry.name in constants]):
            del held[index]
    for node in [node for node in model.graph.node if node.op_type == "Constant" and node.output[0] in orphans]:
        model.graph.node.remove(node)
