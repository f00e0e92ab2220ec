"""Layer norms that a model writes out: (x - u)/sqrt(mean((x - u)^2) + eps) over the channels, as ConvNeXt does."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from faq_deploy.graph import Graph, Node

__all__ = ["name_layer_norms"]


def name_layer_norms(graph: Graph, state: dict[str, Tensor]) -> Graph:
    """Make one `norm` node of each, so that its variance is not squeezed into 8 bits.

    Args:
        graph: as captured.
        state: its parameters; gets the norm's weight (ones) and bias (zeros).
    """
    nodes = graph.by_name()
    result = []
    for node in graph:
        found = _layer_norm(node, nodes, state) if node.kind == "mul" else None
        if found is not None:
            source, channels, eps = found
            state[f"{node.name}.weight"], state[f"{node.name}.bias"] = torch.ones(channels), torch.zeros(channels)
            settings = {"groups": 1, "spatial": False, "eps": eps}
            node = dataclasses.replace(node, kind="norm", inputs=(source,), settings=settings)
        result.append(node)
    return Graph(tuple(result), graph.outputs)


def _layer_norm(node: Node, nodes: dict[str, Node], state: dict[str, Tensor]) -> tuple[str, int, float] | None:
    """Source, channels and eps, if `node` is (x - u) times the reciprocal root of its mean square plus eps."""
    centred, inverse = (nodes[name] for name in node.inputs)
    if inverse.kind == "sub":
        centred, inverse = inverse, centred
    if centred.kind != "sub" or _mean(nodes[centred.inputs[1]], state) != centred.inputs[0]:
        return None
    if _is(inverse, "rsqrt"):
        shifted = nodes[inverse.inputs[0]]
    elif _is(inverse, "reciprocal") and _is(nodes[inverse.inputs[0]], "sqrt"):
        shifted = nodes[nodes[inverse.inputs[0]].inputs[0]]
    else:
        return None
    if shifted.kind != "affine" or not bool((state[f"{shifted.name}.weight"] == 1).all()):
        return None
    average = nodes[shifted.inputs[0]]
    square = _mean(average, state)
    if square is None or not all(_same(nodes[name], centred) for name in _squared(nodes[square])):
        return None
    return (
        centred.inputs[0],
        state[f"{average.name}.weight"].shape[1],
        float(state[f"{shifted.name}.bias"].flatten()[0]),
    )


def _mean(node: Node, state: dict[str, Tensor]) -> str | None:
    """What `node` is the mean over channels of."""
    weight = state.get(f"{node.name}.weight")
    if node.kind != "conv" or weight is None or len(weight) != 1 or f"{node.name}.bias" in state:
        return None
    same = weight.flatten(2).shape[2] == 1 and bool((weight == torch.tensor(1 / weight.shape[1])).all())
    return node.inputs[0] if same else None


def _squared(node: Node) -> tuple[str, ...]:
    return node.inputs if node.kind == "mul" or _is(node, "square") else (node.name,)


def _same(node: Node, other: Node) -> bool:
    """Both compute the same difference, which models often write twice."""
    return node.kind == other.kind and node.inputs == other.inputs


def _is(node: Node, function: str) -> bool:
    return node.kind == "unary" and node.settings["function"] == function and node.settings["gain"] == 1.0
