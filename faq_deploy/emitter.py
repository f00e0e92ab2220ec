"""What collects ONNX nodes and initializers while the graph of a net is walked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from faq_deploy.fixed_point import step_size
from faq_deploy.graph import Graph, Node
from faq_deploy.layers import ActivationQuantizer
from faq_deploy.net import QuantizedNet
from faq_deploy.place import Target
from faq_deploy.shifted import Shifted
from faq_deploy.storage import Storage

__all__ = ["Array", "Emitter"]

Array = npt.NDArray[np.generic]


class Emitter:
    """ONNX nodes and initializers of a calibrated net, opset 13 forms.

    Attributes:
        net, target: what is emitted, and for whom.
        shapes: of each graph node's tensor as the graph says, without the batch.
        tensor: graph node -> ONNX tensor with its values.
        unflattened: for TensorRT flattened tensors stay (N, C, H, W) and linear layers become convolutions over them,
            since Turing has no FP32 GEMM (S7). Graph node -> the (C, H, W) that its tensor really has.
        absorbed: layer -> the batch norm that lives in its DQ scales and bias.
        nodes, initializers: of the ONNX graph.
    """

    def __init__(self, net: QuantizedNet, target: Target) -> None:
        self.net, self.target = net, target
        self.graph: Graph = net.graph
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}
        self.tensor: dict[str, str] = {}
        self.unflattened: dict[str, list[int]] = {}
        self._flattened: dict[str, str] = {}
        self.shapes = net.shapes()
        kinds = {node.name: node.kind for node in net.graph}
        self.absorbed = {
            node.inputs[0]: node.name
            for node in net.graph
            # a transposed convolution has one scale in all, so that it cannot take in one a channel (U11)
            if node.kind == "batch_norm" and not net.is_float(node.name) and kinds[node.inputs[0]] != "conv_transpose"
        }

    def op(self, kind: str, inputs: Sequence[str], output: str, **attributes: int | float | str | list[int]) -> str:
        """Add a node; it takes the name of its output, a layer's without the suffix."""
        name = output.partition(".")[0] if kind in {"Conv", "ConvTranspose", "Gemm"} else output
        self.nodes.append(helper.make_node(kind, list(inputs), [output], name=name))
        self.nodes[-1].attribute.extend(helper.make_attribute(key, value) for key, value in sorted(attributes.items()))
        return output

    def constant(self, name: str, value: Array) -> str:
        """Add an initializer (a scalar keeps rank 0: rank 1 leaves adds in float, T3)."""
        self.initializers[name] = numpy_helper.from_array(np.asarray(value, order="C"), name)
        return name

    def number(self, name: str, value: float) -> str:
        """Add a float32 scalar."""
        return self.constant(name, np.array(value, np.float32))

    def integers(self, name: str, values: Sequence[int]) -> str:
        """Add an int64 vector: a shape, or positions."""
        return self.constant(name, np.array(values, np.int64))

    def quantize(self, name: str, source: str, scale: float, storage: Storage) -> str:
        """Q (with a Clip where the type does not saturate at the grid's ends), then DQ."""
        step = self.number(f"{name}.scale", scale)
        zero = self.constant(f"{name}.zero_point", np.array(storage.zero_point, storage.dtype))
        if self.target == "tensorrt" and not storage.saturates:
            low = self.number(f"{name}.low", storage.low * scale)
            high = self.number(f"{name}.high", storage.high * scale)
            source = self.op("Clip", [source, low, high], f"{name}.clipped")
        codes = f"{name}.codes"
        if self.target == "tensorrt" or storage.saturates:
            self.op("QuantizeLinear", [source, step, zero], codes)
        else:
            self.op("QuantizeLinear", [source, step, zero], f"{name}.wide")
            low = self.constant(f"{name}.low", np.array(storage.low + storage.zero_point, storage.dtype))
            high = self.constant(f"{name}.high", np.array(storage.high + storage.zero_point, storage.dtype))
            self.op("Clip", [f"{name}.wide", low, high], codes)
        return self.op("DequantizeLinear", [codes, step, zero], f"{name}.values")

    def shifted(self, node: Node, tensor: str) -> str:
        """The tensor plus the constant of node's layer, if it has one."""
        offset = float(cast(Shifted, self.net.layers[node.name]).offset)
        if not offset:
            return tensor
        return self.op("Add", [tensor, self.number(f"{node.name}.offset", offset)], f"{node.name}.shifted")

    def flat(self, name: str) -> str:
        """The tensor of graph node `name` in the shape that the graph says."""
        if name not in self.unflattened:
            return self.tensor[name]
        if name not in self._flattened:
            self._flattened[name] = self.op("Flatten", [self.tensor[name]], f"{name}.flat", axis=1)
        return self._flattened[name]

    def elementwise(self, node: Node) -> list[str]:
        """Tensors that an elementwise op of `node` may read as they lie; its result lies as they do."""
        lying = {tuple(self.unflattened.get(name, ())) for name in node.inputs}
        if len(lying) > 1:
            return [self.flat(name) for name in node.inputs]
        if node.inputs[0] in self.unflattened:
            self.unflattened[node.name] = self.unflattened[node.inputs[0]]
        return [self.tensor[name] for name in node.inputs]

    def by_channel(self, name: str, values: npt.NDArray[np.float32], rank: int) -> str:
        """Add constants of channels, shaped to broadcast over a tensor of `rank` (batch included)."""
        return self.constant(name, values.reshape(-1, *[1] * (rank - 2)).astype(np.float32))

    def moved(self, node: Node, tensor: str) -> None:
        """Set the tensor of an op that only moves codes: the same Q/DQ again, lossless, lets it run in INT8."""
        sources = self.net.source_quantizers(node.name)
        if not sources:
            self.tensor[node.name] = tensor
            return
        layers = [cast(ActivationQuantizer, self.net.layers[s]) for s in sources]
        storage = max((Storage(self.target, layer) for layer in layers), key=lambda s: (s.zero_point, s.kind == "int8"))
        step = self.number(f"{node.name}.scale", float(step_size(layers[0].exponent)))
        zero = self.constant(f"{node.name}.zero_point", np.array(storage.zero_point, storage.dtype))
        self.op("QuantizeLinear", [tensor, step, zero], f"{node.name}.moved")
        self.tensor[node.name] = self.op("DequantizeLinear", [f"{node.name}.moved", step, zero], f"{node.name}.values")
