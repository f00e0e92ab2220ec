"""uint8 codes with the zero point 128 as int8 codes with 0: every code moves by 128, and no value changes."""

from __future__ import annotations

from typing import Final

import numpy as np
import onnx

from engines.model_edit import add_constant, drop_orphans, inner_reads, read_names
from engines.qdq_graph import Constant, QdqGraph, constant, read_graph

__all__ = ["signed_codes"]

_MIDDLE: Final = 128


def signed_codes(model: onnx.ModelProto) -> list[str]:
    """Store as int8 what can be.

    Args:
        model: is changed.

    Returns:
        The names of the quantizers that were changed. Codes that something else than quantizers reads, that are an
        output, or that have another zero point stay.
    """
    graph, before = read_graph(model), read_names(model.graph)
    kept = {value.name for value in model.graph.output} | inner_reads(model.graph)
    done = []
    for codes in dict.fromkeys(node.input[0] for node in graph.nodes if node.op_type == "DequantizeLinear"):
        readers = graph.consumers[codes]
        maker, stored = graph.producer.get(codes), graph.constants.get(codes)
        quantizers = [*readers, *([maker] if maker is not None else [])]
        if codes in kept or (maker is None and stored is None) or not _all_in_the_middle(graph, maker, readers):
            continue
        if stored is not None:
            name = add_constant(model, _signed(stored), f"{codes}.signed")
            for node in readers:
                node.input[0] = name
        for node in quantizers:
            point = constant(graph, node, 2)
            assert point is not None
            node.input[2] = add_constant(model, np.zeros(point.shape, np.int8), f"{node.input[2]}.signed")
            done.append(str(node.name or node.output[0]))
        _forget(model, codes)
    drop_orphans(model, before)
    return done


def _all_in_the_middle(graph: QdqGraph, maker: onnx.NodeProto | None, readers: tuple[onnx.NodeProto, ...]) -> bool:
    if maker is not None and maker.op_type != "QuantizeLinear":
        return False
    if any(node.op_type != "DequantizeLinear" or list(node.input).count(node.input[0]) > 1 for node in readers):
        return False
    points = [constant(graph, node, 2) for node in (*readers, *([maker] if maker is not None else []))]
    return all(p is not None and p.dtype == np.uint8 and bool((p == _MIDDLE).all()) for p in points)


def _signed(codes: Constant) -> Constant:
    return (codes.astype(np.int16) - _MIDDLE).astype(np.int8)


def _forget(model: onnx.ModelProto, tensor: str) -> None:
    """Drop what the file says of a tensor's type besides."""
    for entry in [entry for entry in model.graph.value_info if entry.name == tensor]:
        model.graph.value_info.remove(entry)
