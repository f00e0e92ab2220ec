"""What an engine runs by its own account: the JSON of TensorRT's engine inspector, read back to ONNX nodes."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import onnx

from engines.errors import InputError
from engines.json_text import read_json
from engines.onnx_metadata import modules_of
from engines.plan_model import EnginePlan, FloatIsland, Share
from engines.predicted_plan import fates, predict
from engines.qdq_graph import read_graph

__all__ = ["inspected"]

_ONNX_LAYER: Final = re.compile(r"\[ONNX Layer: ([^\]]+)\]")
_FUSED: Final = re.compile(r" \+ | \|\| ")  # one after the other, and side by side
_INT8: Final = re.compile(r"\bint8\b", re.IGNORECASE)
_INT8_TACTIC: Final = re.compile(r"i8i32|int8")  # sm80_xmma_gemm_i8f32_i8i32_f32_..., ampere_fp32_icudnn_int8x4_...
_WEIGHTED: Final = frozenset({"convolutions", "linears"})


@dataclass(frozen=True)
class _Layer:
    name: str
    kind: str
    nodes: tuple[str, ...]
    reads: tuple[str, ...]  # names of tensors
    inputs: tuple[str, ...]  # formats, such as "Thirty-two wide channel vectorized row major Int8 format"
    weights: str  # type of the weights; empty where none is told
    tactic: str
    is_quantizer: bool  # a reformat that is a QuantizeLinear or DequantizeLinear of the graph

    @property
    def is_reformat(self) -> bool:
        """Whether it only copies."""
        return self.kind == "Reformat"

    def is_int8(self, kind: str) -> bool:
        """Whether it runs a layer with weights, an add or a concat in INT8.

        A convolution that adds a skip input reads that too: where the skip is float, it multiplies codes and adds in
        float, so that the convolution is in INT8 and the add isn't.
        """
        if kind in _WEIGHTED and self.weights:
            return _says_int8(self.weights) and any(map(_says_int8, self.inputs))
        if kind in _WEIGHTED and _INT8_TACTIC.search(self.tactic):
            return True
        return bool(self.inputs) and all(map(_says_int8, self.inputs))


def inspected(text: str, model: onnx.ModelProto) -> EnginePlan:
    """Read the engine inspector's account of an engine.

    Args:
        text: what IEngineInspector.get_engine_information gave in JSON, of an engine built with detailed profiling
            verbosity.
        model: the network that the engine was built from.

    Returns:
        The plan, marked as inspected. Layers that the account does not name (those inside a compiled block) are counted
        as unseen, neither INT8 nor float.

    Raises:
        InputError: no such JSON, or an account without details.

    Source:
        TensorRT documentation, "Engine Inspector" and "Migrating IEngineInspector Usage from TensorRT 10.x to 11.x";
        its fields as in the examples of NVIDIA's TREx (TensorRT 8) and TensorRT issue 4020 (TensorRT 10).
    """
    layers = _layers(text)
    graph = read_graph(model)
    known, predicted = modules_of(model), predict(model)
    edits = {node: island for island in predicted.islands for node in island.nodes}
    counts = {kind: [0, 0] for kind in ("convolutions", "linears", "adds", "concats")}
    islands: list[FloatIsland] = []
    unseen = int4 = 0
    homes = _homes(layers)
    for fate in fates(graph):
        name = fate.name
        found = homes.get(name, [])
        int4 += fate.int4
        if not found:
            unseen += 1
            continue
        counts[fate.kind][1] += 1
        floats = [layer for layer in found if not layer.is_int8(fate.kind)]
        if not floats:
            counts[fate.kind][0] += 1
        elif not fate.int4:
            islands.append(_island(name, floats[0], known, edits.get(name)))
    fed = {value.name for value in model.graph.input}
    return EnginePlan(
        source="inspected",
        convolutions=_share(counts["convolutions"]),
        linears=_share(counts["linears"]),
        adds=_share(counts["adds"]),
        concats=_share(counts["concats"]),
        int4_linears=int4,
        functions=predicted.functions,
        pools=predicted.pools,
        reformats=sum(_is_copy(layer, fed) for layer in layers),
        unseen=unseen,
        islands=tuple(islands),
    )


def _homes(layers: Sequence[_Layer]) -> dict[str, list[_Layer]]:
    """The engine's layers that run each ONNX node; copies only where nothing else runs it, as for a concat."""
    found: dict[str, list[_Layer]] = {}
    for copies in (False, True):
        taken = frozenset(found)
        for layer in layers:
            for node in layer.nodes:
                if layer.is_reformat is copies and node not in taken:
                    found.setdefault(node, []).append(layer)
    return found


def _is_copy(layer: _Layer, fed: Collection[str]) -> bool:
    """Whether a layer is a reformat, other than the quantization of the network's input."""
    return layer.is_reformat and not (layer.is_quantizer and any(name in fed for name in layer.reads))


def _share(counted: Sequence[int]) -> Share:
    return Share(int8=counted[0], all=counted[1])


def _layers(text: str) -> list[_Layer]:
    try:
        raw = read_json(text)
    except ValueError as error:
        raise InputError(f"the engine inspector's answer is not JSON: {error}.", "build the engine again.") from error
    found = raw.get("Layers") if isinstance(raw, dict) else None
    if not isinstance(found, list) or any(not isinstance(layer, dict) for layer in found):
        raise InputError(
            "the engine inspector names layers without their details.",
            "build the engine again with this version of faq-deploy, which asks for them.",
        )
    return [_layer(layer) for layer in found]


def _layer(raw: Mapping[str, object]) -> _Layer:
    name, kind = str(raw.get("Name", "")), str(raw.get("LayerType", ""))
    nodes = _ONNX_LAYER.findall(str(raw.get("Metadata", "")))
    if not nodes and kind != "Reformat":  # TensorRT 8; a reformat's name is that of the layer that it copies for
        nodes = _FUSED.split(name)
    weights = raw.get("Weights", raw.get("ConvWeights"))
    inputs = _tensors(raw.get("Inputs"))
    return _Layer(
        name=name,
        kind=kind,
        nodes=tuple(dict.fromkeys(nodes)),
        reads=tuple(str(tensor.get("Name", "")) for tensor in inputs),
        inputs=tuple(_format(tensor) for tensor in inputs),
        weights=str(weights.get("Type", "")) if isinstance(weights, dict) else "",
        tactic=str(raw.get("TacticName", "")),
        is_quantizer=raw.get("Origin") == "QDQ",
    )


def _tensors(raw: object) -> Sequence[Mapping[str, object]]:
    return [tensor for tensor in raw if isinstance(tensor, dict)] if isinstance(raw, list) else []


def _format(tensor: Mapping[str, object]) -> str:
    """Layout and type: one field "Format/Datatype" up to TensorRT 10, "Format" and "DataType" since 11."""
    return " ".join(str(value) for key, value in tensor.items() if "format" in key.lower() or "datatype" in key.lower())


def _says_int8(text: str) -> bool:
    return _INT8.search(text) is not None


def _island(name: str, layer: _Layer, known: Mapping[str, str], predicted: FloatIsland | None) -> FloatIsland:
    reads = ", ".join(dict.fromkeys(layer.inputs)) or "no codes"
    return FloatIsland(
        nodes=(name,),
        modules=(known[name],) if known.get(name) else (),
        reason=f"The engine runs it in {layer.kind or 'a layer'} {layer.name!r}, which reads {reads}.",
        edit=predicted.edit if predicted is not None else "None is known: its Q and DQ are as INT8 needs them.",
    )
