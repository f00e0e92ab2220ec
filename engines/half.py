"""Chosen nodes of an ONNX graph computed in float16, with casts at the borders (networks are strongly typed)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from engines.qdq_graph import Constant, read_graph
from engines.tensor_kinds import FLOAT32, element_type, tensor_kinds

__all__ = ["LARGEST", "SMALLEST_NORMAL", "in_half", "to_half"]

LARGEST: Final = 65504.0
SMALLEST_NORMAL: Final = 2.0**-14  # below it numbers lose bits, and are 0 below 2^-25

# inputs that are images or weights, where an operator has others that stay float32
_DATA_INPUTS: Final = {"Resize": 1}


def in_half(model: onnx.ModelProto, outputs: Iterable[str]) -> onnx.ModelProto:
    """A copy of a model in which some nodes read and write float16.

    Args:
        model: float32 between its nodes.
        outputs: first outputs of the nodes that are to compute in float16. They take the type of their inputs.

    Returns:
        The copy. Network inputs, outputs and all other nodes stay as they were; constants that float16 can't hold are
        the nearest that it can.
    """
    chosen, kinds = frozenset(outputs), tensor_kinds(model)
    constants = read_graph(model).constants
    halves: dict[str, str] = {}  # float32 tensor -> its float16 twin
    made: list[onnx.TensorProto] = []
    nodes: list[onnx.NodeProto] = []

    def twin(name: str) -> str:
        if name not in halves:
            halves[name] = half = f"{name}.half"
            if name in constants:
                made.append(numpy_helper.from_array(to_half(constants[name]), half))
            else:
                nodes.append(helper.make_node("Cast", [name], [half], half, to=TensorProto.FLOAT16))
        return halves[name]

    read_in_full = _read_in_full(model, chosen, kinds)
    for given in model.graph.node:
        node = onnx.NodeProto()
        node.CopyFrom(given)
        if given.output[0] not in chosen:
            nodes.append(node)
            continue
        for index, name in enumerate(given.input):
            if _is_cast(given, index, name, kinds):
                node.input[index] = twin(name)
        back = []
        for index, name in enumerate(given.output):
            if name and element_type(kinds, name) in FLOAT32:
                node.output[index] = halves[name] = f"{name}.half"
                if name in read_in_full:
                    cast = helper.make_node("Cast", [halves[name]], [name], f"{name}.full", to=TensorProto.FLOAT)
                    back.append(cast)
        nodes += [node, *back]
    return _with(model, nodes, made)


def to_half(value: Constant) -> Constant:
    """The nearest float16 numbers; those out of range become the largest.

    Args:
        value: floats of any shape.

    Returns:
        float16.
    """
    return np.clip(value.astype(np.float32), -LARGEST, LARGEST).astype(np.float16)


def _read_in_full(model: onnx.ModelProto, chosen: frozenset[str], kinds: dict[str, onnx.TypeProto]) -> frozenset[str]:
    """Tensors that the network returns, or that a node reads in float32."""
    names = {value.name for value in model.graph.output}
    for node in model.graph.node:
        half = node.output[0] in chosen
        names.update(n for i, n in enumerate(node.input) if not (half and _is_cast(node, i, n, kinds)))
    return frozenset(names)


def _is_cast(node: onnx.NodeProto, index: int, name: str, kinds: dict[str, onnx.TypeProto]) -> bool:
    """Whether a chosen node reads this input in float16."""
    count = _DATA_INPUTS.get(node.op_type, len(node.input))
    return bool(name) and index < count and element_type(kinds, name) in FLOAT32


def _with(model: onnx.ModelProto, nodes: list[onnx.NodeProto], made: list[onnx.TensorProto]) -> onnx.ModelProto:
    """The model with other nodes, without what none of them reads."""
    read = {name for node in nodes for name in node.input} | {value.name for value in model.graph.output}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in read]
    copy = onnx.ModelProto(
        ir_version=model.ir_version,
        producer_name=model.producer_name,
        producer_version=model.producer_version,
        opset_import=model.opset_import,
        functions=model.functions,
        metadata_props=model.metadata_props,
    )
    copy.graph.name = model.graph.name
    copy.graph.node.extend(node for node in nodes if node.op_type != "Constant" or node.output[0] in read)
    copy.graph.initializer.extend([*kept, *made])
    copy.graph.input.extend(value for value in model.graph.input)
    copy.graph.output.extend(model.graph.output)
    return copy
