"""Small rewrites of a captured graph that leave what it computes alone."""

from __future__ import annotations

import dataclasses
from typing import Final

import torch
from torch import Tensor

from engines.errors import InputError
from faq_deploy.graph import Graph, Node, Setting
from faq_deploy.written_norms import name_layer_norms

__all__ = ["simplify"]

State = dict[str, Tensor]

_GATES: Final = {"sigmoid": "silu", "hardsigmoid": "hardswish"}


def simplify(graph: Graph, state: State) -> tuple[Graph, State]:
    """Run every rewrite below, then drop what no output needs.

    Args:
        graph: as captured.
        state: its parameters; read only.

    Returns:
        The simpler graph and its parameters.

    Raises:
        InputError: padding with -inf that no max pool takes over.
    """
    kept = dict(state)
    for rewrite in (name_layer_norms, _merge_pads, _name_gated, _merge_affines, _join_channels):
        graph = _without_dead(rewrite(graph, kept))
    lowest = next((n for n in graph if n.kind == "pad" and n.settings["mode"] == "lowest"), None)
    if lowest is not None:
        raise InputError(
            f"{lowest.describe()} pads with -inf other than for one max pool.", "pad with zeros, or inside the pool."
        )
    names = {node.name for node in graph}
    return graph, {key: tensor for key, tensor in kept.items() if key.partition(".")[0] in names}


def _merge_pads(graph: Graph, state: State) -> Graph:
    """Zero padding becomes the convolution's own, padding with -inf the max pool's."""
    nodes, uses = graph.by_name(), graph.uses()
    result = []
    for node in graph:
        before = nodes[node.inputs[0]] if node.inputs else node
        mode = {"conv": "constant", "max_pool": "lowest"}.get(node.kind)
        if before.kind == "pad" and before.settings["mode"] == mode and uses[before.name] == 1:
            pads, count = before.integers("pads"), len(node.integers("stride"))
            channels = len(pads) // 2 - count
            if not any(pads[:channels]) and not any(pads[len(pads) // 2 :][:channels]):
                own = node.integers("padding")
                both = own * 2 if len(own) == count else own
                extra = pads[channels : channels + count] + pads[-count:]
                total = [a + b for a, b in zip(both, extra, strict=True)]
                padding = total[:count] if total[:count] == total[count:] else total
                node = dataclasses.replace(node.with_settings(padding=padding), inputs=before.inputs)
        result.append(node)
    return Graph(tuple(result), graph.outputs)


def _name_gated(graph: Graph, state: State) -> Graph:
    """x·sigmoid(x) is SiLU: one table instead of two and a product."""
    nodes, uses = graph.by_name(), graph.uses()
    result = []
    for node in graph:
        if node.kind == "mul" and len(node.inputs) == 2:
            for gate, other in (node.inputs, node.inputs[::-1]):
                function = _GATES.get(str(nodes[gate].settings.get("function")))
                if function and nodes[gate].inputs == (other,) and uses[gate] == 1:
                    settings: dict[str, Setting] = dict(nodes[gate].settings) | {"function": function}
                    node = dataclasses.replace(node, kind="unary", inputs=(other,), settings=settings)
                    break
        result.append(node)
    return Graph(tuple(result), graph.outputs)


def _join_channels(graph: Graph, state: State) -> Graph:
    """A concat of affine functions of single channels (`transform_input`) is one affine function of all."""
    nodes = graph.by_name()
    result = []
    for node in graph:
        parts = [_channel(nodes, name) for name in node.inputs] if node.kind == "cat" else []
        sources = {source for source, _ in parts}
        axis = node.settings.get("axis") in (None, 1)
        if axis and len(parts) > 1 and len(sources) == 1 and [c for _, c in parts] == list(range(len(parts))):
            (source,) = sources
            if source and nodes[source].kind == "input" and nodes[source].integers("shape")[0] == len(parts):
                for key in ("weight", "bias"):
                    state[f"{node.name}.{key}"] = torch.cat([state[f"{name}.{key}"] for name in node.inputs])
                node = dataclasses.replace(node, kind="affine", inputs=(source,), settings={})
        result.append(node)
    return Graph(tuple(result), graph.outputs)


def _channel(nodes: dict[str, Node], name: str) -> tuple[str, int]:
    """Source and channel of an affine function of a slice of one channel; ("", -1) if it is none."""
    node = nodes[name]
    if node.kind != "affine":
        return "", -1
    node = nodes[node.inputs[0]]
    while node.kind == "reshape":
        node = nodes[node.inputs[0]]
    one = node.kind == "slice" and node.integer("axis") == 1 and node.integer("end") == node.integer("start") + 1
    return (node.inputs[0], node.integer("start")) if one else ("", -1)


def _merge_affines(graph: Graph, state: State) -> Graph:
    """Two multiply-adds in a row are one; one behind a function of values becomes its gain."""
    nodes, uses = graph.by_name(), graph.uses()
    result: dict[str, Node] = {}
    renamed: dict[str, str] = {}
    for node in graph:
        node = dataclasses.replace(node, inputs=tuple(renamed.get(i, i) for i in node.inputs))
        before = result.get(node.inputs[0]) if node.kind == "affine" else None
        alone = before is not None and uses[nodes[before.name].name] == 1
        if before is not None and alone and before.kind == "affine":
            weight, bias = (state[f"{node.name}.{key}"] for key in ("weight", "bias"))
            state[f"{before.name}.bias"] = state[f"{before.name}.bias"] * weight + bias
            state[f"{before.name}.weight"] = state[f"{before.name}.weight"] * weight
            renamed[node.name] = before.name
            continue
        if before is not None and alone and before.kind == "unary" and _is_gain(node, state):
            gain = float(state[f"{node.name}.weight"].flatten()[0])
            before_gain = before.settings["gain"]
            assert isinstance(before_gain, float)
            result[before.name] = before.with_settings(gain=before_gain * gain)
            renamed[node.name] = before.name
            continue
        result[node.name] = node
    return Graph(tuple(result.values()), tuple(renamed.get(o, o) for o in graph.outputs))


def _is_gain(node: Node, state: State) -> bool:
    weight, bias = state[f"{node.name}.weight"], state[f"{node.name}.bias"]
    return not bool(bias.any()) and bool((weight == weight.flatten()[0]).all())


def _without_dead(graph: Graph) -> Graph:
    needed = set(graph.outputs)
    kept = []
    for node in reversed(graph.nodes):
        if node.name in needed or node.kind == "input":
            needed.update(node.inputs)
            kept.append(node)
    return Graph(tuple(reversed(kept)), graph.outputs)
