"""Which tensors of a QDQ graph can never be negative, whatever the image."""

from __future__ import annotations

from typing import Final

import numpy as np
import onnx

from engines.qdq_graph import QdqGraph, attributes, constant

__all__ = ["never_negative"]

_NEVER: Final = frozenset({"Abs", "Exp", "HardSigmoid", "Relu", "Sigmoid", "Softmax", "Softplus", "Sqrt"})
_IF_ITS_INPUT: Final = frozenset(
    {"AveragePool", "DepthToSpace", "Dropout", "Flatten", "Gather", "GlobalAveragePool", "GlobalMaxPool", "Identity"}
    | {"MaxPool", "ReduceMax", "ReduceMean", "ReduceSum", "Reshape", "Slice", "SpaceToDepth", "Split", "Squeeze"}
    | {"Transpose", "Unsqueeze"}
)
_IF_ALL_INPUTS: Final = frozenset({"Add", "Concat", "Mul"})


def never_negative(graph: QdqGraph, tensor: str) -> bool:
    """Whether a tensor holds no value under 0, as far as the graph says it.

    Args:
        graph: the graph.
        tensor: a name in it.

    Returns:
        False where it isn't known, as of the graph's input.
    """
    seen: set[str] = set()
    pending = [tensor]
    while pending:
        name = pending.pop()
        if name in seen:
            continue
        seen.add(name)
        asked = _asks(graph, name)
        if asked is None:
            return False
        pending += asked
    return True


def _asks(graph: QdqGraph, tensor: str) -> list[str] | None:
    """The tensors that must not be negative so that this one isn't; None where it can be anyhow."""
    value, node = graph.constants.get(tensor), graph.producer.get(tensor)
    if value is not None:
        return [] if value.dtype.kind in "iuf" and bool((value.astype(np.float64) >= 0).all()) else None
    if node is None:
        return None
    if node.op_type in _NEVER:
        return []
    if node.op_type in _IF_ITS_INPUT:
        return [node.input[0]]
    if node.op_type in _IF_ALL_INPUTS:
        return list(node.input)
    if node.op_type == "Clip":
        low = constant(graph, node, 1)
        return [] if low is not None and low.size == 1 and float(low.reshape(())) >= 0 else [node.input[0]]
    if node.op_type == "DequantizeLinear":
        return _of_codes(graph, node)
    return None


def _of_codes(graph: QdqGraph, node: onnx.NodeProto) -> list[str] | None:
    codes, point = constant(graph, node, 0), constant(graph, node, 2)
    if codes is not None:
        zero = 0.0 if point is None else float(point.astype(np.float64).max())
        return [] if codes.dtype.kind in "iu" and bool((codes.astype(np.float64) >= zero).all()) else None
    quantize = graph.producer.get(node.input[0])
    if quantize is None or quantize.op_type != "QuantizeLinear":
        return None
    if point is None:
        return [quantize.input[0]] if attributes(quantize).get("output_dtype") else []  # uint8 around 0
    lowest = np.iinfo(point.dtype.name).min if point.dtype.kind in "iu" else None
    return [] if lowest is not None and bool((point == lowest).all()) else [quantize.input[0]]
