"""Batch norm before quantization: folded into the layer before it, or kept as integer constants."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from faq_deploy.graph import WEIGHTED, Graph, Node, Setting

__all__ = ["BatchNormMode", "fold"]

BatchNormMode = Literal["fold", "paper", "fit"]


def fold(graph: Graph, state: Mapping[str, Tensor], mode: BatchNormMode) -> tuple[Graph, dict[str, Tensor]]:
    """Remove the batch norms that inference does not need.

    `fold` multiplies a = γ/√(σ²+ε) into the weights of the convolution or linear layer before it and
    adds c = β - μ·a to its bias, in float64. `paper` and `fit` keep the batch norm after its layer and
    only move that layer's bias into μ. A batch norm with no layer of its own before it (DenseNet's
    pre-activation) becomes a 1x1 depthwise convolution in every mode: a per-channel multiply-add that
    has integer kernels.

    Args:
        graph: float graph.
        state: its parameters, keyed `node.weight` and so on.
        mode: see above.

    Returns:
        The new graph and its parameters; every conv and linear layer of a `fold` graph has a bias.
    """
    nodes = graph.by_name()
    consumers = graph.consumers()
    kept = dict(state)
    result: list[Node] = []
    renamed: dict[str, str] = {}
    for node in graph:
        inputs = tuple(renamed.get(i, i) for i in node.inputs)
        current = dataclasses.replace(node, inputs=inputs)
        if node.kind != "batch_norm":
            result.append(current)
            continue
        before = nodes[node.inputs[0]]
        own = before.kind in WEIGHTED and len(consumers[before.name]) == 1 and before.name not in graph.outputs
        if not own:
            result.append(_as_depthwise(current, kept))
        elif mode == "fold":
            _fold_into(before.name, node, kept)
            renamed[node.name] = before.name
        else:
            bias = kept.pop(f"{before.name}.bias", None)
            if bias is not None:  # BN(x + b) with mean μ is BN(x) with mean μ - b
                kept[f"{node.name}.running_mean"] = kept[f"{node.name}.running_mean"] - bias
            result.append(current)
    with_bias = {n.name for n in result if n.kind == "batch_norm"}
    for node in result:
        followed = any(r.name in with_bias for r in consumers.get(node.name, ()))
        if node.kind in WEIGHTED and not followed and f"{node.name}.bias" not in kept:
            kept[f"{node.name}.bias"] = torch.zeros(len(kept[f"{node.name}.weight"]))
    return Graph(tuple(result), tuple(renamed.get(o, o) for o in graph.outputs)), kept


def _affine(node: Node, state: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Pop the constants of a batch norm and return a and c in float64."""
    gamma, beta, mean, var = (
        state.pop(f"{node.name}.{key}").double() for key in ("weight", "bias", "running_mean", "running_var")
    )
    eps = node.settings["eps"]
    assert isinstance(eps, float)
    a = gamma / torch.sqrt(var + eps)
    return a, beta - mean * a


def _fold_into(layer: str, node: Node, state: dict[str, Tensor]) -> None:
    a, c = _affine(node, state)
    weight = state[f"{layer}.weight"]
    bias = state.get(f"{layer}.bias")
    shape = (-1, *[1] * (weight.dim() - 1))
    state[f"{layer}.weight"] = (weight.double() * a.reshape(shape)).float()
    state[f"{layer}.bias"] = (c if bias is None else bias.double() * a + c).float()


def _as_depthwise(node: Node, state: dict[str, Tensor]) -> Node:
    a, c = _affine(node, state)
    state[f"{node.name}.weight"] = a.float().reshape(-1, 1, 1, 1)
    state[f"{node.name}.bias"] = c.float()
    settings: dict[str, Setting] = {
        "stride": [1, 1],
        "padding": [0, 0],
        "dilation": [1, 1],
        "groups": len(a),
        "affine": True,
    }
    return Node(node.name, "conv", node.inputs, settings, node.source)
