"""4-bit weights: in the file (packed and unpacked), and in an engine's linear layers; the integers stay the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx

from engines.errors import InputError
from engines.graph_edit import GraphEdit, layer_name
from engines.host import RuntimeName
from engines.int4_storage import pack_int4, unpack_int4
from engines.int4_tensor import store_as_int4
from engines.newer_opset import at_int4_opset
from engines.qdq_graph import Attribute, Constant, QdqGraph, attributes, constant, read_graph
from engines.tensor_kinds import sizes, tensor_kinds

__all__ = ["int4_refused", "linears_as_int4", "pack_int4", "unpack_int4"]

_LOWEST, _HIGHEST = -8, 7
_MOST_NAMES: Final = 4
_OLDEST_SM: Final = 80  # "HW-specific datatypes: int4" is what TensorRT-RTX answers for SM 75


@dataclass(frozen=True)
class _Weight:
    """The weight of one linear layer: a matrix of codes.

    Args:
        codes: int8, two axes, the last one even.
        scale: one for each output (or for each block of one).
        outputs: their axis in `codes`.
        settings: attributes of its DequantizeLinear.
    """

    codes: Constant
    scale: Constant
    outputs: int
    settings: Mapping[str, int]


def linears_as_int4(model: onnx.ModelProto) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """Store the weights of linear layers in INT4 where their codes have 4 bits; no code changes.

    A linear layer is a Gemm, a MatMul with a constant matrix, or a convolution whose window covers all of its input;
    the last becomes a Gemm, for TensorRT has no INT4 convolution. Runtimes read INT4 and multiply in float, which is
    exact on codes. Layers whose codes are wider stay in INT8: nothing is quantized again after training.

    Args:
        model: a QDQ model with INT8 codes; it is not changed.

    Returns:
        The model (the very object where nothing changed) and which layers it was or wasn't, a sentence each.
    """
    graph, kinds = read_graph(model), tensor_kinds(model)
    chosen: dict[str, _Weight] = {}
    saved, nodes, wide, notes = 0, list[onnx.NodeProto](), list[str](), list[str]()
    for node in graph.nodes:
        if not _is_linear(graph, kinds, node):
            continue
        found = _weight(graph, node)
        if isinstance(found, _Weight):
            chosen[node.output[0]] = found
            nodes.append(node)
            saved += found.codes.size // 2
        elif found is None:
            wide.append(layer_name(model, node))
        else:
            notes.append(f"{layer_name(model, node)} stays in INT8: {found}.")
    if wide:
        have = "has" if len(wide) == 1 else "have"
        notes.append(
            f"{_listed(wide)} {have} 8-bit codes: nothing is quantized again after training; quantize with "
            "--int4-linear."
        )
    if not nodes:
        return model, tuple(notes) or ("No linear layer has quantized weights: nothing is stored in INT4.",)
    try:
        made = _rewritten(model, nodes, chosen)
    except InputError as error:
        return model, (f"Linear layers stay in INT8: {error.what}", *notes)
    names = [layer_name(model, node) for node in nodes]
    keep, compute = ("keeps its", "It computes") if len(names) == 1 else ("keep their", "They compute")
    first = (
        f"{_listed(names)} {keep} 4-bit weights in INT4 ({saved:,} bytes less). {compute} in FP32 from the same codes; "
        "only linear layers are stored in INT4."
    )
    return made, (first, *notes)


def int4_refused(runtime: RuntimeName, sm: int | None) -> str | None:
    """Why an engine can't keep its linear layers in INT4, one sentence; None where it can.

    Args:
        runtime: that will run it.
        sm: GPU architecture as one number; None where it isn't known.
    """
    if runtime == "onnxruntime":
        return "onnxruntime has no INT4 layers of this kind: linear layers are stored in INT8 there, the same codes."
    if sm is not None and sm < _OLDEST_SM:
        return f"SM {sm} has no INT4 (Turing refuses it): linear layers stay in INT8 there, with the same codes."
    return None


def _rewritten(model: onnx.ModelProto, nodes: list[onnx.NodeProto], chosen: Mapping[str, _Weight]) -> onnx.ModelProto:
    edit, stored = GraphEdit(model), set[str]()

    def rewrite(edit: GraphEdit, node: onnx.NodeProto) -> None:
        stored.update(_write(edit, node, chosen[node.output[0]]))

    edit.run(nodes, rewrite)
    made = at_int4_opset(edit.model)
    for tensor in made.graph.initializer:
        if tensor.name in stored:
            store_as_int4(tensor)
    return made


def _write(edit: GraphEdit, node: onnx.NodeProto, weight: _Weight) -> tuple[str, str]:
    """Replace one layer; returns the names of its codes and zero point, INT8 as yet."""
    title = node.name or node.output[0]
    codes = edit.constant(weight.codes, f"{title}.int4_codes")
    scale = edit.constant(weight.scale, f"{title}.int4_scale")
    zero = edit.constant(np.zeros(weight.scale.shape, np.int8), f"{title}.int4_zero_point")
    values = edit.add("DequantizeLinear", [codes, scale, zero], f"{title}.int4", output=None, **weight.settings)
    if node.op_type == "Conv":
        rows = edit.add("Flatten", [node.input[0]], f"{title}.rows", axis=1)
        transposed = {"transB": 1} if weight.outputs == 0 else {}
        sums = edit.add("Gemm", [rows, values, *node.input[2:]], title, output=f"{title}.int4_sums", **transposed)
        rank = len(edit.shape(node.input[0]) or ())
        axes = edit.numbers(range(2, rank), f"{title}.int4_axes")
        edit.add("Unsqueeze", [sums, axes], f"{title}.unflattened", output=node.output[0])
        return codes, zero
    settings: dict[str, int | float] = {
        name: value for name, value in attributes(node).items() if isinstance(value, int | float)
    }
    if node.op_type == "Gemm":
        settings["transB"] = int(weight.outputs == 0)
    edit.add(node.op_type, [node.input[0], values, *node.input[2:]], title, output=node.output[0], **settings)
    return codes, zero


def _is_linear(graph: QdqGraph, kinds: Mapping[str, onnx.TypeProto], node: onnx.NodeProto) -> bool:
    """Whether a node multiplies by one constant quantized matrix."""
    if node.op_type not in ("Conv", "Gemm", "MatMul"):
        return False
    dequantize = graph.producer.get(node.input[1])
    if dequantize is None or dequantize.op_type != "DequantizeLinear":
        return False
    codes = constant(graph, dequantize, 0)
    if codes is None or codes.dtype != np.int8 or constant(graph, dequantize, 1) is None:
        return False
    return codes.ndim == 2 if node.op_type != "Conv" else _covers_all(kinds, node, codes.shape)


def _covers_all(kinds: Mapping[str, onnx.TypeProto], node: onnx.NodeProto, shape: tuple[int, ...]) -> bool:
    """Whether a convolution's window covers all of its input, so that there is one place for it."""
    settings = attributes(node)
    inputs = sizes(kinds, node.input[0])
    plain = settings.get("group", 1) == 1 and settings.get("auto_pad", "NOTSET") in ("NOTSET", "VALID")
    return plain and inputs is not None and inputs[1:] == shape[1:] and not any(_list(settings.get("pads")))


def _list(value: Attribute | None) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, tuple) else ()


def _weight(graph: QdqGraph, node: onnx.NodeProto) -> _Weight | str | None:
    """The weight as a matrix that INT4 can hold; why it can't; None where codes are wider than 4 bits."""
    dequantize = graph.producer[node.input[1]]
    codes, scale, point = (constant(graph, dequantize, index) for index in range(3))
    if codes is None or scale is None:
        return "its scales are not constant"
    if codes.size and (codes.min() < _LOWEST or codes.max() > _HIGHEST):
        return None
    if point is not None and point.any():
        return "its zero point is not 0"
    settings = attributes(dequantize)
    axis, block = settings.get("axis", 1), settings.get("block_size", 0)
    assert isinstance(axis, int)
    assert isinstance(block, int)
    axis += codes.ndim if axis < 0 else 0
    outputs = 0 if node.op_type == "Conv" or attributes(node).get("transB") else 1
    if block:
        return _in_blocks(codes, scale, axis, outputs, block)
    if scale.size == 1:
        # one for each output: with a single one, TensorRT-RTX 1.7 takes INT4 for the type of the layer's input, too
        scale = np.repeat(scale.reshape(-1), codes.shape[outputs])
    elif axis != outputs:
        return "its scales don't belong to its outputs"
    matrix = codes.reshape(len(codes), -1) if node.op_type == "Conv" else codes
    if matrix.shape[-1] % 2 and node.op_type != "MatMul":  # the other way round is the same to a Gemm
        matrix, outputs = matrix.T, 1 - outputs
    if matrix.shape[-1] % 2:
        return f"INT4 needs an even last dimension, and its matrix is {' x '.join(map(str, matrix.shape))}"
    return _Weight(matrix, scale, outputs, {"axis": outputs})


def _in_blocks(codes: Constant, scale: Constant, axis: int, outputs: int, block: int) -> _Weight | str:
    """A weight with a scale for each block of inputs, the outputs last: TensorRT-RTX 1.7 builds no other form."""
    if codes.ndim != 2 or axis == outputs:
        return "its blocks don't lie along its inputs"
    if outputs == 0:
        codes, scale = codes.T, scale.T
    if codes.shape[1] % 2:
        return f"INT4 needs an even last dimension, and its matrix is {' x '.join(map(str, codes.shape))}"
    return _Weight(codes, scale, 1, {"axis": 0, "block_size": block})


def _listed(names: list[str]) -> str:
    more = len(names) - _MOST_NAMES
    return ", ".join(names[:_MOST_NAMES]) + (f" and {more} more" if more > 0 else "")
