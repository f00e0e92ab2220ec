"""What an engine runs by its own account: the JSON of TensorRT's engine inspector, read back to ONNX nodes."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import onnx

from engines.errors import InputError
from engines.plan_model import EnginePlan, FloatIsland, Share
from engines.predicted_plan import fates, modules_of, predict
from engines.qdq_graph import read_graph

__all__ = ["inspected"]

_ONNX_LAYER: Final = re.compile(r"\[ONNX Layer: ([^\]]+)\]")


@dataclass(frozen=True)
class _Layer:
    name: str
    kind: str
    nodes: tuple[str, ...]
    inputs: tuple[str, ...]  # formats, such as "Thirty-two wide channel vectorized row major Int8 format"
    weights: str  # type of the weights; empty where none is told
    moves_codes: bool  # a reformat that is a quantizer of the graph

    @property
    def is_int8(self) -> bool:
        """Whether it reads codes: all its inputs, and its weights where it tells."""
        return (
            bool(self.inputs) and all(map(_says_int8, self.inputs)) and (not self.weights or _says_int8(self.weights))
        )


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
        TensorRT documentation, "Engine Inspector"; the examples of NVIDIA's TREx show its fields.
    """
    layers = _layers(text)
    home = {node: layer for layer in layers for node in layer.nodes}
    known, predicted = modules_of(model), predict(model)
    edits = {node: island for island in predicted.islands for node in island.nodes}
    counts = {kind: [0, 0] for kind in ("convolutions", "linears", "adds", "concats")}
    islands: list[FloatIsland] = []
    unseen = int4 = 0
    for fate in fates(read_graph(model)):
        name = fate.name
        layer = home.get(name)
        int4 += fate.int4
        if layer is None:
            unseen += 1
            continue
        counts[fate.kind][1] += 1
        if layer.is_int8:
            counts[fate.kind][0] += 1
        elif not fate.int4:
            islands.append(_island(name, layer, known, edits.get(name)))
    return EnginePlan(
        source="inspected",
        convolutions=_share(counts["convolutions"]),
        linears=_share(counts["linears"]),
        adds=_share(counts["adds"]),
        concats=_share(counts["concats"]),
        int4_linears=int4,
        functions=predicted.functions,
        pools=predicted.pools,
        reformats=sum(layer.kind == "Reformat" and not layer.moves_codes for layer in layers),
        unseen=unseen,
        islands=tuple(islands),
    )


def _share(counted: Sequence[int]) -> Share:
    return Share(int8=counted[0], all=counted[1])


def _layers(text: str) -> list[_Layer]:
    try:
        raw = json.loads(text)
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
    nodes = _ONNX_LAYER.findall(str(raw.get("Metadata", ""))) or [part.strip() for part in name.split(" + ")]
    weights = raw.get("Weights", raw.get("ConvWeights"))
    return _Layer(
        name=name,
        kind=kind,
        nodes=tuple(nodes),
        inputs=tuple(_format(tensor) for tensor in _tensors(raw.get("Inputs"))),
        weights=str(weights.get("Type", "")) if isinstance(weights, dict) else "",
        moves_codes=raw.get("Origin") == "QDQ",
    )


def _tensors(raw: object) -> Sequence[Mapping[str, object]]:
    return [tensor for tensor in raw if isinstance(tensor, dict)] if isinstance(raw, list) else []


def _format(tensor: Mapping[str, object]) -> str:
    return " ".join(str(value) for key, value in tensor.items() if "Format" in key or "Datatype" in key)


def _says_int8(text: str) -> bool:
    return "int8" in text.lower()


def _island(name: str, layer: _Layer, known: Mapping[str, str], predicted: FloatIsland | None) -> FloatIsland:
    reads = ", ".join(dict.fromkeys(layer.inputs)) or "no codes"
    return FloatIsland(
        nodes=(name,),
        modules=(known[name],) if known.get(name) else (),
        reason=f"The engine runs it in {layer.kind or 'a layer'} {layer.name!r}, which reads {reads}.",
        edit=predicted.edit if predicted is not None else "None is known: its Q and DQ are as INT8 needs them.",
    )
