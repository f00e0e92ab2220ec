"""Weights behind DequantizeLinear and Transpose, stored as the Transpose would leave them: the same numbers."""

from __future__ import annotations

from typing import Final

import numpy as np
import onnx
from onnx import helper

from engines.lint_layers import transposed_weight
from engines.model_edit import add_constant, drop_orphans, free_name, read_names
from engines.qdq_graph import QdqGraph, attributes, read_graph

__all__ = ["turned_weights"]

_MOVED: Final = (np.int8, np.uint8, np.float32)


def turned_weights(model: onnx.ModelProto) -> list[str]:
    """Transpose the constants, and take the Transpose nodes out.

    Args:
        model: is changed.

    Returns:
        The names of the layers that read their weights without a Transpose now.
    """
    graph, before = read_graph(model), read_names(model.graph)
    done = []
    for hit in list(transposed_weight(graph)):
        layer = next(node for node in model.graph.node if (node.name or node.output[0]) == hit.node)
        chain = _chain(graph, layer)
        if chain:
            _turn(model, graph, layer, chain)
            done.append(hit.node)
    drop_orphans(model, before)
    return done


def _chain(graph: QdqGraph, layer: onnx.NodeProto) -> list[onnx.NodeProto]:
    """What makes the weight, from the layer back: Transpose, DequantizeLinear, QuantizeLinear if there is one."""
    turn = graph.producer[layer.input[1]]
    chain = [turn, graph.producer[turn.input[0]]]
    quantize = graph.producer.get(chain[1].input[0])
    chain += [quantize] if quantize is not None else []
    value = graph.constants.get(chain[-1].input[0])
    blocked = any(attributes(node).get("block_size") for node in chain[1:])
    return [] if value is None or value.dtype not in _MOVED or blocked else chain


def _turn(model: onnx.ModelProto, graph: QdqGraph, layer: onnx.NodeProto, chain: list[onnx.NodeProto]) -> None:
    turn, *quantizers = chain
    value = graph.constants[quantizers[-1].input[0]]
    given = attributes(turn).get("perm")
    perm = list(given) if isinstance(given, tuple) else list(range(value.ndim))[::-1]
    name = add_constant(model, value.transpose(perm), f"{quantizers[-1].input[0]}.turned")
    at = list(model.graph.node).index(turn)
    for node in reversed(quantizers):
        fresh = onnx.NodeProto()
        fresh.CopyFrom(node)
        fresh.input[0] = name
        name = fresh.output[0] = free_name(model, f"{node.output[0]}.turned")
        fresh.name = f"{node.name or node.output[0]}.turned"
        axis = attributes(node).get("axis", 1)
        kept = [attribute for attribute in fresh.attribute if attribute.name != "axis"]
        del fresh.attribute[:]
        scale = graph.constants.get(node.input[1])
        fresh.attribute.extend(kept)
        if isinstance(axis, int) and scale is not None and scale.size > 1:
            fresh.attribute.append(helper.make_attribute("axis", perm.index(axis % value.ndim)))
        model.graph.node.insert(at, fresh)
        at += 1
    layer.input[1] = name
    for node in chain:
        if node.output[0] not in read_names(model.graph):
            model.graph.node.remove(node)
