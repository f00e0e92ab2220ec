"""A network as plain data: named nodes in order, each with a kind, inputs and JSON settings."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, get_args

from engines.errors import InputError
from engines.json_text import read_json

__all__ = ["TRANSPARENT", "WEIGHTED", "Graph", "Kind", "Node", "Setting", "pointwise"]

Setting = bool | int | float | str | list[int] | None

Kind = Literal[
    "input",
    "constant",
    "conv",
    "conv_transpose",
    "linear",
    "batch_norm",
    "affine",
    "norm",
    "relu",
    "prelu",
    "unary",
    "quantize",
    "add",
    "sub",
    "mul",
    "cat",
    "max_pool",
    "avg_pool",
    "global_avg_pool",
    "adaptive_avg_pool",
    "resize",
    "pad",
    "permute",
    "slice",
    "flatten",
    "reshape",
    "dropout",
    "stochastic_depth",
]

WEIGHTED: Final = frozenset({"conv", "conv_transpose", "linear"})

# These only move codes, and so does resizing to the nearest: see `Node.moves_codes`.
TRANSPARENT: Final = frozenset(
    {"max_pool", "flatten", "reshape", "dropout", "stochastic_depth", "cat", "pad", "permute", "slice"}
)


@dataclass(frozen=True)
class Node:
    """One operation.

    Attributes:
        name: unique, an identifier; also the layer's and the ONNX tensors' name.
        kind: what it does.
        inputs: names of the nodes it reads.
        settings: JSON values (strides, bits, ...).
        source: module path and source line in the user's model, for messages.
        module: path of the module it ran in, for choices by name.
    """

    name: str
    kind: Kind
    inputs: tuple[str, ...] = ()
    settings: Mapping[str, Setting] = field(default_factory=dict)
    source: str = ""
    module: str = ""

    @property
    def is_float(self) -> bool:
        """The user keeps it in float: it neither needs codes nor claims exactness."""
        return bool(self.settings.get("float"))

    @property
    def moves_codes(self) -> bool:
        """Its output holds codes of its input (and zeros): it needs no quantizer of its own."""
        return self.kind in TRANSPARENT or (self.kind == "resize" and self.settings["mode"] != "linear")

    def integer(self, key: str) -> int:
        """An integer setting."""
        value = self.settings[key]
        assert isinstance(value, int), (self.name, key, value)
        return value

    def integers(self, key: str) -> list[int]:
        """A list-of-integers setting."""
        value = self.settings[key]
        assert isinstance(value, list), (self.name, key, value)
        return value

    def text(self, key: str) -> str:
        """A string setting."""
        value = self.settings[key]
        assert isinstance(value, str), (self.name, key, value)
        return value

    def with_settings(self, **settings: Setting) -> Node:
        """A copy with these settings changed or added."""
        return dataclasses.replace(self, settings={**self.settings, **settings})

    def describe(self) -> str:
        """Name and place, for messages."""
        return f"{self.name} ({self.kind}{', ' + self.source if self.source else ''})"


@dataclass(frozen=True)
class Graph:
    """Nodes in topological order.

    Attributes:
        nodes: all of them.
        outputs: names of those that are outputs.
        labels: what the model calls its outputs, where there are several: a key, or a position; else empty.
    """

    nodes: tuple[Node, ...]
    outputs: tuple[str, ...]
    labels: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[Node]:
        return iter(self.nodes)

    def by_name(self) -> dict[str, Node]:
        """Nodes by name."""
        return {node.name: node for node in self.nodes}

    def uses(self) -> Counter[str]:
        """How often each node is read; being an output counts."""
        return Counter([i for node in self.nodes for i in node.inputs] + list(self.outputs))

    def consumers(self) -> dict[str, list[Node]]:
        """The nodes that read each node, in order."""
        readers: dict[str, list[Node]] = {node.name: [] for node in self.nodes}
        for node in self.nodes:
            for name in dict.fromkeys(node.inputs):
                readers[name].append(node)
        return readers

    def to_json(self) -> str:
        """The graph as JSON, the same text for the same graph."""
        nodes = [dataclasses.asdict(node) for node in self.nodes]
        named = {"labels": list(self.labels)} if self.labels else {}
        return json.dumps({"nodes": nodes, "outputs": list(self.outputs), **named}, sort_keys=True)

    @staticmethod
    def from_json(text: str) -> Graph:
        """Read what `to_json` wrote.

        Raises:
            InputError: it isn't such a graph.
        """
        try:
            raw = read_json(text)
            nodes = tuple(
                Node(n["name"], n["kind"], tuple(n["inputs"]), dict(n["settings"]), n["source"], n.get("module", ""))
                for n in raw["nodes"]
            )
            graph = Graph(nodes, tuple(raw["outputs"]), tuple(map(str, raw.get("labels", ()))))
            if graph.labels and len(graph.labels) != len(graph.outputs):
                raise ValueError(f"{len(graph.labels)} labels of {len(graph.outputs)} outputs")
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"the stored graph of this run is damaged ({error}).", "run `faq-deploy quantize` again."
            ) from error
        seen: set[str] = set()
        for node in graph.nodes:
            if node.kind not in get_args(Kind) or not seen.issuperset(node.inputs) or node.name in seen:
                raise InputError(
                    f"the stored graph of this run is damaged at node {node.name!r}.",
                    "run `faq-deploy quantize` again.",
                )
            seen.add(node.name)
        return graph


def pointwise(dims: int, groups: int = 1) -> dict[str, Setting]:
    """Settings of a convolution whose kernel has one tap.

    Args:
        dims: axes of positions.
        groups: of channels.
    """
    return {"stride": [1] * dims, "padding": [0] * dims, "dilation": [1] * dims, "groups": groups}
