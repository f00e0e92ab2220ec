"""What TensorRT would make of a QDQ graph, told from the graph alone: a prediction, for machines without a GPU."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import onnx

from engines.lint_kernels import without_kernel
from engines.lint_layers import float_skip_input, one_sided_layer, transposed_weight, unequal_concat_scales
from engines.lint_view import FUNCTIONS, grids, is_weight, lone_codes
from engines.onnx_metadata import modules_of
from engines.plan_model import EnginePlan, FloatIsland, Share
from engines.qdq_graph import QdqGraph, label, read_graph

__all__ = ["LAYERS", "LayerFate", "fates", "predict"]

LAYERS: Final[Mapping[str, Literal["convolutions", "linears"]]] = {
    "Conv": "convolutions",
    "ConvTranspose": "convolutions",
    "Gemm": "linears",
    "MatMul": "linears",
}
_POOLS: Final = frozenset({"AveragePool", "GlobalAveragePool"})
_QUANTIZE: Final = (
    "neither its input nor its weight is quantized",
    "quantize it: leave it out of --skip and --leaf.",
)


@dataclass(frozen=True)
class LayerFate:
    """What becomes of one layer, add or concat.

    Args:
        node: the ONNX node.
        kind: a field of EnginePlan: convolutions, linears, adds or concats.
        trouble: why it runs in float and what would change that; None where it is in INT8.
        int4: its weight is stored in INT4.
    """

    node: onnx.NodeProto
    kind: Literal["convolutions", "linears", "adds", "concats"]
    trouble: tuple[str, str] | None
    int4: bool = False

    @property
    def name(self) -> str:
        """Of the node; its output's where it has none."""
        return self.node.name or self.node.output[0]


def predict(model: onnx.ModelProto, sm: int | None = None) -> EnginePlan:
    """Predict what an engine of a QDQ graph would run.

    Args:
        model: as handed to the builder, with its weights.
        sm: GPU architecture as one number, such as 86; the rules known so far are the same for all from Turing on.

    Returns:
        The plan, marked as predicted.

    Source:
        TensorRT's documentation on explicit quantization; issues U7 (skip inputs), U8 (concats), U10 (functions).
    """
    graph = read_graph(model)
    found = list(fates(graph))
    islands = _islands(graph, [fate for fate in found if fate.trouble is not None and not fate.int4])
    return EnginePlan(
        source="predicted",
        convolutions=_share(found, "convolutions"),
        linears=_share(found, "linears"),
        adds=_share(found, "adds"),
        concats=_share(found, "concats"),
        int4_linears=sum(fate.int4 for fate in found),
        functions=_functions(graph),
        pools=sum(node.op_type in _POOLS and bool(grids(graph, node.input[0])) for node in graph.nodes),
        reformats=_borders(graph, {fate.name for island in islands for fate in island}),
        islands=tuple(_described(model, island) for island in islands),
    )


def fates(graph: QdqGraph) -> Iterator[LayerFate]:
    """What becomes of each layer with weights, each add and each concat, in graph order."""
    labels = {node.name or node.output[0]: label(node) for node in graph.nodes}
    hits = {
        hit.node: (hit.message.removeprefix(labels[hit.node]).lstrip(": "), hit.remedy)
        for rule in (transposed_weight, one_sided_layer, float_skip_input, unequal_concat_scales)
        for hit in rule(graph)
    }
    in_int8: set[str] = set()
    for node in graph.nodes:
        name, kind = node.name or node.output[0], LAYERS.get(node.op_type)
        if kind is not None:
            fate = _layer(graph, node, kind, hits.get(name))
            if fate is None:
                continue
        elif node.op_type == "Add":
            if lone_codes(graph, *node.input) is not None or any(n in graph.constants for n in node.input):
                continue  # a step of a function or a norm, or a shift by a constant
            fate = LayerFate(node, "adds", _add_trouble(graph, node, in_int8, hits.get(name)))
        elif node.op_type == "Concat" and not all(n in graph.constants for n in node.input):
            fate = LayerFate(node, "concats", _concat_trouble(graph, node, hits.get(name)))
        else:
            continue
        if fate.trouble is None:
            in_int8.update(node.output)
        yield fate


def _layer(
    graph: QdqGraph, node: onnx.NodeProto, kind: Literal["convolutions", "linears"], hit: tuple[str, str] | None
) -> LayerFate | None:
    sides = [bool(grids(graph, name)) for name in node.input[:2]]
    if hit is None and sides != [True, True]:
        constant = node.op_type == "MatMul" and any(name in graph.constants for name in node.input)
        if constant and any(sides):
            return None  # a matrix of zeros and ones, or of weights of a resize: it moves and averages codes
        return LayerFate(node, kind, _QUANTIZE)
    if hit is not None:
        return LayerFate(node, kind, hit)
    if kind == "linears" and any(_is_int4(graph, name) for name in node.input[:2]):
        return LayerFate(node, kind, ("its weight is INT4, which TensorRT multiplies in float", ""), int4=True)
    why = without_kernel(graph, node) if kind == "convolutions" else None
    if why is None:
        return LayerFate(node, kind, None)
    trouble = f"TensorRT has no INT8 kernel for it: {why}"
    return LayerFate(node, kind, (trouble, "change the number of groups: its Q and DQ are right."))


def _is_int4(graph: QdqGraph, name: str) -> bool:
    weights = [graph.constants.get(dequantize.input[0]) for dequantize in grids(graph, name)]
    return any(weight is not None and weight.dtype.name in ("int4", "uint4") for weight in weights)


def _add_trouble(
    graph: QdqGraph, node: onnx.NodeProto, in_int8: set[str], hit: tuple[str, str] | None
) -> tuple[str, str] | None:
    if hit is not None:
        return hit
    quantized = [bool(grids(graph, name)) for name in node.input]
    fused = [name in in_int8 and len(graph.consumers.get(name, ())) == 1 for name in node.input]
    if all(q or f for q, f in zip(quantized, fused, strict=True)) and any(quantized):
        return None
    return "not all of its inputs are quantized", "put Q and DQ on both of its inputs."


def _concat_trouble(graph: QdqGraph, node: onnx.NodeProto, hit: tuple[str, str] | None) -> tuple[str, str] | None:
    if hit is not None:
        return hit
    if all(grids(graph, name) for name in node.input):
        return None
    return "not all of its inputs are quantized", "put Q and DQ with one scale on all of its inputs."


def _functions(graph: QdqGraph) -> int:
    """Quantizers whose tensor is a function of other codes, or a product of two: a gate (U10)."""
    count = 0
    for node in graph.nodes:
        if node.op_type != "QuantizeLinear" or is_weight(graph, node):
            continue
        source = graph.producer.get(node.input[0])
        if source is None or source.op_type not in FUNCTIONS:
            continue
        gate = source.op_type == "Mul" and all(grids(graph, name) for name in source.input)
        count += gate or lone_codes(graph, node.input[0]) is not None
    return count


def _share(found: Sequence[LayerFate], kind: str) -> Share:
    of_kind = [fate for fate in found if fate.kind == kind]
    return Share(int8=sum(fate.trouble is None for fate in of_kind), all=len(of_kind))


def _islands(graph: QdqGraph, floats: Sequence[LayerFate]) -> list[list[LayerFate]]:
    """Float layers that reach each other through tensors that lie on no grid, together."""
    by_output = {name: fate for fate in floats for name in fate.node.output}
    islands: list[list[LayerFate]] = []
    for fate in floats:
        before = {id(found) for name in fate.node.input for found in _before(graph, name, by_output)}
        touched = [island for island in islands if any(id(member) in before for member in island)]
        islands = [island for island in islands if not any(island is other for other in touched)]
        islands.append([member for island in touched for member in island] + [fate])
    return islands


def _before(graph: QdqGraph, name: str, floats: dict[str, LayerFate]) -> list[LayerFate]:
    """The float layers that a tensor comes from without passing a quantizer."""
    found, seen, pending = [], set(), [name]
    while pending:
        tensor = pending.pop()
        if tensor in seen:
            continue
        seen.add(tensor)
        if tensor in floats:
            found.append(floats[tensor])
            continue
        source = graph.producer.get(tensor)
        if source is not None and source.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            pending.extend(filter(None, source.input))
    return found


def _borders(graph: QdqGraph, island: set[str]) -> int:
    """Tensors that change between codes and float at the edge of an island, each once."""
    edges: set[str] = set()
    for node in graph.nodes:
        if (node.name or node.output[0]) not in island:
            continue
        for name in node.input:
            source = graph.producer.get(name)
            if source is not None and source.op_type == "DequantizeLinear" and not is_weight(graph, source):
                edges.add(name)
        edges.update(name for name in node.output if _reaches_quantizer(graph, name, island))
    return len(edges)


def _reaches_quantizer(graph: QdqGraph, tensor: str, island: set[str]) -> bool:
    """Whether a float tensor becomes codes without passing another layer."""
    for reader in graph.consumers.get(tensor, ()):
        if reader.op_type == "QuantizeLinear":
            return True
        inside = reader.op_type in LAYERS or (reader.name or reader.output[0]) in island
        if not inside and any(_reaches_quantizer(graph, name, island) for name in reader.output):
            return True
    return False


def _described(model: onnx.ModelProto, island: Sequence[LayerFate]) -> FloatIsland:
    known = modules_of(model)
    reason, edit = next(fate.trouble for fate in island if fate.trouble is not None)
    return FloatIsland(
        nodes=tuple(fate.name for fate in island),
        modules=tuple(dict.fromkeys(known[fate.name] for fate in island if known.get(fate.name))),
        reason=f"{reason[:1].upper()}{reason[1:].rstrip('.')}.",
        edit=f"{edit[:1].upper()}{edit[1:]}",
    )
