"""Batch norm before quantization: given to the layer before it, or kept with integer constants."""

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
    """Give every batch norm to the layer before it.

    `fold` hands it over whole: the layer multiplies a = γ/√(σ²+ε) into its weights before they are quantized, and
    c = β - μ·a becomes its bias (see `LiveNorm`). `paper` and `fit` keep a node after the layer, with constants of
    its own. In all modes the layer's bias moves into μ, and a batch norm with no layer of its own before it
    (DenseNet's pre-activation) becomes a 1x1 depthwise convolution: a per-channel multiply-add that has integer
    kernels.

    Args:
        graph: float graph.
        state: its parameters, keyed `node.weight` and so on.
        mode: see above.

    Returns:
        The new graph and its parameters, a live batch norm's keyed `layer.norm.weight` and so on.
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
            continue
        bias = kept.pop(f"{before.name}.bias", None)
        if bias is not None:  # BN(x + b) with mean μ is BN(x) with mean μ - b
            kept[f"{node.name}.running_mean"] = kept[f"{node.name}.running_mean"] - bias
        if mode == "fold":
            for key in ("weight", "bias", "running_mean", "running_var"):
                kept[f"{before.name}.norm.{key}"] = kept.pop(f"{node.name}.{key}")
            position = next(i for i, done in enumerate(result) if done.name == before.name)
            settings = {f"norm_{key}": node.settings[key] for key in ("eps", "momentum")}
            result[position] = result[position].with_settings(**settings)
            renamed[node.name] = before.name
        else:
            result.append(current)
    with_bias = {n.name for n in result if n.kind == "batch_norm"}
    for node in result:
        normalized = "norm_eps" in node.settings or any(r.name in with_bias for r in consumers.get(node.name, ()))
        if node.kind in WEIGHTED and not normalized and f"{node.name}.bias" not in kept:
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
