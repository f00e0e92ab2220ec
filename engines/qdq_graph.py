"""A QDQ ONNX graph, read once: constants by name, who makes and who reads each tensor, where the codes are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from google.protobuf.message import DecodeError
from onnx import numpy_helper

from engines.errors import InputError
from engines.external_data import data_files
from engines.int4_storage import unpack_int4
from engines.newer_opset import opset
from engines.well_formed import parsed, require

__all__ = [
    "Attribute",
    "Constant",
    "QdqGraph",
    "attributes",
    "constant",
    "label",
    "load_model",
    "opset",
    "read_graph",
    "zero_points",
]

Constant = npt.NDArray[np.generic]
Attribute = int | float | str | Sequence[int]


@dataclass(frozen=True)
class QdqGraph:
    """One ONNX graph with the look-ups that its readers share.

    Args:
        model: the model as loaded.
        nodes: all nodes except Constant, in the order of the file (ONNX demands that it is topological).
        constants: initializers and the values of Constant nodes, by tensor name.
        producer: tensor -> the node that makes it.
        consumers: tensor -> the nodes that read it.
        code_names: node outputs named `*.codes`, in graph order: the quantized activations.
    """

    model: onnx.ModelProto
    nodes: tuple[onnx.NodeProto, ...]
    constants: Mapping[str, Constant]
    producer: Mapping[str, onnx.NodeProto]
    consumers: Mapping[str, tuple[onnx.NodeProto, ...]]
    code_names: tuple[str, ...]

    @property
    def input_name(self) -> str:
        """The graph's one input that is not an initializer."""
        return str(next(value.name for value in self.model.graph.input if value.name not in self.constants))

    @property
    def input_shape(self) -> tuple[int | None, ...]:
        """Shape of that input; None where a dimension is symbolic."""
        value = next(value for value in self.model.graph.input if value.name not in self.constants)
        dimensions = value.type.tensor_type.shape.dim
        return tuple(d.dim_value if d.HasField("dim_value") else None for d in dimensions)

    @property
    def output_names(self) -> tuple[str, ...]:
        """All outputs, in the order of the file."""
        return tuple(str(value.name) for value in self.model.graph.output)

    @property
    def float_outputs(self) -> tuple[str, ...]:
        """The outputs that hold numbers rather than integer codes."""
        codes = (onnx.TensorProto.INT8, onnx.TensorProto.UINT8)
        return tuple(str(o.name) for o in self.model.graph.output if o.type.tensor_type.elem_type not in codes)

    @property
    def logits_name(self) -> str:
        """The output named `logits`, or else the first one that holds numbers."""
        return "logits" if "logits" in self.output_names else (*self.float_outputs, *self.output_names)[0]


def load_model(path: Path, *, unpack: bool = True, any_inputs: bool = False) -> onnx.ModelProto:
    """Read an ONNX file.

    Args:
        path: the file.
        unpack: give weights that are stored in 4 bits as INT8, the same integers; False gives the file as it is.
        any_inputs: take a file with any number of inputs; the runners of images need exactly one.

    Returns:
        The model with all its weights in memory.

    Raises:
        InputError: the file is missing, is not ONNX, is cut off, or its external data is missing, cut off, or outside
            its folder.
    """
    again = "export it again with `faq-deploy export`, or copy the whole file."
    try:
        model = parsed(path)
    except (DecodeError, ValueError) as error:
        raise InputError(f"{path} is not an ONNX file, or is cut off.", again) from error
    except OSError as error:
        raise InputError(f"{path} could not be read: {error.strerror or error}.", again) from error
    elsewhere = data_files(model, path)
    try:
        onnx.load_external_data_for_model(model, str(path.parent))
    except (ValueError, OSError, onnx.checker.ValidationError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise InputError(
            f"{path} keeps weights in another file that could not be read: {reason}.",
            "put that file, whole, beside the ONNX file.",
        ) from error
    if elsewhere:
        require(model, path)
    graph = model.graph
    if not graph.node or not graph.output or not model.opset_import:
        raise InputError(f"{path} is not an ONNX file, or is cut off (it holds no graph).", again)
    given = {tensor.name for tensor in graph.initializer}
    inputs = [value.name for value in graph.input if value.name not in given]
    if len(inputs) != 1 and not any_inputs:
        raise InputError(f"{path} has {len(inputs)} inputs; a network of images has one.", again)
    return unpack_int4(model) if unpack else model


def read_graph(model: onnx.ModelProto) -> QdqGraph:
    """Index a model's graph."""
    constants: dict[str, Constant] = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        if node.op_type == "Constant":
            constants[node.output[0]] = _constant_value(node)
        else:
            nodes.append(node)
    consumers: dict[str, list[onnx.NodeProto]] = {}
    for node in nodes:
        for name in dict.fromkeys(filter(None, node.input)):
            consumers.setdefault(name, []).append(node)
    return QdqGraph(
        model=model,
        nodes=tuple(nodes),
        constants=constants,
        producer={name: node for node in nodes for name in node.output if name},
        consumers={name: tuple(readers) for name, readers in consumers.items()},
        code_names=tuple(name for node in nodes for name in node.output if name.endswith(".codes")),
    )


def zero_points(graph: QdqGraph) -> dict[str, int]:
    """Zero point of each tensor named `*.codes`, from the DequantizeLinear that reads it.

    Args:
        graph: the graph.

    Returns:
        Zero point by tensor name, in the order of `graph.code_names`.

    Raises:
        InputError: no DequantizeLinear reads the codes, or its zero point is not one constant number.
    """
    found: dict[str, int] = {}
    for name in graph.code_names:
        readers = [node for node in graph.consumers.get(name, ()) if node.op_type == "DequantizeLinear"]
        if not readers:
            raise InputError(f"{name} is read by no DequantizeLinear.", "export the model again.")
        point = constant(graph, readers[0], 2)
        if point is None:
            found[name] = 0  # ONNX: an absent zero point is 0
        elif point.size != 1:
            raise InputError(f"{name} has one zero point per channel.", "quantize activations per tensor.")
        else:
            found[name] = int(point.reshape(()))
    return found


def constant(graph: QdqGraph, node: onnx.NodeProto, index: int) -> Constant | None:
    """A node's constant input; None where it is absent or computed."""
    return graph.constants.get(node.input[index]) if len(node.input) > index and node.input[index] else None


def attributes(node: onnx.NodeProto) -> dict[str, Attribute]:
    """A node's attributes as plain Python values; tensors and graphs are left out."""
    values = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    plain: dict[str, Attribute] = {}
    for name, value in values.items():
        if isinstance(value, bytes):
            plain[name] = value.decode()
        elif isinstance(value, int | float):
            plain[name] = value
        elif isinstance(value, Sequence) and all(isinstance(item, int) for item in value):
            plain[name] = tuple(value)
    return plain


def label(node: onnx.NodeProto) -> str:
    """How messages name a node: its type and its name, or its output where it has no name."""
    return f"{node.op_type} {node.name or node.output[0]}"


def _constant_value(node: onnx.NodeProto) -> Constant:
    for attribute in node.attribute:
        if attribute.name == "value":
            return numpy_helper.to_array(attribute.t)
        if attribute.name in ("value_float", "value_floats"):
            return np.asarray(onnx.helper.get_attribute_value(attribute), np.float32)
        if attribute.name in ("value_int", "value_ints"):
            return np.asarray(onnx.helper.get_attribute_value(attribute), np.int64)
    raise InputError(f"{label(node)} holds neither a tensor nor numbers.", "export the model again.")
