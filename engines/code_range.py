"""Which codes a quantized activation can hold, whatever the image: its type, its zero point, and what clips it."""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import numpy as np
import onnx

from engines.qdq_graph import QdqGraph, constant

__all__ = ["CodeRange", "code_range"]

_NOT_NEGATIVE: Final = frozenset({"Abs", "HardSigmoid", "Relu", "Sigmoid"})
_KEEPS_SIGN: Final = frozenset({"AveragePool", "Flatten", "GlobalAveragePool", "Identity", "MaxPool", "Reshape"})


class CodeRange(NamedTuple):
    """Least and greatest code with the zero point taken away; 0 lies between them, for padding reads zeros."""

    low: int
    high: int


def code_range(graph: QdqGraph, dequantize: onnx.NodeProto) -> CodeRange | None:
    """The codes that a DequantizeLinear of an activation can read.

    Args:
        graph: the graph.
        dequantize: the node.

    Returns:
        None where their type isn't known.
    """
    quantize, clip = _makers(graph, dequantize)
    owner = quantize or dequantize
    point = constant(graph, owner, 2)
    if point is None and (len(owner.input) > 2 and owner.input[2]):
        return None  # computed
    dtype = point.dtype if point is not None else np.dtype(np.uint8) if quantize is not None else None
    if dtype is None or dtype.kind not in "iu" or (point is not None and point.size != 1):
        return None
    zero, limits = 0 if point is None else int(point.reshape(())), np.iinfo(dtype.name)
    lowest, highest = _bounds(graph, clip)
    low, high = max(int(limits.min), lowest) - zero, min(int(limits.max), highest) - zero
    if quantize is not None:
        low, high = _within(graph, quantize, low, high)
    return CodeRange(int(min(low, 0)), int(max(high, 0)))


def _makers(graph: QdqGraph, dequantize: onnx.NodeProto) -> tuple[onnx.NodeProto | None, onnx.NodeProto | None]:
    """The QuantizeLinear that makes the codes, and the Clip between, where there are."""
    node, clip = graph.producer.get(dequantize.input[0]), None
    if node is not None and node.op_type == "Clip":
        clip, node = node, graph.producer.get(node.input[0])
    return (node, clip) if node is not None and node.op_type == "QuantizeLinear" else (None, clip)


def _within(graph: QdqGraph, quantize: onnx.NodeProto, low: float, high: float) -> tuple[float, float]:
    """The range narrowed by what the quantized values went through."""
    source, scale = graph.producer.get(quantize.input[0]), constant(graph, quantize, 1)
    if source is not None and source.op_type == "Clip" and scale is not None and scale.size == 1:
        step, (lowest, highest) = float(scale.reshape(())), _bounds(graph, source)
        if step > 0:
            low = max(low, math.floor(lowest / step)) if math.isfinite(lowest) else low
            high = min(high, math.ceil(highest / step)) if math.isfinite(highest) else high
    while source is not None and source.op_type in _KEEPS_SIGN:
        source = graph.producer.get(source.input[0])
    return (max(low, 0), high) if source is not None and source.op_type in _NOT_NEGATIVE else (low, high)


def _bounds(graph: QdqGraph, clip: onnx.NodeProto | None) -> tuple[float, float]:
    """What a Clip cuts off, where it says so with constants."""
    found = [None if clip is None else constant(graph, clip, index) for index in (1, 2)]
    low, high = (None if bound is None or bound.size != 1 else float(bound.reshape(())) for bound in found)
    return -math.inf if low is None else low, math.inf if high is None else high
