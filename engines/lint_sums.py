"""Lint rule about sums: which layers could add up more than float32 holds exactly, from the file's integers alone."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import Final

import numpy as np
import numpy.typing as npt
import onnx

from engines.code_range import CodeRange, code_range
from engines.lint_view import Hit, grids, hit, layer_bias, odd_factor, powers_of_two, scale_of
from engines.operators import WEIGHTED
from engines.qdq_graph import QdqGraph, attributes, constant

__all__ = ["sum_over_24_bits"]

_FP32_INTEGERS: Final = 2**24  # every integer up to it is a float32
_LARGEST_FACTOR: Final = 127  # of a dyadic scale: larger ones are no grid that anybody chose

_Doubles = npt.NDArray[np.float64]


def sum_over_24_bits(graph: QdqGraph) -> Iterator[Hit]:
    """Within 2^24 every partial sum of a layer is exact in float32, in any order, whatever the image.

    Looks at layers with their bias; scales must be an integer up to 127 times a power of two. The bound is reached by
    the image that has the greatest code under each positive weight and the least under each negative one.
    """
    for node in graph.nodes:
        rows = _rows(graph, node) if node.op_type in WEIGHTED else None
        read = None if rows is None else _reach(graph, node.input[0])
        if rows is None or read is None:
            continue
        weight, s_w = rows
        reach, s_x = read
        factors = [1] * len(s_w) if powers_of_two(s_w).all() else [odd_factor(float(scale)) for scale in s_w]
        if any(factor is None or factor > _LARGEST_FACTOR for factor in factors):
            continue
        multiplier = np.array([float(factor or 1) for factor in factors]) * float(odd_factor(s_x) or 1)
        bias = layer_bias(graph, node)
        steps = np.zeros(len(weight)) if bias is None or bias.size != len(weight) else np.rint(bias / (s_w * s_x))
        worst = _largest(weight, steps, reach) * multiplier
        over = np.flatnonzero(worst > _FP32_INTEGERS)
        if over.size:
            c = int(worst.argmax())
            more = f" (and {over.size - 1} more)" if over.size > 1 else ""
            yield hit(
                node,
                f": the sums of channel {c}{more} can reach {worst[c] / _FP32_INTEGERS:.3g} x 2^24, where float32 "
                "no longer holds every integer.",
                "`faq-deploy quantize --certify` (the default) keeps sums below; of another tool's file compare the "
                "codes of two engines on real images.",
            )


def _largest(weight: _Doubles, bias: _Doubles, reach: CodeRange) -> _Doubles:
    """Largest absolute value of any partial sum of a row's products and its bias."""
    total, absolute = weight.sum(1), np.abs(weight).sum(1)
    positive, negative = (absolute + total) / 2, (absolute - total) / 2  # exact: both are integers
    up = positive * reach.high - negative * reach.low + bias.clip(min=0)
    down = negative * reach.high - positive * reach.low - bias.clip(max=0)
    largest: _Doubles = np.maximum(up, down)
    return largest


def _reach(graph: QdqGraph, tensor: str) -> tuple[CodeRange, float] | None:
    """The codes that a tensor can hold, in units of its finest grid; None where it lies on none."""
    found = []
    for node in grids(graph, tensor):
        scale, codes = scale_of(graph, node), code_range(graph, node)
        step = float(scale.reshape(-1)[0]) if scale is not None and scale.size == 1 else 0.0
        factor = odd_factor(step)
        if codes is None or factor is None or factor > _LARGEST_FACTOR:
            return None
        found.append((codes, step))
    if not found:
        return None
    finest = min(step for _, step in found)
    ratios = [Fraction(step) / Fraction(finest) for _, step in found]
    if any(ratio.denominator != 1 for ratio in ratios):
        return None
    low = min(codes.low * int(ratio) for (codes, _), ratio in zip(found, ratios, strict=True))
    high = max(codes.high * int(ratio) for (codes, _), ratio in zip(found, ratios, strict=True))
    return CodeRange(low, high), finest


def _rows(graph: QdqGraph, node: onnx.NodeProto) -> tuple[_Doubles, _Doubles] | None:
    """Weight codes as (output channels, products) and one scale for each channel; None where they can't be had."""
    source = graph.producer.get(node.input[1])
    if source is None or source.op_type != "DequantizeLinear" or attributes(source).get("block_size"):
        return None
    codes, scale, point = constant(graph, source, 0), scale_of(graph, source), constant(graph, source, 2)
    stacked = node.op_type in ("Gemm", "MatMul") and codes is not None and codes.ndim != 2
    if codes is None or scale is None or stacked or codes.ndim < 2 or not (np.isfinite(scale) & (scale > 0)).all():
        return None
    axis = attributes(source).get("axis", 1)
    axis = axis + codes.ndim if isinstance(axis, int) and axis < 0 else axis
    wide, flat = codes.astype(np.float64), scale.reshape(-1)
    if point is not None and point.any():
        shape = [-1 if index == axis else 1 for index in range(codes.ndim)] if point.size > 1 else [1] * codes.ndim
        wide = wide - point.astype(np.float64).reshape(shape)
    rows, channel_axis = _by_channel(node, wide)
    if flat.size == 1:
        return rows, np.repeat(flat, len(rows))
    return (rows, flat) if axis == channel_axis and flat.size == len(rows) else None


def _by_channel(node: onnx.NodeProto, weight: _Doubles) -> tuple[_Doubles, int]:
    """All weights that an output channel sums over, and the axis of the weight that counts output channels."""
    given = attributes(node)
    if node.op_type == "Conv":
        return weight.reshape(len(weight), -1), 0
    if node.op_type == "Gemm" and given.get("transB", 0):
        return weight, 0
    if node.op_type == "ConvTranspose":
        groups = given.get("group", 1)
        count = groups if isinstance(groups, int) else 1
        parts = weight.reshape(count, weight.shape[0] // count, weight.shape[1], -1)
        # the scale's axis 1 counts the channels of one group: per channel fits only where there is one group
        return parts.transpose(0, 2, 1, 3).reshape(count * weight.shape[1], -1), 1
    return weight.T, 1
