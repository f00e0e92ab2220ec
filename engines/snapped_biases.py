"""Biases on the accumulator's grid s_x x s_w, where integer kernels add them."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper

from engines.lint_view import layer_bias, shared_scale
from engines.model_edit import add_constant
from engines.power_of_two import exponent_of
from engines.qdq_graph import QdqGraph, attributes, constant, read_graph
from engines.snapped_activations import Left, SnapTarget
from engines.snapped_weights import bias_readers, coarser_weight, move_weight

__all__ = ["move_biases"]

_MOST_STEPS: Final = 2**23  # so that the sum, too, can stay within the 2^24 up to which float32 holds every integer

Doubles = npt.NDArray[np.float64]


def move_biases(
    model: onnx.ModelProto, before: QdqGraph, target: SnapTarget
) -> tuple[dict[str, float], list[str], dict[str, str]]:
    """Round every bias to the steps of its layer's sums.

    Args:
        model: is changed; its activations and weights are on their next grids.
        before: the file as it was, which says what each bias is.
        target: "tensorrt" gets biases in float32, as it reads no int32 codes; "onnxruntime" keeps the form of the file.

    Returns:
        By layer, the largest change of a bias; the layers that got larger weight steps, since their bias was
        many times what their weights can add up to; and why others stay as they are.
    """
    moved: dict[str, float] = {}
    coarser: list[str] = []
    left: dict[str, str] = {}
    layers = {str(node.name or node.output[0]): node for node in bias_readers(before).values()}
    biases = {name: layer_bias(before, node) for name, node in layers.items()}
    graph = read_graph(model)
    for node in bias_readers(graph).values():
        name = str(node.name or node.output[0])
        try:
            steps = _steps(graph, node, biases.get(name))
            if np.abs(steps * _grid(graph, node)).max(initial=0) and np.abs(steps).max() > _MOST_STEPS:
                _coarsen(model, graph, node, steps)
                coarser.append(name)
                graph = read_graph(model)
                steps = _steps(graph, node, biases.get(name))
            change = _move(model, graph, node, steps, target)
        except Left as reason:
            left[name] = str(reason)
            continue
        if change is not None:
            moved[name] = change
    return moved, coarser, left


def _steps(graph: QdqGraph, node: onnx.NodeProto, bias: Doubles | None) -> Doubles:
    """The bias in steps of the layer's sums, not rounded yet."""
    if bias is None:
        raise Left("its bias is computed")
    if any(attributes(node).get(key, 1.0) != 1.0 for key in ("alpha", "beta")):
        raise Left("it multiplies by alpha or beta")
    grid = _grid(graph, node)
    if grid.size not in (1, bias.size):
        raise Left(f"its bias has {bias.size} values for {grid.size} channels")
    return bias / grid


def _grid(graph: QdqGraph, node: onnx.NodeProto) -> Doubles:
    s_x, s_w = shared_scale(graph, node.input[0]), shared_scale(graph, node.input[1])
    if s_x is None or s_w is None or s_x.size != 1:
        raise Left("its input or its weight lies on no one grid, so that its bias stays as it is")
    if any(exponent_of(float(scale)) is None for scale in (*s_x, *s_w)):
        raise Left("a scale of its input or weight is no power of two, so that its bias stays as it is")
    grid: Doubles = s_x * s_w
    return grid


def _coarsen(model: onnx.ModelProto, graph: QdqGraph, node: onnx.NodeProto, steps: Doubles) -> None:
    """Larger weight steps for channels that are nearly dead beside their bias."""
    source = graph.producer[node.input[1]]
    scale = constant(graph, source, 1) if source.op_type == "DequantizeLinear" else None
    if scale is None:
        raise Left("its bias does not fit int32, and its weight is not read directly")
    over = np.ceil(np.log2(np.maximum(np.abs(steps) / _MOST_STEPS, 1))).astype(np.int64)
    by_channel = over if scale.size == over.size else np.array([over.max()])
    now = np.rint(np.log2(scale.astype(np.float64).reshape(-1))).astype(np.int64)
    move_weight(model, coarser_weight(graph, source, now + by_channel))


def _move(
    model: onnx.ModelProto, graph: QdqGraph, node: onnx.NodeProto, steps: Doubles, target: SnapTarget
) -> float | None:
    """Write the rounded bias; the largest change, or None where it is there already."""
    grid = _grid(graph, node)
    given, source = constant(graph, node, 2), graph.producer.get(node.input[2])
    whole = np.rint(steps)
    is_float = given is not None
    name = node.name or node.output[0]
    if is_float or target == "tensorrt":
        shape, dtype = (given.shape, given.dtype) if given is not None else ((whole.size,), np.dtype(np.float32))
        if is_float and np.array_equal(whole, steps):
            return None
        node.input[2] = add_constant(model, (whole * grid).astype(dtype).reshape(shape), f"{name}.po2_bias")
        return float(np.abs((whole - steps) * grid).max())
    assert source is not None
    scale = constant(graph, source, 1)
    if np.array_equal(whole, steps) and scale is not None and np.array_equal(scale.reshape(-1), grid):
        return None
    single = grid.size == 1
    codes = add_constant(model, whole.astype(np.int32), f"{name}.po2_bias_codes")
    step = add_constant(model, (grid.reshape(()) if single else grid).astype(np.float32), f"{name}.po2_bias_scale")
    fresh = helper.make_node("DequantizeLinear", [codes, step], [f"{name}.po2_bias"], f"{name}.po2_bias")
    if not single:
        fresh.attribute.append(helper.make_attribute("axis", 0))
    model.graph.node.insert(list(model.graph.node).index(node), fresh)
    node.input[2] = fresh.output[0]
    return float(np.abs((whole - steps) * grid).max())
