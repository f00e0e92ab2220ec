"""Edits of an ONNX graph: nodes are replaced by others that compute the same, weights are rearranged as they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from engines.errors import InputError
from engines.onnx_metadata import modules_of
from engines.qdq_graph import Constant, label, opset
from engines.tensor_kinds import element_type, sizes, tensor_kinds

__all__ = ["Arrange", "GraphEdit", "layer_name"]

Arrange = Callable[[Constant], Constant]
_EVALUATED: Final = 19
_QDQ: Final = ("QuantizeLinear", "DequantizeLinear")
_OPSET: Final = 13  # the axes of Unsqueeze and ReduceSum became inputs there


def layer_name(model: onnx.ModelProto, node: onnx.NodeProto) -> str:
    """How messages name a node: with the module it came from, where the file says so."""
    module = modules_of(model).get(node.name)
    return f"{label(node)} (module {module})" if module else label(node)


class GraphEdit:
    """A copy of a model whose nodes are rewritten one after the other.

    Args:
        model: stays as it is.

    Raises:
        InputError: its operator set is older than 13.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        if opset(model) < _OPSET:
            raise InputError(
                f"The file asks for ONNX operator set {opset(model)}, and layers have to be written anew for this GPU.",
                f"export the model with operator set {_OPSET} or newer.",
            )
        self.model = onnx.ModelProto()
        self.model.CopyFrom(model)
        self.kinds = tensor_kinds(model)
        self.producer = {name: node for node in model.graph.node for name in node.output if name}
        self._tensors = {tensor.name: tensor for tensor in model.graph.initializer}
        self._values: dict[str, Constant | None] = {}
        self._constant = set(self._tensors)
        for node in model.graph.node:  # in the order of the file, which is topological
            if all(name in self._constant for name in node.input if name):
                self._constant.update(node.output)
        self._taken = {*self.kinds, *self._tensors, *self.producer}
        self._nodes: list[onnx.NodeProto] = []

    def run(self, chosen: Sequence[onnx.NodeProto], rewrite: Callable[[GraphEdit, onnx.NodeProto], None]) -> None:
        """Replace nodes.

        Args:
            chosen: nodes of the model.
            rewrite: adds what replaces one of them, down to its outputs.
        """
        outputs = {node.output[0] for node in chosen}
        for node in list(self.model.graph.node):
            if node.output[0] in outputs:
                rewrite(self, node)
            else:
                self._nodes.append(node)
        del self.model.graph.node[:]
        self.model.graph.node.extend(self._nodes)
        self._nodes = []
        self._drop_unread()

    def shape(self, name: str) -> tuple[int | None, ...] | None:
        """A tensor's shape, None for each open size; None where its rank isn't known."""
        return sizes(self.kinds, name)

    def is_float32(self, name: str) -> bool:
        """Whether a tensor is float32, or may be."""
        return element_type(self.kinds, name) in (TensorProto.FLOAT, TensorProto.UNDEFINED)

    def value(self, name: str) -> Constant | None:
        """What a tensor holds if it depends on constants alone."""
        if name not in self._values:
            self._values[name] = self._computed(name)
        return self._values[name]

    def constant(self, value: Constant, name: str) -> str:
        """Add a constant; returns its name."""
        fresh = self._fresh(name)
        self.model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(value), fresh))
        return fresh

    def hold(self, name: str, value: Constant) -> None:
        """Make a tensor that was computed a constant."""
        self.model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(value), name))

    def numbers(self, values: Sequence[int], name: str) -> str:
        """Add a list of int64, such as a shape or axes."""
        return self.constant(np.asarray(values, np.int64), name)

    def add(
        self,
        kind: str,
        inputs: Sequence[str],
        name: str,
        *,
        output: str | None = None,
        **attributes: int | float | Sequence[int],
    ) -> str:
        """Add a node; returns its output, which gets the node's name unless `output` says another."""
        made = self._fresh(name) if output is None else output
        self._nodes.append(self._made(kind, inputs, made, name if output else made, attributes))
        return made

    def reshaped(self, name: str, shape: Sequence[int], title: str, *, output: str | None = None) -> str:
        """Add a Reshape; -1 is the size that follows from the others."""
        return self.add("Reshape", [name, self.numbers(shape, f"{title}.shape")], title, output=output)

    def requantized(self, name: str, source: str, title: str) -> str:
        """Quantize what was only moved since `source` again, on the same grid, if `source` was quantized.

        No code changes, for the values lie on the grid; the layer that reads them finds its quantizer before it.
        """
        node = self.producer.get(source)
        scale = self.value(node.input[1]) if node is not None and node.op_type == "DequantizeLinear" else None
        if node is None or scale is None or scale.size != 1:
            return name
        grid = list(node.input[1:])
        return self.add(
            "DequantizeLinear",
            [self.add("QuantizeLinear", [name, *grid], f"{title}.quantize"), *grid],
            f"{title}.dequantize",
        )

    def rearranged(self, name: str, arrange: Arrange, axes: Mapping[int, int], title: str) -> str:
        """A constant weight in another arrangement, its codes kept as codes where it is quantized.

        Args:
            name: of the weight, a constant or computed from constants.
            arrange: moves its elements.
            axes: where each axis that scales may lie on goes; scales on another axis are multiplied in.
            title: what to call it.

        Returns:
            The name of the new weight.
        """
        node, value = self.producer.get(name), self.value(name)
        if value is None:
            raise AssertionError(f"{name} is not constant")
        if node is not None and node.op_type == "Transpose" and value.ndim == 2:
            swapped = {1 - axis: to for axis, to in axes.items()}
            return self.rearranged(node.input[0], lambda matrix: arrange(matrix.T), swapped, title)
        if node is not None and node.op_type == "DequantizeLinear":
            given = {a.name: helper.get_attribute_value(a) for a in node.attribute}
            codes, scale, axis = self.value(node.input[0]), self.value(node.input[1]), given.get("axis", 1)
            axis += value.ndim if axis < 0 else 0
            single = scale is not None and scale.size == 1
            if codes is not None and not given.get("block_size") and (single or axis in axes):
                inputs = [self.constant(arrange(codes), f"{title}.codes"), *node.input[1:]]
                return self.add("DequantizeLinear", inputs, title, axis=0 if single else axes[axis])
        return self.constant(arrange(value), title)

    @staticmethod
    def _made(
        kind: str, inputs: Sequence[str], output: str, name: str, attributes: Mapping[str, int | float | Sequence[int]]
    ) -> onnx.NodeProto:
        node = helper.make_node(kind, list(inputs), [output], name=name)
        node.attribute.extend(helper.make_attribute(key, value) for key, value in attributes.items())
        return node

    def _computed(self, name: str) -> Constant | None:
        if name not in self._constant:
            return None
        if name in self._tensors:
            return numpy_helper.to_array(self._tensors[name])
        node = self.producer[name]
        inputs = {read: self.value(read) for read in node.input if read}
        if any(value is None for value in inputs.values()) or any(a.HasField("g") for a in node.attribute):
            return None
        graph = helper.make_graph(
            [node],
            "constant",
            [helper.make_value_info(read, onnx.TypeProto()) for read in inputs],
            [helper.make_value_info(name, onnx.TypeProto())],
        )
        # onnx evaluates these two from 19 on; what 13 wrote means the same there
        version = max(_EVALUATED, opset(self.model)) if node.op_type in _QDQ else opset(self.model)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", version)], ir_version=9)
        try:
            (value,) = ReferenceEvaluator(model).run([name], inputs)
        except (RuntimeError, TypeError, ValueError):  # it has no rule for the node
            return None
        return np.asarray(value)

    def _fresh(self, name: str) -> str:
        fresh, number = name, 1
        while fresh in self._taken:
            number += 1
            fresh = f"{name}.{number}"
        self._taken.add(fresh)
        return fresh

    def _drop_unread(self) -> None:
        """Drop the weights that were rearranged, and the nodes that made them."""
        graph = self.model.graph
        read = {value.name for value in graph.output}
        nodes = []
        for node in reversed(graph.node):
            if read.isdisjoint(node.output):
                continue
            read.update(node.input)
            for attribute in node.attribute:
                read.update(name for inner in attribute.g.node for name in inner.input)
            nodes.append(node)
        del graph.node[:]
        graph.node.extend(reversed(nodes))
        kept = [tensor for tensor in graph.initializer if tensor.name in read]
        del graph.initializer[:]
        graph.initializer.extend(kept)
