"""Lint rules about average pools: means that lie half way between two codes, and windows that runtimes count unlike."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Final

import numpy as np
import onnx

from engines.fixed_tensor import Refused
from engines.lint_view import Hit, hit, scale_of, shared_scale
from engines.qdq_graph import QdqGraph, attributes
from engines.tensor_kinds import tensor_kinds
from engines.windows import pool_of, pooled_sum

__all__ = ["ceil_mode_over_padding", "pool_can_tie"]

_PASSES: Final = frozenset({"Clip", "Flatten", "Identity", "Relu", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})
_CODES: Final = 256  # of an 8-bit tensor


def ceil_mode_over_padding(graph: QdqGraph) -> Iterator[Hit]:
    """onnxruntime's INT8 average pool divides windows that hang over the border by their full size.

    Source: onnxruntime 1.32, optimized against unoptimized; torch and ONNX divide by what lies within the padding.
    """
    for node in graph.nodes:
        given = attributes(node)
        if node.op_type == "AveragePool" and given.get("ceil_mode", 0) and given.get("count_include_pad", 0):
            yield hit(
                node,
                " combines ceil_mode with count_include_pad: runtimes divide the windows at the border differently.",
                "without padding set count_include_pad to 0 (the same values); else choose a size that ceil_mode "
                "does not change.",
            )


def pool_can_tie(graph: QdqGraph) -> Iterator[Hit]:
    """Averages that can be exactly half way between two codes, where the code depends on how one divides.

    Averages over powers of two are exact, so that all engines round their ties alike. What is added to the averages
    counts: `faq-deploy quantize` shifts those that could tie.
    """
    sizes: Mapping[str, tuple[int, ...]] | None = None
    for node in graph.nodes:
        if node.op_type not in ("AveragePool", "GlobalAveragePool"):
            continue
        sizes = _image_sizes(graph.model) if sizes is None else sizes
        counts = _window_counts(node, sizes.get(node.input[0], ()))
        read = shared_scale(graph, node.input[0])
        if read is None or read.size != 1 or not 0 < float(read[0]) < math.inf:
            continue
        grids = list(_rounding(graph, node.output[0], Fraction(0)))
        tied = [n for n in counts if n & (n - 1) and any(_ties(n, Fraction(float(read[0])), *grid) for grid in grids)]
        if tied:
            count = max(tied)
            yield hit(
                node,
                f" averages {count} values, which can tie: an engine that multiplies by 1/{count} may round a tie "
                "the other way.",
                "quantize the net again with this version of faq-deploy, which shifts such averages off the ties; of "
                "another tool's file compare the codes on real images.",
            )


def _rounding(graph: QdqGraph, tensor: str, shift: Fraction) -> Iterator[tuple[Fraction, Fraction]]:
    """Step and shift of each QuantizeLinear that rounds a tensor, or the tensor plus constants."""
    for reader in graph.consumers.get(tensor, ()):
        if reader.op_type == "QuantizeLinear":
            scale = scale_of(graph, reader)
            if scale is not None and scale.size == 1 and 0 < float(scale.reshape(-1)[0]) < math.inf:
                yield Fraction(float(scale.reshape(-1)[0])), shift
        elif reader.op_type == "Add":
            added = [graph.constants[name] for name in reader.input if name in graph.constants]
            if len(added) == 1 and added[0].size == 1 and math.isfinite(float(added[0].reshape(-1)[0])):
                yield from _rounding(graph, reader.output[0], shift + Fraction(float(added[0].reshape(-1)[0])))
        elif reader.op_type in _PASSES:
            yield from _rounding(graph, reader.output[0], shift)


def _ties(count: int, read: Fraction, step: Fraction, shift: Fraction) -> bool:
    """Whether a sum of `count` codes exists whose mean is an odd number of half steps.

    The means are multiples of 1/parts of a step. With scales that have nothing in common parts is so large that no
    sum reaches the first tie.
    """
    parts = (read / step / count).denominator
    return ((Fraction(1, 2) - shift / step) * parts).denominator == 1 and parts <= 2 * _CODES * count


def _window_counts(node: onnx.NodeProto, size: tuple[int, ...]) -> set[int]:
    """How many values the windows of a pool hold; fewer at a border that does not count, if the size is known."""
    given = attributes(node)
    if node.op_type == "GlobalAveragePool":
        return {math.prod(size)}
    kernel = given.get("kernel_shape", ())
    if not isinstance(kernel, Sequence) or isinstance(kernel, str):
        return set()
    if not all(size) or len(size) != len(kernel):
        return {math.prod(kernel)}
    try:
        windows = pool_of(given, kernel, size)
        _, counts = pooled_sum(np.zeros((1, 1, *size), np.int64), windows, bool(given.get("count_include_pad", 0)))
    except Refused:
        return set()  # the runtimes say what is wrong with it
    return set(counts.reshape(-1).tolist())


def _image_sizes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Height and width, or whatever dimensions an image has, of the tensors whose size shape inference knows."""
    sizes = {}
    for name, kind in tensor_kinds(model).items():
        dimensions = kind.tensor_type.shape.dim
        if len(dimensions) > 2:
            sizes[name] = tuple(int(dimension.dim_value) for dimension in dimensions[2:])
    return sizes
