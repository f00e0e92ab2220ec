"""One weight for all calls of a layer: a detector's head reads every level of its pyramid with the same numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Final

from torch import Tensor, nn

from faq_deploy.graph import WEIGHTED, Graph

__all__ = ["tie", "untied", "with_shared_weights"]

_KINDS: Final = WEIGHTED | {"norm"}
_SETTINGS: Final = {"weight": "weight_of", "bias": "bias_of"}


def with_shared_weights(graph: Graph, state: Mapping[str, Tensor]) -> Graph:
    """The graph in which each layer knows an earlier one that has its weight or its bias.

    Args:
        graph: float or placed.
        state: parameters, keyed `node.weight` and so on; those that the model shares are one tensor.
    """
    first: dict[tuple[str, int], str] = {}
    nodes = []
    for node in graph:
        for key, setting in _SETTINGS.items():
            tensor = state.get(f"{node.name}.{key}") if node.kind in _KINDS else None
            if tensor is not None and (owner := first.setdefault((key, id(tensor)), node.name)) != node.name:
                node = node.with_settings(**{setting: owner})
        nodes.append(node)
    return dataclasses.replace(graph, nodes=tuple(nodes))


def tie(graph: Graph, layers: Mapping[str, nn.Module]) -> None:
    """Give layers the very parameters of those that they share them with, so that training moves all by one gradient.

    Args:
        graph: as `with_shared_weights` made it.
        layers: of its nodes, by name.
    """
    for node in graph:
        for key, setting in _SETTINGS.items():
            owner = node.settings.get(setting)
            if isinstance(owner, str):
                setattr(layers[node.name], key, getattr(layers[owner], key))


def untied(graph: Graph, layers: Mapping[str, nn.Module]) -> Graph:
    """Give every layer parameters of its own, for corrections that are made layer by layer.

    Args:
        graph: of the net.
        layers: of its nodes, by name.

    Returns:
        The graph of a net in which nothing is shared.
    """
    nodes = []
    for node in graph:
        for key, setting in _SETTINGS.items():
            if setting in node.settings:
                shared = getattr(layers[node.name], key)
                setattr(layers[node.name], key, nn.Parameter(shared.detach().clone(), shared.requires_grad))
        kept = {key: value for key, value in node.settings.items() if key not in _SETTINGS.values()}
        nodes.append(dataclasses.replace(node, settings=kept))
    return dataclasses.replace(graph, nodes=tuple(nodes))
