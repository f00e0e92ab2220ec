"""What the lint rules ask of a graph: which nodes quantize, which tensors lie on a grid, and how to name them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import onnx

from engines.qdq_graph import QdqGraph, constant, label

__all__ = ["Hit", "grid_text", "grids", "hit", "is_power_of_two", "is_weight", "quantizers", "scale_of", "shared_scale"]

# these pass their input's grid on unchanged
_TRANSPARENT: Final = frozenset(
    {"Dropout", "Flatten", "Identity", "MaxPool", "Relu", "Reshape", "Squeeze", "Transpose", "Unsqueeze"}
)


@dataclass(frozen=True)
class Hit:
    """A place that a rule found: the node's name, one sentence about it, and what to do."""

    node: str
    message: str
    remedy: str


def hit(node: onnx.NodeProto, says: str, remedy: str) -> Hit:
    """A hit whose message begins with the node's type and name."""
    return Hit(node.name or node.output[0], f"{label(node)}{says}", remedy)


def quantizers(graph: QdqGraph) -> Iterator[onnx.NodeProto]:
    """All QuantizeLinear and DequantizeLinear nodes, in graph order."""
    return (node for node in graph.nodes if node.op_type in ("QuantizeLinear", "DequantizeLinear"))


def is_weight(graph: QdqGraph, node: onnx.NodeProto) -> bool:
    """Whether a Q or DQ works on a constant (a weight or a bias) rather than on an activation."""
    if node.input[0] in graph.constants:
        return True
    source = graph.producer.get(node.input[0])
    return source is not None and source.op_type == "QuantizeLinear" and source.input[0] in graph.constants


def scale_of(graph: QdqGraph, node: onnx.NodeProto) -> npt.NDArray[np.float64] | None:
    """Scale of a Q or DQ as float64 (exact), in its own shape; None where it is computed."""
    scale = constant(graph, node, 1)
    return None if scale is None else scale.astype(np.float64)


def grids(graph: QdqGraph, tensor: str) -> tuple[onnx.NodeProto, ...]:
    """The DequantizeLinear nodes that a tensor's values come from unchanged.

    Args:
        graph: the graph.
        tensor: a name in it.

    Returns:
        Empty where some of its values lie on no grid (a sum, an average, the graph input).
    """
    source = graph.producer.get(tensor)
    if source is None:
        return ()
    if source.op_type == "DequantizeLinear":
        return (source,)
    if source.op_type in _TRANSPARENT:
        return grids(graph, source.input[0])
    if source.op_type == "Concat":
        parts = [grids(graph, name) for name in source.input]
        return tuple(node for part in parts for node in part) if all(parts) else ()
    return ()


def shared_scale(graph: QdqGraph, tensor: str) -> npt.NDArray[np.float64] | None:
    """The scale of a tensor's grid, one value per channel or one in all; None where it has none, or several."""
    scales = [scale_of(graph, node) for node in grids(graph, tensor)]
    first = scales[0].reshape(-1) if scales and scales[0] is not None else None
    same = first is not None and all(scale is not None and np.array_equal(scale.reshape(-1), first) for scale in scales)
    return first if same else None


def is_power_of_two(value: float) -> bool:
    """Whether a positive number is 2^n."""
    return math.isfinite(value) and value > 0 and math.frexp(value)[0] == 0.5


def grid_text(value: float) -> str:
    """A scale as people read it: 2^-7, 3 x 2^-9, or 0.0123."""
    if not math.isfinite(value) or value <= 0:
        return str(value)
    numerator, denominator = float(value).as_integer_ratio()
    twos = (numerator & -numerator).bit_length() - 1
    odd, exponent = numerator >> twos, twos - (denominator.bit_length() - 1)
    if odd == 1:
        return f"2^{exponent}"
    return f"{odd} x 2^{exponent}" if odd <= 127 else f"{value:.6g}"
