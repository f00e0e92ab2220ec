"""Lint rules about chains of quantizers: tensors that are quantized twice, and quantizers that nobody reads."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx

from engines.lint_view import Hit, grid_text, hit, quantizers, scale_of
from engines.model_edit import read_names
from engines.qdq_graph import QdqGraph, attributes, constant, label

__all__ = ["dead_quantizer", "double_quantization", "same_grid"]


def double_quantization(graph: QdqGraph) -> Iterator[Hit]:
    """Codes that are dequantized and at once quantized again: in vain on the same grid, else rounded twice."""
    for node in quantizers(graph):
        before = graph.producer.get(node.input[0])
        if node.op_type != "QuantizeLinear" or before is None or before.op_type != "DequantizeLinear":
            continue
        if same_grid(graph, before, node):
            yield hit(
                node,
                f" quantizes again what {label(before)} gives, on the same grid.",
                "leave the pair out; `faq-deploy lint --fix` does.",
            )
            continue
        grids = [_text(graph, quantizer) for quantizer in (before, node)]
        yield hit(
            node,
            f" quantizes what {label(before)} gives a second time, from the grid {grids[0]} to {grids[1]}.",
            "quantize once, on the grid that the reader needs.",
        )


def dead_quantizer(graph: QdqGraph) -> Iterator[Hit]:
    """A QuantizeLinear or DequantizeLinear whose result is read by no node and is no output."""
    read = read_names(graph.model.graph)
    for node in quantizers(graph):
        if node.output[0] not in read:
            yield hit(node, " is read by no node.", "remove it; `faq-deploy lint --fix` does.")


def same_grid(graph: QdqGraph, dequantize: onnx.NodeProto, quantize: onnx.NodeProto) -> bool:
    """Whether codes that go through a DequantizeLinear and a QuantizeLinear come out as they went in."""
    scales = [constant(graph, node, 1) for node in (dequantize, quantize)]
    points = [constant(graph, node, 2) for node in (dequantize, quantize)]
    if any(value is None for value in (*scales, *points)) or not _equal(scales) or not _equal(points):
        return False
    if scales[0] is None or not (np.isfinite(scales[0]) & np.greater(scales[0], 0)).all():
        return False
    axes = [attributes(node).get("axis", 1) for node in (dequantize, quantize)]
    blocks = [attributes(node).get("block_size", 0) for node in (dequantize, quantize)]
    return (scales[0].size == 1 or axes[0] == axes[1]) and blocks[0] == blocks[1]


def _equal(values: list[np.ndarray[tuple[int, ...], np.dtype[np.generic]] | None]) -> bool:
    first, second = values
    if first is None or second is None or first.dtype != second.dtype or first.size != second.size:
        return False
    return bool(np.array_equal(first.reshape(-1), second.reshape(-1)))


def _text(graph: QdqGraph, node: onnx.NodeProto) -> str:
    scale = scale_of(graph, node)
    if scale is None:
        return "of a computed scale"
    return grid_text(float(scale.reshape(-1)[0])) if scale.size == 1 else f"of {scale.size} scales"
