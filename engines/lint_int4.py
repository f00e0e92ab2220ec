"""Lint rules about weights stored in 4 bits; they look at the file as it is, where other rules see INT8."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import onnx

from engines.int4_tensor import NIBBLES
from engines.lint_view import Hit, hit
from engines.newer_opset import INT4_OPSET
from engines.qdq_graph import QdqGraph, opset

__all__ = ["int4_convolution", "int4_odd", "int4_opset", "packed_weights"]

_PACKED: Final = "faq_deploy."  # our metadata: `build` unpacks the file


def int4_convolution(graph: QdqGraph) -> Iterator[Hit]:
    """TensorRT has no INT4 convolution (F3, U13): at best it dequantizes the weight and computes in float."""
    if _is_ours(graph):
        return
    for node in _dequantizers(graph):
        for layer in graph.consumers.get(node.output[0], ()):
            if layer.op_type in ("Conv", "ConvTranspose"):
                yield hit(
                    layer,
                    " has a weight in INT4, and TensorRT has no INT4 convolution: other builders than `faq-deploy "
                    "build` refuse it or compute in float, without a word.",
                    "build with `faq-deploy build`, which unpacks the same integers to INT8, or store them in INT8.",
                )


def packed_weights(graph: QdqGraph) -> Iterator[Hit]:
    """What `export --pack-int4` writes is for storage; convolutions run as 4-bit values in INT8 kernels (F3)."""
    nodes = list(_dequantizers(graph)) if _is_ours(graph) else []
    if nodes:
        yield Hit(
            nodes[0].name,
            f"{len(nodes)} weights are stored in 4 bits: `faq-deploy build` unpacks them, and convolutions run as "
            "4-bit values in INT8 kernels.",
            "export without --pack-int4 for builders of another tool.",
        )


def int4_odd(graph: QdqGraph) -> Iterator[Hit]:
    """TensorRT's parser takes INT4 with an even last dimension only (F4); `build` unpacks our own files first."""
    if _is_ours(graph):
        return
    for node in _dequantizers(graph):
        shape = _tensors(graph)[node.input[0]].dims
        if not shape or shape[-1] % 2:
            yield hit(
                node,
                f" reads INT4 of shape {' x '.join(map(str, shape)) or '()'}; TensorRT needs an even last dimension.",
                "build with `faq-deploy build`, which unpacks the same integers to INT8, or pad the weight.",
            )


def int4_opset(graph: QdqGraph) -> Iterator[Hit]:
    """INT4 came with operator set 21: with an older one runtimes refuse the file (C36)."""
    version = opset(graph.model)
    nodes = list(_dequantizers(graph))
    if nodes and version < INT4_OPSET:
        yield hit(
            nodes[0],
            f" reads INT4, which operator set {version} of the file doesn't have.",
            f"export the file with operator set {INT4_OPSET} or newer.",
        )


def _is_ours(graph: QdqGraph) -> bool:
    return any(entry.key.startswith(_PACKED) for entry in graph.model.metadata_props)


def _dequantizers(graph: QdqGraph) -> Iterator[onnx.NodeProto]:
    """The DequantizeLinear nodes that read a constant of 4 bits."""
    four_bits = {name for name, tensor in _tensors(graph).items() if tensor.data_type in NIBBLES}
    return (node for node in graph.nodes if node.op_type == "DequantizeLinear" and node.input[0] in four_bits)


def _tensors(graph: QdqGraph) -> dict[str, onnx.TensorProto]:
    """Initializers and the tensors of Constant nodes, by name."""
    found = {tensor.name: tensor for tensor in graph.model.graph.initializer}
    made = ((node.output[0], node.attribute) for node in graph.model.graph.node if node.op_type == "Constant")
    return {**found, **{name: a.t for name, attributes in made for a in attributes if a.name == "value"}}
