"""What the lint rules ask of a graph: which nodes quantize, which tensors lie on a grid, and how to name them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import onnx

from engines.qdq_graph import QdqGraph, attributes, constant, label

__all__ = [
    "FUNCTIONS",
    "Hit",
    "few_bits",
    "grid_text",
    "grids",
    "hit",
    "is_weight",
    "layer_bias",
    "lone_codes",
    "odd_factor",
    "powers_of_two",
    "quantizers",
    "scale_of",
    "shared_scale",
]

# these pass their input's grid on unchanged
_TRANSPARENT: Final = frozenset(
    {"DepthToSpace", "Dropout", "Expand", "Flatten", "Gather", "Identity", "MaxPool", "Relu", "Reshape", "Slice"}
    | {"SpaceToDepth", "Split", "Squeeze", "Transpose", "Unsqueeze"}
)
# element by element: between a DequantizeLinear and a QuantizeLinear they are a table with one entry for each code
FUNCTIONS: Final = frozenset(
    {"Abs", "Add", "Celu", "Clip", "Cos", "Div", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish"}
    | {"LeakyRelu", "Log", "Max", "Min", "Mish", "Mul", "Neg", "PRelu", "Pow", "Reciprocal", "Selu", "Sigmoid", "Sin"}
    | {"Softplus", "Softsign", "Sqrt", "Sub", "Tanh"}
)
_STATISTICS: Final = frozenset({"ReduceMean", "ReduceSum"})  # of a norm, whose other steps are functions


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
    name = node.input[0]
    # Brevitas clips codes of fewer bits, and of its narrow grid, between Q and DQ
    while (source := graph.producer.get(name)) is not None and source.op_type in ("QuantizeLinear", "Clip"):
        name = source.input[0]
    return name in graph.constants


def scale_of(graph: QdqGraph, node: onnx.NodeProto) -> npt.NDArray[np.float64] | None:
    """Scale of a Q or DQ as float64 (exact), in its own shape; None where it is computed."""
    scale = constant(graph, node, 1)
    return None if scale is None else scale.astype(np.float64)


def layer_bias(graph: QdqGraph, node: onnx.NodeProto) -> npt.NDArray[np.float64] | None:
    """A layer's bias in real units, from a float constant or from codes behind DequantizeLinear; None without one."""
    if len(node.input) < 3 or not node.input[2]:
        return None
    value = constant(graph, node, 2)
    if value is not None:
        return value.astype(np.float64).reshape(-1)
    source = graph.producer.get(node.input[2])
    if source is None or source.op_type != "DequantizeLinear":
        return None
    codes, scale = constant(graph, source, 0), scale_of(graph, source)
    return None if codes is None or scale is None else codes.astype(np.float64).reshape(-1) * scale.reshape(-1)


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
    if _only_moves(graph, source):
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


def lone_codes(graph: QdqGraph, *tensors: str) -> str | None:
    """The codes that some tensors are a function of: a table of an activation, or a norm.

    Args:
        graph: the graph.
        *tensors: names in it.

    Returns:
        The tensor of codes; None where a layer, a pool, another quantized tensor or the graph input takes part.
    """
    found, seen, pending = set(), set(graph.constants), list(tensors)
    while pending:
        name = pending.pop()
        if name in seen:
            continue
        seen.add(name)
        source = graph.producer.get(name)
        if source is None:
            return None
        if source.op_type == "DequantizeLinear":
            found.add(source.input[0])
        elif source.op_type in FUNCTIONS or source.op_type in _STATISTICS or _only_moves(graph, source):
            pending.extend(filter(None, source.input))
        else:
            return None
    activations = [codes for codes in found if codes not in graph.constants]
    return activations[0] if len(activations) == 1 else None


def few_bits(values: npt.NDArray[np.generic], bits: int) -> bool:
    """Whether numbers are integers of at most so many bits times one power of two."""
    wide = np.abs(values.astype(np.float64))
    top = float(wide.max(initial=0))
    if not 0 < top < math.inf:
        return top == 0
    codes = wide * 2.0 ** (bits - math.frexp(top)[1])
    return bool((codes == np.rint(codes)).all())


def powers_of_two(values: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """Which numbers are 2^n."""
    mantissas, _ = np.frexp(values)
    found: npt.NDArray[np.bool_] = mantissas == 0.5
    return found


def grid_text(value: float) -> str:
    """A scale as people read it: 2^-7, 3 x 2^-9, or 0.0123."""
    if not math.isfinite(value) or value <= 0:
        return str(value)
    odd, exponent = _odd_and_exponent(value)
    if odd == 1:
        return f"2^{exponent}"
    return f"{odd} x 2^{exponent}" if odd <= 127 else f"{value:.6g}"


def odd_factor(value: float) -> int | None:
    """The odd integer that a scale is a power of two of; None where it is not positive and finite."""
    return _odd_and_exponent(value)[0] if math.isfinite(value) and value > 0 else None


def _odd_and_exponent(value: float) -> tuple[int, int]:
    numerator, denominator = float(value).as_integer_ratio()
    twos = (numerator & -numerator).bit_length() - 1
    return numerator >> twos, twos - (denominator.bit_length() - 1)


def _only_moves(graph: QdqGraph, node: onnx.NodeProto) -> bool:
    """Whether a node passes its input's grid on: it moves values, and at most adds zeros."""
    if node.op_type == "Resize":
        return attributes(node).get("mode", "nearest") == "nearest"
    if node.op_type == "Pad":
        value = constant(graph, node, 2)
        absent = len(node.input) < 3 or not node.input[2]
        filled = attributes(node).get("mode", "constant") == "constant"
        return not filled or absent or (value is not None and not value.any())
    return node.op_type in _TRANSPARENT
