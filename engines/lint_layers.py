"""Lint rules about layers: biases, both sides of a convolution, adds and concats."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
import onnx

from engines.lint_view import (
    Hit,
    few_bits,
    grid_text,
    grids,
    hit,
    is_weight,
    layer_bias,
    lone_codes,
    scale_of,
    shared_scale,
)
from engines.operators import WEIGHTED
from engines.qdq_graph import Attribute, QdqGraph, attributes, label

__all__ = [
    "bias_off_grid",
    "float_add_input",
    "float_skip_input",
    "one_sided_layer",
    "per_channel_conv_transpose",
    "strided_and_dilated_conv_transpose",
    "transposed_weight",
    "unequal_concat_scales",
]

_MATRIX_BITS: Final = 8
_FLOAT32_ROUNDINGS: Final = 2.0**-22  # of the scale's product, and of the bias


def bias_off_grid(graph: QdqGraph) -> Iterator[Hit]:
    """onnxruntime rounds a bias to s_x x s_w when it loads the file: off that grid, codes move (C47, T3)."""
    for node in graph.nodes:
        if node.op_type not in ("Conv", "ConvTranspose", "Gemm") or len(node.input) < 3 or not node.input[2]:
            continue
        bias, s_x, s_w = layer_bias(graph, node), shared_scale(graph, node.input[0]), shared_scale(graph, node.input[1])
        if bias is None or s_x is None or s_w is None or s_x.size != 1 or s_w.size not in (1, bias.size):
            continue
        grid = np.broadcast_to(s_x * s_w, bias.shape)
        if not (np.isfinite(grid) & (grid > 0)).all():
            continue  # scale-positive tells
        steps = bias / grid
        off = np.flatnonzero(np.abs(np.rint(steps) * grid - bias) > _rounding(grid) * np.abs(bias))
        if off.size:
            c = int(off[0])
            yield hit(
                node,
                f": the bias of channel {c}{_more(off)} is {steps[c]:.6g} steps of the accumulator grid "
                f"{grid_text(float(grid[c]))}, not a whole number.",
                "round it to a multiple of s_x * s_w; `faq-deploy snap` does.",
            )
        large = np.flatnonzero(np.abs(steps) > np.iinfo(np.int32).max)
        if large.size:
            c = int(large[0])
            yield hit(
                node,
                f": the bias of channel {c}{_more(large)} is {steps[c]:.4g} steps of the accumulator grid "
                f"{grid_text(float(grid[c]))}, more than int32 holds.",
                "use a coarser weight scale for that channel (it is nearly dead).",
            )


def one_sided_layer(graph: QdqGraph) -> Iterator[Hit]:
    """A layer with one quantized input runs in float."""
    for node in graph.nodes:
        if node.op_type not in WEIGHTED:
            continue
        sides = [bool(grids(graph, name)) for name in node.input[:2]]
        if sides[0] != sides[1] and not _resamples(graph, node):
            quantized, other = ("input", "weight") if sides[0] else ("weight", "input")
            yield hit(
                node,
                f": only its {quantized} is quantized, so that it runs in float.",
                f"quantize its {other} too, or neither.",
            )


def float_skip_input(graph: QdqGraph) -> Iterator[Hit]:
    """The branch that a convolution does not fuse with must be quantized, or the Add runs in float (U7)."""
    for node, names in _adds(graph):
        layers = [graph.producer[name].op_type in WEIGHTED if name in graph.producer else False for name in names]
        if any(layers) and not any(grids(graph, name) for name in names):
            skip = names[1] if layers[0] else names[0]
            yield hit(
                node,
                f": its skip input {skip} is not quantized, so that the Add runs in float.",
                "put Q and DQ on the skip input.",
            )


def float_add_input(graph: QdqGraph) -> Iterator[Hit]:
    """onnxruntime fuses an Add only with both inputs quantized (S4)."""
    for node, names in _adds(graph):
        floats = [name for name in names if not grids(graph, name)]
        # inside a function or a norm of one quantized tensor there is no integer addition to fuse
        if floats and lone_codes(graph, *names) is None:
            yield hit(
                node,
                f": its input {floats[0]} is not quantized; onnxruntime then adds in float.",
                "export with --target onnxruntime, which quantizes both inputs.",
            )


def unequal_concat_scales(graph: QdqGraph) -> Iterator[Hit]:
    """Inputs of a Concat on different grids cost a requantization each (U8)."""
    for node in graph.nodes:
        if node.op_type != "Concat":
            continue
        found = [scale for name in node.input for q in grids(graph, name) if (scale := scale_of(graph, q)) is not None]
        scales = sorted({float(scale.reshape(-1)[0]) for scale in found if scale.size == 1})
        if len(scales) > 1:
            yield hit(
                node,
                f" joins tensors with the scales {', '.join(map(grid_text, scales))}.",
                "give all its inputs the largest of these scales.",
            )


def transposed_weight(graph: QdqGraph) -> Iterator[Hit]:
    """A Transpose between DQ and MatMul hides the weight from the pattern matchers (U18)."""
    for node in graph.nodes:
        source = graph.producer.get(node.input[1]) if node.op_type in ("MatMul", "Gemm") else None
        dequantize = graph.producer.get(source.input[0]) if source and source.op_type == "Transpose" else None
        if source and dequantize and dequantize.op_type == "DequantizeLinear" and is_weight(graph, dequantize):
            yield hit(
                node,
                f" reads its weight through {label(source)} behind DequantizeLinear and may run in float.",
                "store the weight transposed, or use Gemm with transB=1.",
            )


def per_channel_conv_transpose(graph: QdqGraph) -> Iterator[Hit]:
    """TensorRT's kernels want axis 0, onnxruntime's axis 1: per tensor is the only form that both run right (U11)."""
    for node in graph.nodes:
        if node.op_type != "ConvTranspose":
            continue
        for dequantize in grids(graph, node.input[1]):
            scale = scale_of(graph, dequantize)
            if scale is not None and scale.size > 1:
                yield hit(
                    node,
                    f": its weight has {scale.size} scales on axis "
                    f"{attributes(dequantize).get('axis', 1)}; TensorRT does not quantize it per output channel.",
                    "quantize the weight of a transposed convolution per tensor.",
                )


def strided_and_dilated_conv_transpose(graph: QdqGraph) -> Iterator[Hit]:
    """TensorRT has no kernel for it: the build stops at "Strided & Dilated Deconv" (TensorRT-RTX 1.7, measured)."""
    for node in graph.nodes:
        given = attributes(node)
        if node.op_type == "ConvTranspose" and all(_beyond_one(given.get(key)) for key in ("strides", "dilations")):
            yield hit(
                node,
                " has both strides and dilations over 1, which TensorRT does not run.",
                "use one of them, or build for onnxruntime.",
            )


def _rounding(grid: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """How far, relatively, a bias on this grid may lie beside it: not at all, or as float32 rounds s_x x s_w."""
    return np.where(grid.astype(np.float32) == grid, 0.0, _FLOAT32_ROUNDINGS)


def _resamples(graph: QdqGraph, node: onnx.NodeProto) -> bool:
    """A MatMul by a constant of few bits: the windows of an adaptive pool, or the weights of a resize. It is exact."""
    matrices = [graph.constants[name] for name in node.input[:2] if name in graph.constants]
    return node.op_type == "MatMul" and len(matrices) == 1 and few_bits(matrices[0], _MATRIX_BITS)


def _beyond_one(given: Attribute | None) -> bool:
    return isinstance(given, Sequence) and any(int(value) > 1 for value in given)


def _adds(graph: QdqGraph) -> Iterator[tuple[onnx.NodeProto, tuple[str, str]]]:
    for node in graph.nodes:
        if node.op_type == "Add" and not any(name in graph.constants for name in node.input):
            yield node, (node.input[0], node.input[1])


def _more(channels: npt.NDArray[np.intp]) -> str:
    return f" (and {channels.size - 1} more)" if channels.size > 1 else ""
