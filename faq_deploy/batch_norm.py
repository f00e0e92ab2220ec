"""Batch norm before quantization: given to the layer before it, or kept with integer constants."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from faq_deploy.affine import as_depthwise, fold_affines
from faq_deploy.graph import WEIGHTED, Graph, Node

__all__ = ["BatchNormMode", "fold"]

BatchNormMode = Literal["fold", "paper", "fit"]


def fold(graph: Graph, state: Mapping[str, Tensor], mode: BatchNormMode) -> tuple[Graph, dict[str, Tensor]]:
    """Give every batch norm, and every multiply-add by constants, to the layer before it.

    `fold` hands a batch norm over whole: the layer multiplies a = γ/√(σ²+ε) into its weights before they are
    quantized, and c = β - μ·a becomes its bias (see `LiveNorm`). `paper` and `fit` keep a node after the layer, with
    constants of its own (not after a transposed convolution). In all modes the layer's bias moves into μ, and a batch
    norm with no layer of its own before it (DenseNet's pre-activation) becomes a 1x1 depthwise convolution: a
    per-channel multiply-add that has integer kernels.

    Args:
        graph: float graph.
        state: its parameters, keyed `node.weight` and so on.
        mode: see above.

    Returns:
        The new graph and its parameters, a live batch norm's keyed `layer.norm.weight` and so on.
    """
    kept = dict(state)
    graph = fold_affines(graph, kept)
    nodes = graph.by_name()
    consumers = graph.consumers()
    result: dict[str, Node] = {}
    renamed: dict[str, str] = {}
    for node in graph:
        current = dataclasses.replace(node, inputs=tuple(renamed.get(i, i) for i in node.inputs))
        if node.kind != "batch_norm":
            result[node.name] = current
            continue
        before = nodes[node.inputs[0]]
        own = before.kind in WEIGHTED and len(consumers[before.name]) == 1 and before.name not in graph.outputs
        if not own:
            result |= {made.name: made for made in as_depthwise(current, kept, *_affine(current, kept))}
            continue
        bias = kept.pop(f"{before.name}.bias", None)
        if bias is not None:  # BN(x + b) with mean μ is BN(x) with mean μ - b
            kept[f"{node.name}.running_mean"] = kept[f"{node.name}.running_mean"] - bias
        if mode == "fold" or before.kind == "conv_transpose":
            for key in ("weight", "bias", "running_mean", "running_var"):
                kept[f"{before.name}.norm.{key}"] = kept.pop(f"{node.name}.{key}")
            settings = {f"norm_{key}": node.settings[key] for key in ("eps", "momentum")}
            result[before.name] = result[before.name].with_settings(**settings)
            renamed[node.name] = before.name
        else:
            result[node.name] = current
    zeros: dict[int, Tensor] = {}  # layers that share a weight share the bias that they are given
    normalized = {n.inputs[0] for n in result.values() if n.kind == "batch_norm"}
    for node in result.values():
        plain = node.kind in WEIGHTED and "norm_eps" not in node.settings and node.name not in normalized
        if plain and f"{node.name}.bias" not in kept:
            weight = kept[f"{node.name}.weight"]
            transposed = node.kind == "conv_transpose"
            count = weight.shape[1] * node.integer("groups") if transposed else len(weight)
            kept[f"{node.name}.bias"] = zeros.setdefault(id(weight), torch.zeros(count))
    return Graph(tuple(result.values()), tuple(renamed.get(o, o) for o in graph.outputs)), kept


def _affine(node: Node, state: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Pop the constants of a batch norm and return a and c in float64."""
    gamma, beta, mean, var = (
        state.pop(f"{node.name}.{key}").double() for key in ("weight", "bias", "running_mean", "running_var")
    )
    eps = node.settings["eps"]
    assert isinstance(eps, float)
    a = gamma / torch.sqrt(var + eps)
    return a, beta - mean * a
