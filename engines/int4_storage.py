"""4-bit weights stored in 4 bits in an ONNX file: the same integers as in INT8, in half the bytes."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Final

import onnx
from onnx import TensorProto

from engines.int4_tensor import NIBBLES, fits_int4, store_as_int4, store_as_int8
from engines.json_text import read_json
from engines.newer_opset import at_int4_opset, is_same_there, opset, set_opset
from engines.operators import WEIGHTED

__all__ = ["holds_int4", "pack_int4", "unpack_int4"]

_BEFORE: Final = "faq_deploy.unpacked"  # metadata: operator set and IR version of the file before it was packed
# they move codes without looking at them
_MOVES: Final = frozenset({"Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})


def pack_int4(model: onnx.ModelProto) -> onnx.ModelProto:
    """Store weight codes that fit into 4 bits as INT4, with ONNX operator set 21; no code changes.

    Args:
        model: a QDQ model; it is not changed.

    Returns:
        A copy whose weights take half the bytes; the very object where no layer's codes all lie in -8..7.

    Raises:
        InputError: a node would mean something else in operator set 21.
    """
    names = _packable(model)
    if not names:
        return model
    made = at_int4_opset(model)
    same = len(made.graph.initializer) == len(model.graph.initializer) and is_same_there(made, opset(model))
    for tensor in made.graph.initializer:
        if tensor.name in names:
            store_as_int4(tensor)
    _retype(made.graph, names, TensorProto.INT4)
    if same and opset(model) < opset(made):
        entry = made.metadata_props.add()
        entry.key = _BEFORE
        entry.value = json.dumps({"opset": opset(model), "ir_version": model.ir_version}, sort_keys=True)
    return made


def unpack_int4(model: onnx.ModelProto) -> onnx.ModelProto:
    """Store INT4 and UINT4 constants that are dequantized as INT8; no code changes.

    What computes 4-bit codes (a QuantizeLinear to INT4) stays. A file that `pack_int4` made gets its operator set back;
    others keep theirs.

    Args:
        model: a QDQ model; it is not changed.

    Returns:
        A copy; the very object if it holds no such constants.
    """
    if not holds_int4(model):
        return model
    made = onnx.ModelProto()
    made.CopyFrom(model)
    graph, tensors = made.graph, _constants(made.graph)
    read_by = _read_by(graph)
    dequantizers: list[onnx.NodeProto] = []
    names: set[str] = set()
    for name, tensor in tensors.items():
        if tensor.data_type in NIBBLES:
            family, nodes = _moved(graph, name)
            if nodes and all(node.op_type == "DequantizeLinear" and node.input[0] in family for node in nodes):
                names |= family
                dequantizers += nodes
    own = {node.output[0] for node in dequantizers}
    for node in dequantizers:
        point = node.input[2] if len(node.input) > 2 else ""
        if point in tensors and tensors[point].data_type in NIBBLES:
            if not read_by[point] <= own:  # what else reads it needs its type
                point = node.input[2] = _copied(graph, tensors[point])
            names.add(point)
    for name, tensor in _constants(graph).items():
        if name in names and tensor.data_type in NIBBLES:
            store_as_int8(tensor)
    _retype(graph, names, TensorProto.INT8)
    _go_back(made)
    return made


def holds_int4(model: onnx.ModelProto) -> bool:
    """Whether a model holds constants of 4 bits."""
    return any(tensor.data_type in NIBBLES for tensor in _constants(model.graph).values())


def _packable(model: onnx.ModelProto) -> set[str]:
    """Names of weight codes and of their zero points that fit, and that nothing else reads."""
    graph = model.graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    weights = _weights(graph)
    nodes = [
        node
        for node in graph.node
        if node.op_type == "DequantizeLinear"
        and node.output[0] in weights
        and all(name in tensors and fits_int4(tensors[name]) for name in (node.input[0], *node.input[2:3]))
    ]
    read_by, before = _read_by(graph), -1
    while len(nodes) != before:  # one that drops out may share its zero point with another
        before, own = len(nodes), {node.output[0] for node in nodes}
        nodes = [node for node in nodes if all(read_by[name] <= own for name in _codes_of(node))]
    return {name for node in nodes for name in _codes_of(node)}


def _weights(graph: onnx.GraphProto) -> set[str]:
    """Tensors that only layers read, as their weights."""
    inputs = [(node, index, name) for node in graph.node for index, name in enumerate(node.input)]
    own = {
        name for node, index, name in inputs if node.op_type in WEIGHTED and (index == 1 or node.op_type == "MatMul")
    }
    others = {name for node, index, name in inputs if node.op_type not in WEIGHTED or index == 2}
    return own - others - {output.name for output in graph.output}


def _codes_of(node: onnx.NodeProto) -> tuple[str, ...]:
    """A DequantizeLinear's codes and zero point."""
    return (node.input[0], *(name for name in node.input[2:3] if name))


def _moved(graph: onnx.GraphProto, name: str) -> tuple[set[str], list[onnx.NodeProto]]:
    """A tensor and what only moves its elements, and the nodes that do anything else with them."""
    family, nodes = {name}, []
    for node in graph.node:  # in the order of the file, which is topological
        if not family.isdisjoint(node.input):
            if node.op_type in _MOVES and node.input[0] in family:
                family.update(node.output)
            else:
                nodes.append(node)
    return family, nodes


def _read_by(graph: onnx.GraphProto) -> dict[str, set[str]]:
    """First outputs of the nodes that read each tensor; an output of the graph is read by "" too."""
    found: dict[str, set[str]] = {}
    for node in graph.node:
        for name in node.input:
            found.setdefault(name, set()).add(node.output[0])
    for output in graph.output:
        found.setdefault(output.name, set()).add("")
    return found


def _copied(graph: onnx.GraphProto, tensor: onnx.TensorProto) -> str:
    """A second tensor with the same values, for the readers that take INT8."""
    name = f"{tensor.name}.int8"
    if all(other.name != name for other in graph.initializer):
        copy = graph.initializer.add()
        copy.CopyFrom(tensor)
        copy.name = name
    return name


def _constants(graph: onnx.GraphProto) -> dict[str, onnx.TensorProto]:
    """Initializers and the tensors of Constant nodes, by name."""
    found = {tensor.name: tensor for tensor in graph.initializer}
    made = ((node.output[0], node.attribute) for node in graph.node if node.op_type == "Constant")
    found.update({name: a.t for name, attributes in made for a in attributes if a.name == "value"})
    return found


def _retype(graph: onnx.GraphProto, names: Iterable[str], data_type: int) -> None:
    """What the file says of these tensors' types besides."""
    wanted = set(names)
    for value in (*graph.value_info, *graph.input):
        if value.name in wanted:
            value.type.tensor_type.elem_type = data_type


def _go_back(model: onnx.ModelProto) -> None:
    """Ask for the operator set of before packing, where every node means the same in it."""
    entry = next((entry for entry in model.metadata_props if entry.key == _BEFORE), None)
    if entry is None or holds_int4(model):
        return
    try:
        before = read_json(entry.value)
        version, ir_version = int(before["opset"]), int(before["ir_version"])
    except (ValueError, TypeError, KeyError):  # damaged: operator set 21 is as good
        return
    if is_same_there(model, version):
        set_opset(model, version, ir_version)
        model.metadata_props.remove(entry)
