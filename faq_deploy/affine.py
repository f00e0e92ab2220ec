"""Multiply-adds by constants (scales, shifts): folded into a layer beside them, or a layer of their own."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from faq_deploy.graph import WEIGHTED, Graph, Node, Setting, pointwise

__all__ = ["as_depthwise", "fold_affines", "scaled_outputs"]


def fold_affines(graph: Graph, state: dict[str, Tensor]) -> Graph:
    """Take every `affine` node out of the graph.

    It goes into the layer or norm before it, if that has no other reader; else into the one layer behind it,
    where padding can't mix its shift with zeros; else it becomes a 1x1 depthwise convolution.

    Args:
        graph: float graph.
        state: its parameters; changed in place.
    """
    uses = graph.uses()
    readers = graph.consumers()
    result: dict[str, Node] = {}
    renamed: dict[str, str] = {}
    for node in graph:
        current = dataclasses.replace(node, inputs=tuple(renamed.get(i, i) for i in node.inputs))
        if node.kind != "affine":
            result[node.name] = current
            continue
        weight, bias = (state.pop(f"{node.name}.{key}") for key in ("weight", "bias"))
        before = result[current.inputs[0]]
        after = readers[node.name][0] if uses[node.name] == 1 and readers[node.name] else None
        if before.kind in WEIGHTED | {"batch_norm", "norm"} and uses[node.inputs[0]] == 1:
            _scale_layer(before, state, weight, bias)
            renamed[node.name] = before.name
        elif after is not None and _absorbs(after, state, bias):
            _scale_inputs(after, state, weight, bias)
            renamed[node.name] = current.inputs[0]
        else:
            result |= {made.name: made for made in as_depthwise(current, state, weight, bias)}
    return Graph(tuple(result.values()), tuple(renamed.get(o, o) for o in graph.outputs))


def as_depthwise(node: Node, state: dict[str, Tensor], weight: Tensor, bias: Tensor) -> list[Node]:
    """The nodes of y = x·weight + bias as a depthwise convolution of kernel 1; their parameters go into `state`.

    Args:
        node: what they replace; the last of them has its name. Setting `spatial` is its number of positions' axes.
        state: changed in place.
        weight, bias: shape (channels,).
    """
    spatial = node.settings.get("spatial", 2)
    assert isinstance(spatial, int)
    count = spatial or 2  # features are images of one pixel
    settings: dict[str, Setting] = pointwise(count, groups=len(weight)) | {"affine": True}
    name = node.name if spatial else f"{node.name}_affine"
    state[f"{name}.weight"] = weight.float().reshape(-1, 1, *[1] * count)
    state[f"{name}.bias"] = bias.float()
    conv = dataclasses.replace(node, name=name, kind="conv", settings=settings)
    if spatial:
        return [conv]
    shape = [len(weight), 1, 1]
    image = dataclasses.replace(node, name=f"{node.name}_image", kind="reshape", settings={"shape": shape})
    conv = dataclasses.replace(conv, inputs=(image.name,))
    flat = dataclasses.replace(node, kind="flatten", inputs=(conv.name,), settings={"shape": shape})
    return [image, conv, flat]


def scaled_outputs(node: Node, weight: Tensor, factor: Tensor) -> Tensor:
    """A layer's weight with output channel c multiplied by factor[c].

    Args:
        node: tells a transposed convolution's layout, (in, out/groups, ...), from the others' (out, ...).
        weight: of the layer.
        factor: shape (output channels,).
    """
    if node.kind != "conv_transpose":
        return weight * factor.reshape(-1, *[1] * (weight.dim() - 1))
    groups = node.integer("groups")
    spread = factor.reshape(groups, 1, -1).expand(groups, len(weight) // groups, weight.shape[1])
    return weight * spread.reshape(*weight.shape[:2], *[1] * (weight.dim() - 2))


def _scale_layer(node: Node, state: dict[str, Tensor], weight: Tensor, bias: Tensor) -> None:
    if node.kind in {"batch_norm", "norm"}:
        state[f"{node.name}.weight"] = state[f"{node.name}.weight"] * weight
    else:
        state[f"{node.name}.weight"] = scaled_outputs(node, state[f"{node.name}.weight"], weight)
    own = state.get(f"{node.name}.bias")
    state[f"{node.name}.bias"] = bias if own is None else own * weight + bias


def _absorbs(node: Node, state: dict[str, Tensor], bias: Tensor) -> bool:
    if node.kind == "linear":
        return True
    padded = node.kind == "conv" and any(node.integers("padding"))
    return node.kind == "conv" and (not padded or not bool(bias.any()))


def _scale_inputs(node: Node, state: dict[str, Tensor], weight: Tensor, bias: Tensor) -> None:
    """Put x·weight + bias before a linear layer or convolution into its parameters."""
    own = state[f"{node.name}.weight"]
    groups = node.integer("groups") if node.kind == "conv" else 1
    per_group = len(own) // groups
    factor, shift = (t.reshape(groups, 1, -1).expand(groups, per_group, own.shape[1]) for t in (weight, bias))
    taps = [1] * (own.dim() - 2)
    moved = (own * shift.reshape(*own.shape[:2], *taps)).flatten(1).sum(1)
    state[f"{node.name}.weight"] = own * factor.reshape(*own.shape[:2], *taps)
    if bool(bias.any()):
        state[f"{node.name}.bias"] = state.get(f"{node.name}.bias", torch.zeros(len(own))) + moved
