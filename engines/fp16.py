"""FP16 where the user left a part in float (no codes move), and the whole net in FP16 to compare speed with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import onnx

from engines.fixed_tensor import Refused, from_floats
from engines.graph_edit import GraphEdit, layer_name
from engines.half import LARGEST, SMALLEST_NORMAL, in_half
from engines.operators import WEIGHTED
from engines.qdq_graph import Constant, QdqGraph, attributes, read_graph
from engines.tensor_kinds import FLOAT32, element_type, tensor_kinds
from engines.turing_forms import for_every_gpu

__all__ = ["float_baseline", "fp16_baseline", "fp16_rest"]

# what may follow a layer in FP16; sums of squares and exponentials, which leave its range, stay FP32
_FOLLOWERS: Final = frozenset(
    {
        *("Abs", "Add", "Clip", "Div", "Dropout", "Elu", "Gelu", "HardSigmoid", "HardSwish", "Identity", "LeakyRelu"),
        *("MatMul", "Max", "Min", "Mul", "Neg", "PRelu", "Relu", "Selu", "Sigmoid", "Softmax", "Sub", "Tanh"),
        *("AveragePool", "GlobalAveragePool", "GlobalMaxPool", "MaxPool", "Resize"),
        *("Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "Pad", "Reshape", "Slice", "SpaceToDepth"),
        *("Split", "Squeeze", "Tile", "Transpose", "Unsqueeze"),
    }
)
_GRID_BITS: Final = 16  # constants that span no more bits are exact (the 0/1 matrix of a pool), not a float layer
_MOST_NAMES: Final = 4
_QUANTIZERS: Final = ("QuantizeLinear", "DequantizeLinear")


def fp16_rest(model: onnx.ModelProto) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """Compute the layers that were left in float in FP16, and what follows them up to the next codes.

    Functions, norms, adds and pools between codes stay in FP32: FP16 would move codes. So do layers whose weights FP16
    can't hold, and all scales.

    Args:
        model: a QDQ network.

    Returns:
        The model (the very object where nothing had to change) and what was done or not, a sentence each.
    """
    graph, kinds, notes = read_graph(model), tensor_kinds(model), []
    layers = [node for node in graph.nodes if _is_float_layer(graph, node)]
    layers = [node for node in layers if element_type(kinds, node.input[0]) in FLOAT32]
    fitting = []
    for node in layers:
        trouble = _trouble(graph, node)
        if trouble is None:
            fitting.append(node)
        else:
            notes.append(f"{layer_name(model, node)} stays in FP32: {trouble}.")
    if not fitting:
        why = "no layer with weights was left in float" if not layers else "no float layer's weights fit"
        notes.append(f"Nothing computes in FP16: {why}. What lies between codes stays in FP32, where codes can't move.")
        return model, tuple(notes)
    names = ", ".join(layer_name(model, node) for node in fitting[:_MOST_NAMES])
    more = f" and {len(fitting) - _MOST_NAMES} more" if len(fitting) > _MOST_NAMES else ""
    computes = "computes" if len(fitting) == 1 else "compute"
    notes.append(
        f"{names}{more} {computes} in FP16, with what follows up to the next codes; functions and norms between codes "
        "stay in FP32, since FP16 would move codes."
    )
    return in_half(model, _with_followers(graph, fitting)), tuple(notes)


def fp16_baseline(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same network without quantization, all of it in FP16, to compare speed with.

    Its weights are the dequantized ones and nothing clips where a quantizer did, so what it computes is not to be
    compared. Network inputs and outputs stay float32.

    Args:
        model: a QDQ network.

    Returns:
        A model without QuantizeLinear and DequantizeLinear, its forms as `for_every_gpu` makes them.

    Raises:
        InputError: a layer that TensorRT has no kernel for in any form, or an operator set older than 13.
    """
    plain = float_baseline(model)
    kinds = tensor_kinds(plain)
    halves = [node.output[0] for node in plain.graph.node if _takes_half(node, kinds)]
    return in_half(plain, halves)


def float_baseline(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same network without quantization in FP32, as `fp16_baseline` has it in FP16.

    Args:
        model: a QDQ network.

    Returns:
        A model without QuantizeLinear and DequantizeLinear.

    Raises:
        InputError: as `fp16_baseline`.
    """
    edit = GraphEdit(for_every_gpu(model)[0])
    chosen = [node for node in edit.model.graph.node if node.op_type in _QUANTIZERS or _clips_codes(edit, node)]
    if chosen:
        edit.run(chosen, _without_quantizer)
    plain = edit.model
    del plain.graph.value_info[:]  # codes that are none any more
    for output in plain.graph.output:
        output.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    _forget_codes(plain.graph)
    return plain


def _forget_codes(graph: onnx.GraphProto) -> None:
    """Rename the tensors inside that are named as codes, which runners would look for."""
    outputs = {value.name for value in graph.output}
    for node in graph.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                if name.endswith(".codes") and name not in outputs:
                    names[index] = f"{name}.float"


def _without_quantizer(edit: GraphEdit, node: onnx.NodeProto) -> None:
    value = edit.value(node.output[0])
    if value is not None:
        if node.op_type == "DequantizeLinear":
            edit.hold(node.output[0], value)
        return
    # codes of a uint8 quantizer whose zero point is 0 can't be negative: it is a ReLU too
    point = edit.value(node.input[2]) if len(node.input) > 2 and node.input[2] else None
    unsigned = node.op_type == "QuantizeLinear" and point is not None and point.dtype == np.uint8 and not point.any()
    edit.add("Relu" if unsigned else "Identity", [node.input[0]], node.name, output=node.output[0])


def _clips_codes(edit: GraphEdit, node: onnx.NodeProto) -> bool:
    """Whether a node clips codes: its bounds are integers."""
    bounds = [edit.value(name) for name in node.input[1:] if name] if node.op_type == "Clip" else []
    return any(bound is not None and bound.dtype.kind in "iu" for bound in bounds)


def _takes_half(node: onnx.NodeProto, kinds: dict[str, onnx.TypeProto]) -> bool:
    if node.op_type in ("Cast", "Constant", "ConstantOfShape", "BatchNormalization", "Shape"):
        return False
    return any(element_type(kinds, name) in FLOAT32 for name in node.input if name)


def _is_float_layer(graph: QdqGraph, node: onnx.NodeProto) -> bool:
    if node.op_type not in WEIGHTED:
        return False
    weight = graph.constants.get(node.input[_weight(graph, node)])
    return weight is not None and weight.dtype == np.float32 and not _on_a_grid(weight)


def _weight(graph: QdqGraph, node: onnx.NodeProto) -> int:
    """Which input is the weight; a matrix product may have it on the left."""
    return 0 if node.op_type == "MatMul" and node.input[0] in graph.constants else 1


def _on_a_grid(weight: Constant) -> bool:
    try:
        parts = from_floats(weight)
    except Refused:  # NaN or infinity
        return False
    live = parts.codes != 0
    if not live.any():
        return True
    highest = np.frexp(np.abs(weight.astype(np.float64)).max())[1]
    return bool(highest - parts.exponent[live].min() <= _GRID_BITS)


def _trouble(graph: QdqGraph, node: onnx.NodeProto) -> str | None:
    """Why FP16 can't hold a layer's weights, or its bias."""
    weight = graph.constants[node.input[_weight(graph, node)]]
    bias = graph.constants.get(node.input[2]) if len(node.input) > 2 else None
    rows_last = node.op_type in ("ConvTranspose", "MatMul") or (
        node.op_type == "Gemm" and not attributes(node).get("transB")
    )
    axis = min(1, weight.ndim - 1) if rows_last else 0
    largest = np.abs(weight).max(axis=tuple(a for a in range(weight.ndim) if a != axis))
    if not (largest <= LARGEST).all() or (bias is not None and not (np.abs(bias) <= LARGEST).all()):
        return f"it has weights or a bias over {LARGEST:g}, the largest that FP16 holds"
    tiny = int(((largest > 0) & (largest < SMALLEST_NORMAL)).sum())
    if tiny:
        return f"all weights of {tiny} of its {largest.size} output channels are below 2^-14, where FP16 loses bits"
    return None


def _with_followers(graph: QdqGraph, layers: Sequence[onnx.NodeProto]) -> list[str]:
    """First outputs of the layers and of what follows them in float, up to quantizers and quantized layers."""
    chosen = dict.fromkeys(node.output[0] for node in layers)
    half = {name for node in layers for name in node.output}
    for node in graph.nodes:
        if node.op_type in _FOLLOWERS and not half.isdisjoint(node.input) and node.output[0] not in chosen:
            chosen[node.output[0]] = None
            half.update(node.output)
    return list(chosen)
