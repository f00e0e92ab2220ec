"""ONNX nodes of resizing and adaptive average pooling, without products of float matrices (Turing has none, S7)."""

from __future__ import annotations

from typing import cast

import numpy as np
from torch import Tensor

from faq_deploy.emitter import Emitter
from faq_deploy.graph import Node
from faq_deploy.resample import AdaptiveAveragePool, Resize, nearest_indices

__all__ = ["emit_adaptive_avg_pool", "emit_resize"]


def emit_resize(out: Emitter, node: Node) -> None:
    """Resize where all runtimes agree on what it means, else Gather: of one neighbour (nearest) or two (linear)."""
    layer, name = cast(Resize, out.net.layers[node.name]), node.name
    if layer.linear:
        out.tensor[name] = _linear(out, node, layer)
    elif all(new % old == 0 for old, new in zip(layer.old, layer.new, strict=True)):
        out.tensor[name] = _resize(
            out, node, layer, mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor"
        )
    else:
        tensor = out.tensor[node.inputs[0]]
        for axis, (old, new) in enumerate(zip(layer.old, layer.new, strict=True), start=2):
            if old != new:
                indices = out.integers(f"{name}.indices_{axis}", nearest_indices(old, new, layer.kind))
                tensor = out.op("Gather", [tensor, indices], f"{name}.gathered_{axis}", axis=axis)
        out.tensor[name] = tensor


def emit_adaptive_avg_pool(out: Emitter, node: Node) -> None:
    """Each window's sum, columns first, divided once by the windows' sizes."""
    layer, name = cast(AdaptiveAveragePool, out.net.layers[node.name]), node.name
    tensor = out.tensor[node.inputs[0]]
    for axis, matrix in ((3, layer.columns), (2, layer.rows)):
        axes = out.integers(f"{name}.axis_{axis}", [axis])
        sums = []
        for number, row in enumerate(matrix):
            start, part = int(row.argmax()), f"{axis}_{number}"
            ends = [start, start + int(row.sum())]
            bounds = [out.integers(f"{name}.bound_{part}_{i}", [end]) for i, end in enumerate(ends)]
            window = out.op("Slice", [tensor, *bounds, axes], f"{name}.window_{part}")
            sums.append(out.op("ReduceSum", [window, axes], f"{name}.sum_{part}", keepdims=1))
        tensor = out.op("Concat", sums, f"{name}.sums_{axis}", axis=axis)
    counts = out.constant(f"{name}.counts", layer.counts.numpy())
    out.tensor[name] = out.shifted(node, out.op("Div", [tensor, counts], f"{name}.out"))


def _linear(out: Emitter, node: Node, layer: Resize) -> str:
    if len(layer.new) == 2 and (layer.exact or layer.mode != "quantize"):
        corners = "align_corners" if layer.align_corners else "half_pixel"
        return _resize(out, node, layer, mode="linear", coordinate_transformation_mode=corners)
    tensor = out.tensor[node.inputs[0]]
    for axis, matrix in reversed(list(enumerate(layer.matrices(), start=2))):
        tensor = _between(out, f"{node.name}.axis_{axis}", tensor, axis, len(layer.new) + 2, matrix)
    return tensor


def _between(out: Emitter, name: str, tensor: str, axis: int, rank: int, matrix: Tensor) -> str:
    """Weighted sum of each position's two neighbours along one axis; exact, as the weights have few bits."""
    positions = np.arange(len(matrix))
    weights = matrix.numpy()
    left = (weights > 0).argmax(1)
    right = np.minimum(left + 1, weights.shape[1] - 1)
    shares = {"left": weights[positions, left], "right": np.where(right > left, weights[positions, right], 0)}
    terms = []
    for side, indices in (("left", left), ("right", right)):
        chosen = out.integers(f"{name}.{side}_indices", indices.tolist())
        neighbour = out.op("Gather", [tensor, chosen], f"{name}.{side}", axis=axis)
        share = shares[side].astype(np.float32).reshape(-1, *[1] * (rank - 1 - axis))
        terms.append(out.op("Mul", [neighbour, out.constant(f"{name}.{side}_share", share)], f"{name}.{side}_part"))
    return out.op("Add", terms, f"{name}.sum")


def _resize(out: Emitter, node: Node, layer: Resize, **attributes: int | float | str | list[int]) -> str:
    name, source = node.name, out.tensor[node.inputs[0]]
    if all(new % old == 0 or old % new == 0 for old, new in zip(layer.old, layer.new, strict=True)):
        ratios = [new / old for old, new in zip(layer.old, layer.new, strict=True)]
        inputs = [source, "", out.constant(f"{name}.scales", np.array([1, 1, *ratios], np.float32))]
    else:  # a rounded ratio could give another size
        bounds = [out.integers(f"{name}.{key}", [position]) for key, position in (("first", 0), ("third", 2))]
        kept = out.op("Slice", [out.op("Shape", [source], f"{name}.shape"), *bounds], f"{name}.kept")
        sizes = out.op("Concat", [kept, out.integers(f"{name}.new", layer.new)], f"{name}.sizes", axis=0)
        inputs = [source, "", "", sizes]
    return out.op("Resize", inputs, f"{name}.out", **attributes)
