"""What the user decides layer by layer: parts that stay in float, and bits of their own."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Final

from engines.errors import InputError
from faq_deploy.graph import WEIGHTED, Graph, Node
from faq_deploy.recipe_sections import LayersSection

__all__ = ["choose_layers"]

_LINEAR_BITS: Final = 4


def choose_layers(graph: Graph, choices: LayersSection) -> Graph:
    """Mark nodes as `float`, and give those with bits of their own the setting `chosen_bits`.

    Names are a module's path in the user's model (`layer4.1.conv2`) or the layer's name in our files
    (`layer4_1_conv2`). With `int4_linear`, linear layers that no pattern names get 4-bit weights.

    Args:
        graph: before quantizers are placed.
        choices: the recipe's section `layers`.

    Raises:
        InputError: a name or pattern that nothing matches, with the nearest one; 4-bit linear layers are asked for and
            there is none.
    """
    layers = [node for node in graph if node.kind in WEIGHTED]
    choosable = [*layers, *(node for node in graph if node.kind == "relu")]
    leaves = {node.name for node in graph if any(_inside(node, path) for path in choices.leaf)}
    for path in choices.leaf:
        if not any(_inside(node, path) for node in graph):
            raise _unknown("--leaf", path, (node.module for node in graph))
    for pattern in choices.skip:
        if not any(_matches(node, pattern) for node in layers):
            raise _unknown("--skip", pattern, (node.module or node.name for node in layers))
    for pattern in choices.bits:
        if not any(_matches(node, pattern) for node in choosable):
            raise _unknown("--bits", pattern, (node.module or node.name for node in choosable))
    if choices.int4_linear and not any(node.kind == "linear" for node in layers):
        raise InputError(
            "--int4-linear: the model has no linear layer.",
            "leave it out; --bits PATTERN=4 gives convolutions 4-bit weights.",
        )
    weighted = {node.name for node in layers if any(_matches(node, pattern) for pattern in choices.skip)}
    result = []
    for node in graph:
        if node.name in leaves | weighted and node.kind != "input":
            node = node.with_settings(float=True)
        bits = next((b for pattern, b in choices.bits.items() if _matches(node, pattern)), None)
        if bits is None and choices.int4_linear and node.kind == "linear":
            bits = _LINEAR_BITS
        if bits is not None and node.kind in WEIGHTED | {"relu"}:
            node = node.with_settings(chosen_bits=bits)
        result.append(node)
    return Graph(tuple(result), graph.outputs)


def _inside(node: Node, path: str) -> bool:
    return node.module == path or node.module.startswith(f"{path}.") or node.name == path


def _matches(node: Node, pattern: str) -> bool:
    return fnmatchcase(node.module, pattern) or fnmatchcase(node.name, pattern)


def _unknown(option: str, wanted: str, names: Iterable[str]) -> InputError:
    known = sorted({name for name in names if name})
    close = difflib.get_close_matches(wanted, known, 1, 0.4)
    hint = f"did you mean {close[0]}?" if close else f"it has {', '.join(known[:8])}{' ...' if len(known) > 8 else ''}."
    return InputError(f"{option} {wanted}: nothing in the model has that name.", hint)
