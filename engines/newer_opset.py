"""ONNX operator set 21, the first with INT4: a model asks for it where every node still means the same there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import numpy as np
import onnx
from onnx import defs, helper, numpy_helper

from engines.errors import InputError

__all__ = ["INT4_IR", "INT4_OPSET", "at_int4_opset", "is_same_there", "opset", "set_opset"]

INT4_OPSET: Final = 21
INT4_IR: Final = 10  # the lowest that has INT4 tensors and goes with operator set 21 (C36)
_OLDEST: Final = 13  # before it, axes of Squeeze and ReduceSum were attributes

# New versions between 13 and 21 that brought types, new inputs or new attributes alone: what was written before means
# the same. Sources: the change log of ONNX operators, each read from 13 to 21.
_SAME: Final = frozenset(
    {
        *("Abs", "Add", "And", "BatchNormalization", "Cast", "Constant", "ConstantOfShape", "DequantizeLinear", "Div"),
        *("Equal", "Flatten", "Greater", "GreaterOrEqual", "Identity", "LeakyRelu", "Less", "LessOrEqual", "Max"),
        *("Min", "Mul", "PRelu", "Pad", "Pow", "QuantizeLinear", "Relu", "Reshape", "Resize", "Shape", "Size"),
        *("Squeeze", "Sub", "Transpose", "Unsqueeze", "Where"),
    }
)


def at_int4_opset(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of a model that asks for operator set 21; a newer one stays as new as it is.

    Args:
        model: any model; it is not changed.

    Raises:
        InputError: the model is older than 13, or has a node that would mean something else, by name.
    """
    made = onnx.ModelProto()
    made.CopyFrom(model)
    version = opset(model)
    if version < _OLDEST:
        raise InputError(
            f"the file asks for ONNX operator set {version}, too old to hold INT4.",
            f"export the model with operator set {_OLDEST} or newer.",
        )
    if version < INT4_OPSET:
        for node in made.graph.node:
            if not _is_same(node, version):
                adapt = _ADAPT.get(node.op_type)
                if adapt is None:
                    name = f"{node.op_type} {node.name or node.output[0]}"
                    raise InputError(
                        f"{name} means something else in ONNX operator set {INT4_OPSET}, which INT4 needs.",
                        f"export the model with operator set {INT4_OPSET}.",
                    )
                adapt(made.graph, node)
        set_opset(made, INT4_OPSET, INT4_IR)
    made.ir_version = max(made.ir_version, INT4_IR)
    return made


def opset(model: onnx.ModelProto) -> int:
    """Version of the default ONNX operator set that the model asks for."""
    return max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)


def is_same_there(model: onnx.ModelProto, version: int) -> bool:
    """Whether every node means in operator set `version` what it means in 21."""
    return _OLDEST <= version <= INT4_OPSET and all(
        _is_same(node, version) and not any(a.name in ("block_size", "output_dtype") for a in node.attribute)
        for node in model.graph.node
    )


def set_opset(model: onnx.ModelProto, version: int, ir_version: int) -> None:
    """Make a model ask for this version of the default operator set, and say it is of this IR version."""
    for entry in model.opset_import:
        if entry.domain in ("", "ai.onnx"):
            entry.version = version
    model.ir_version = ir_version


def _is_same(node: onnx.NodeProto, version: int) -> bool:
    if node.domain not in ("", "ai.onnx"):
        return True
    if any(attribute.HasField("g") for attribute in node.attribute):
        return False  # the nodes of an inner graph aren't looked at
    try:
        before, after = (defs.get_schema(node.op_type, v, "").since_version for v in (version, INT4_OPSET))
    except defs.SchemaError:
        return False
    return before == after or node.op_type in _SAME or (node.op_type == "AveragePool" and _averages_alike(node))


def _averages_alike(node: onnx.NodeProto) -> bool:
    """With a rounded-up size, operator set 19 corrected windows in the padding and what an average divides by."""
    given = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    kernel = given.get("kernel_shape", [])
    strides = given.get("strides", [1] * len(kernel))
    inside = not any(given.get("pads", ())) and all(s <= k for s, k in zip(strides, kernel, strict=True))
    return not given.get("ceil_mode", 0) or (inside and not given.get("count_include_pad", 0))


def _axes_as_input(graph: onnx.GraphProto, node: onnx.NodeProto) -> None:
    """From 18 on, the axes of a reduction are an input."""
    axes = next((a for a in node.attribute if a.name == "axes"), None)
    if axes is None:
        return
    name = f"{node.output[0]}.axes"
    graph.initializer.append(numpy_helper.from_array(np.array(axes.ints, np.int64), name))
    node.input.append(name)
    node.attribute.remove(axes)


def _number_of_parts(graph: onnx.GraphProto, node: onnx.NodeProto) -> None:
    """From 18 on, a Split into equal parts says how many."""
    if len(node.input) < 2:
        node.attribute.append(helper.make_attribute("num_outputs", len(node.output)))


_REDUCTIONS: Final = ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "SumSquare")
_ADAPT: Final[Mapping[str, Callable[[onnx.GraphProto, onnx.NodeProto], None]]] = {
    "Split": _number_of_parts,
    **{f"Reduce{name}": _axes_as_input for name in _REDUCTIONS},
}
