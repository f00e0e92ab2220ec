"""Type and shape of every tensor of an ONNX graph, as far as they can be inferred."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

import onnx
from onnx import helper

__all__ = ["FLOAT32", "element_type", "sizes", "tensor_kinds"]

FLOAT32: Final = frozenset({onnx.TensorProto.FLOAT, onnx.TensorProto.UNDEFINED})  # float32, as far as is known
_SMALL: Final = 1024  # elements of a constant that may say a shape


def tensor_kinds(model: onnx.ModelProto, batch: int | None = None) -> dict[str, onnx.TypeProto]:
    """Type and shape by tensor name.

    Args:
        model: of any size; its large weights are not copied.
        batch: in the place of the inputs' first size, where that is open; None leaves it so.

    Returns:
        What is known; a tensor that nothing is known of is left out.
    """
    light = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions)
    graph = model.graph
    light.graph.name = "shapes"
    light.graph.node.extend(graph.node)
    light.graph.input.extend(graph.input)
    light.graph.output.extend(graph.output)
    light.graph.value_info.extend(graph.value_info)
    if batch is not None:
        _close(light.graph, batch)
    named = {value.name for value in graph.input}
    for tensor in graph.initializer:
        if math.prod(tensor.dims) <= _SMALL:
            light.graph.initializer.append(tensor)
        elif tensor.name not in named:
            light.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    try:
        inferred = onnx.shape_inference.infer_shapes(light, data_prop=True).graph
    except (onnx.shape_inference.InferenceError, onnx.checker.ValidationError):
        inferred = light.graph  # the file contradicts itself: what it says is all that is known
    kinds = {value.name: value.type for value in (*inferred.value_info, *inferred.input, *inferred.output)}
    for tensor in graph.initializer:
        kinds.setdefault(tensor.name, helper.make_tensor_type_proto(tensor.data_type, list(tensor.dims)))
    return kinds


def _close(graph: onnx.GraphProto, batch: int) -> None:
    """Give the inputs a batch, and forget the shapes that were told for an open one."""
    for value in graph.input:
        for first in value.type.tensor_type.shape.dim[:1]:
            if not first.HasField("dim_value"):
                first.dim_value = batch
    del graph.value_info[:]
    for value in graph.output:
        value.type.tensor_type.ClearField("shape")


def sizes(kinds: Mapping[str, onnx.TypeProto], name: str) -> tuple[int | None, ...] | None:
    """A tensor's shape, None for each open size; None where not even its rank is known."""
    kind = kinds.get(name)
    if kind is None or not kind.tensor_type.HasField("shape"):
        return None
    return tuple(d.dim_value if d.HasField("dim_value") else None for d in kind.tensor_type.shape.dim)


def element_type(kinds: Mapping[str, onnx.TypeProto], name: str) -> int:
    """A tensor's `TensorProto.DataType`; UNDEFINED where it isn't known."""
    kind = kinds.get(name)
    return kind.tensor_type.elem_type if kind is not None else onnx.TensorProto.UNDEFINED
