"""Where quantizers sit and which grids they use, by target (design: targets table)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Final, Literal

from faq_deploy.graph import TRANSPARENT, WEIGHTED, Graph, Node, Setting

__all__ = ["Cpu", "Target", "inner_layers", "place_quantizers"]

Target = Literal["tensorrt", "onnxruntime", "paper"]
Cpu = Literal["any", "vnni"]

_POOLS: Final = frozenset({"avg_pool", "global_avg_pool", "adaptive_avg_pool"})
# exact on codes alone: they read quantized tensors
_READ_CODES: Final = _POOLS | {"mul", "norm", "prelu", "unary", "resize"}
# their results have more digits than an engine keeps: a quantizer stands right behind them
_MAKE_FLOATS: Final = frozenset({"norm", "prelu", "unary"})
_NON_NEGATIVE: Final = frozenset({"sigmoid", "hardsigmoid", "exp", "softplus", "square", "abs", "sqrt"})
_AFFINE_BITS: Final = 8
_SPECIAL_BITS: Final = 8  # first and last weights, last ReLU, classifier input, signed activations


def place_quantizers(graph: Graph, *, bits: int, target: Target, cpu: Cpu = "any") -> Graph:
    """Insert `quantize` nodes and give every weighted layer its weight bits.

    Args:
        graph: float graph after batch norms were dealt with.
        bits: 8 or 4, of inner weights and ReLU outputs.
        target: decides placement and grids; see `docs/targets.md`.
        cpu: for target `onnxruntime`: `any` keeps int16 pair sums of CPUs without VNNI exact
            (7-bit ReLU codes, 7-bit weights where a signed tensor is read); `vnni` uses all 8 bits.

    Returns:
        A graph in which ReLUs became quantizers that clip at 0, and other tensors got quantizers.

    Source: paper 3.1, 3.2; F1, U7, U8; A17 to A23; S6, S11, S13.
    """
    return _Placement(graph, bits, target, cpu).run()


def inner_layers(graph: Graph) -> list[str]:
    """The weighted layers whose weights are as wide as the net's: not its first, last and affine ones, nor float ones
    and those with bits of their own.

    Args:
        graph: before or after quantizers were placed.
    """
    ends = _ends(graph)
    return [
        node.name
        for node in graph
        if node.kind in WEIGHTED
        and node.name not in ends.first | ends.last
        and not (node.is_float or node.settings.get("affine") or "chosen_bits" in node.settings)
    ]


class _Placement:
    """State of one placement."""

    def __init__(self, graph: Graph, bits: int, target: Target, cpu: Cpu) -> None:
        self.graph, self.bits, self.target, self.cpu = graph, bits, target, cpu
        self.nodes = graph.by_name()
        self.consumers = graph.consumers()
        self.quantized: set[str] = set()  # producers whose output gets a quantizer
        self.group: dict[str, str] = {}  # producers that share one exponent -> name of the group

    def run(self) -> Graph:
        own = [node for node in self.graph if not node.is_float]
        for node in own:
            if node.kind == "relu" and not self._only_output(node):
                self._require(node.name)
            if node.kind in WEIGHTED | _READ_CODES and not node.moves_codes:
                for name in node.inputs:
                    self._require(name)
            if node.kind in _MAKE_FLOATS:
                self._require(node.name)
        if self.target != "paper":
            for node in own:
                if node.kind == "cat" and not self._only_output(node):
                    self._require(node.name)
        for node in own:
            if node.kind in {"add", "sub"}:
                self._place_add(node)
        if self.target == "onnxruntime":
            for node in own:
                if node.kind in WEIGHTED and self._leaves_float(node):
                    self._require(node.name)
        for node in own:
            if node.kind == "cat" and self._is_quantized(node.name):
                self._share(self._producers(node.name))  # its codes are of one grid, also where no layer reads them
        return self._insert()

    def _only_output(self, node: Node) -> bool:
        return not self.consumers[node.name]

    def _require(self, name: str) -> None:
        """Quantize tensor `name`, at the producer that ops which commute with a quantizer lead back to."""
        for producer in self._producers(name):
            self.quantized.add(producer)
        node = self.nodes[name]
        if node.kind == "cat":
            self._share(self._producers(name))

    def _producers(self, name: str) -> list[str]:
        node = self.nodes[name]
        if not node.moves_codes:
            return [name]
        found = [p for i in node.inputs for p in self._producers(i)]
        if node.kind == "cat":
            self._share(found)
        return list(dict.fromkeys(found))

    def _share(self, producers: Iterable[str]) -> None:
        members = list(dict.fromkeys(producers))
        joined = {self.group.get(m, m) for m in members}
        leader = min(joined)
        for key in [k for k in (*self.group, *members) if self.group.get(k, k) in joined]:
            self.group[key] = leader

    def _is_quantized(self, name: str) -> bool:
        return all(p in self.quantized for p in self._producers(name))

    def _place_add(self, node: Node) -> None:
        if self.target == "paper":
            return  # the paper keeps residual branches at accumulator precision (A18)
        if self.target == "onnxruntime":
            for name in node.inputs:
                self._require(name)
            return
        free = [n for n in dict.fromkeys(node.inputs) if not self._is_quantized(n)]
        accumulators = [n for n in free if self.nodes[n].kind in WEIGHTED or self.nodes[n].kind == "batch_norm"]
        for name in free:
            if name not in accumulators[:1]:  # the engine fuses the add with one convolution (U7)
                self._require(name)

    def _leaves_float(self, node: Node) -> bool:
        """Whether some reader other than its ReLU or batch norm sees this layer's accumulator.

        What only moves it to an output is no reader: it leaves as it is.
        """
        readers = self.consumers[node.name] if self._readers(node.name) else []
        return node.name not in self.graph.outputs and any(r.kind not in {"relu", "batch_norm"} for r in readers)

    def _insert(self) -> Graph:
        result: list[Node] = []
        renamed: dict[str, str] = {}
        ends = _ends(self.graph)
        for node in self.graph:
            current = dataclasses.replace(node, inputs=tuple(renamed.get(i, i) for i in node.inputs))
            if node.kind in WEIGHTED and not node.is_float:
                current = current.with_settings(weight_bits=self._weight_bits(node, ends))
            if node.name not in self.quantized:
                result.append(current)
            elif node.kind == "relu":
                result.append(self._quantizer(node, node.name, current.inputs, ends))
            else:
                name = f"{node.name}_quantizer"
                result += [current, self._quantizer(node, name, (node.name,), ends)]
                renamed[node.name] = name
        return Graph(tuple(result), tuple(renamed.get(o, o) for o in self.graph.outputs))

    def _weight_bits(self, node: Node, ends: _Ends) -> int:
        if node.settings.get("affine"):
            bits = _AFFINE_BITS
        else:
            bits = _SPECIAL_BITS if node.name in ends.first | ends.last else self.bits
            chosen = node.settings.get("chosen_bits")
            bits = chosen if isinstance(chosen, int) else bits
        narrow_weights = self.target == "onnxruntime" and self.cpu == "any" and bits == 8
        if narrow_weights and any(self.nodes[p].kind == "input" for p in self._producers(node.inputs[0])):
            return 7  # 2 x 255 x 63 < 2^15: the image keeps its 8 bits (S11)
        return bits

    def _quantizer(self, node: Node, name: str, inputs: tuple[str, ...], ends: _Ends) -> Node:
        signed = not self._non_negative(node.name)
        inner = node.kind == "relu" and node.name not in ends.last_relus
        bits = self.bits if inner and self.bits < 8 else _SPECIAL_BITS
        chosen = node.settings.get("chosen_bits") if node.kind == "relu" else None
        bits = chosen if isinstance(chosen, int) else bits
        if not signed and bits == 8 and self.target != "paper" and self.cpu == "any":
            bits = 7  # 0..127: half of TensorRT's signed INT8 (F1), and exact on CPUs without VNNI (S13)
        if self._portable_signed(node):
            bits = 7 if signed else min(bits, 6)  # -64..63, and 0..63 where it shares a concat with such a tensor
        settings: dict[str, Setting] = {
            "bits": bits,
            "signed": signed,
            "narrow": signed and self.target == "paper",
            "clip": "relu" if node.kind == "relu" else "none",
            "cap": node.settings.get("cap"),
            "group": self.group.get(node.name),
            "pooled_from": None,
        }
        if node.kind in _POOLS:
            settings["pooled_from"] = self._producers(node.inputs[0])[0]
        return Node(name, "quantize", inputs, settings, node.source)

    def _portable_signed(self, node: Node) -> bool:
        """Part of a signed tensor that a convolution reads on a CPU without VNNI (S11)."""
        if self.target != "onnxruntime" or self.cpu != "any" or node.kind == "input":
            return False
        group = self.group.get(node.name)
        members = [m for m in self.quantized if self.group.get(m) == group] if group else [node.name]
        signed = not all(self._non_negative(m) for m in members)
        return signed and any(r.kind in WEIGHTED for m in members for r in self._readers(m))

    def _readers(self, name: str) -> list[Node]:
        found: list[Node] = []
        for reader in self.consumers[name]:
            found += self._readers(reader.name) if reader.moves_codes else [reader]
        return found

    def _non_negative(self, name: str) -> bool:
        node = self.nodes[name]
        if node.kind == "relu":
            return True
        if node.kind == "unary":
            gain = node.settings["gain"]
            assert isinstance(gain, float)
            return node.settings["function"] in _NON_NEGATIVE and gain >= 0
        passes = node.kind in TRANSPARENT | _POOLS | {"add", "mul", "resize"}
        return passes and all(self._non_negative(i) for i in node.inputs)


@dataclasses.dataclass(frozen=True)
class _Ends:
    first: frozenset[str]
    last: frozenset[str]
    last_relus: frozenset[str]


def _ends(graph: Graph) -> _Ends:
    """First and last weighted layers, and the ReLUs between the second-last and the last (A21, A22)."""
    consumers = graph.consumers()
    after: dict[str, bool] = {}  # node -> does a (non-affine) weighted layer come after it
    last_relus: dict[str, bool] = {}
    real = {n.name for n in graph if n.kind in WEIGHTED and not n.settings.get("affine")}
    for node in reversed(graph.nodes):
        after[node.name] = any(r.name in real or after[r.name] for r in consumers[node.name])
    last = {name for name in real if not after[name]}
    for node in reversed(graph.nodes):
        last_relus[node.name] = any(
            r.name in last or (r.kind not in WEIGHTED | {"relu"} and last_relus[r.name]) for r in consumers[node.name]
        )
    before: dict[str, bool] = {}
    for node in graph.nodes:
        before[node.name] = any(i in real or before[i] for i in node.inputs)
    return _Ends(
        frozenset(name for name in real if not before[name]),
        frozenset(last),
        frozenset(n.name for n in graph if n.kind == "relu" and last_relus[n.name]),
    )
