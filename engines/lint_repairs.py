"""Repairs of a QDQ model that change no value: one for each lint rule that has one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Final

import numpy as np
import onnx

from engines.lint_chains import double_quantization, same_grid
from engines.lint_file import needed_ir_version
from engines.lint_pools import ceil_mode_over_padding
from engines.lint_quantizers import clip_on_codes, explicit_zero_point, misplaced_float_clip, rank_one_scale
from engines.lint_view import Hit
from engines.model_edit import add_constant, drop_orphans, inner_reads, read_names
from engines.qdq_graph import QdqGraph, attributes, constant, read_graph
from engines.signed_codes import signed_codes
from engines.tensor_kinds import element_type, tensor_kinds
from engines.turned_weights import turned_weights

__all__ = ["REPAIRS", "Repair"]

Repair = Callable[[onnx.ModelProto], list[str]]  # changes the model; returns the names of the nodes it repaired

_QDQ: Final = ("QuantizeLinear", "DequantizeLinear")


def lower_ir_version(model: onnx.ModelProto) -> list[str]:
    """The lowest IR version that goes with the operator set."""
    needed = needed_ir_version(model)
    if needed is None or model.ir_version <= needed:
        return []
    model.ir_version = needed
    return ["the file"]


def add_zero_points(model: onnx.ModelProto) -> list[str]:
    """A zero point of 0 in the type that the specification takes: uint8 for Q, that of the codes for DQ."""
    graph = read_graph(model)
    kinds = tensor_kinds(model)
    done = []
    for node in _hit(graph, explicit_zero_point):
        scale = constant(graph, node, 1)
        kind = onnx.TensorProto.UINT8 if node.op_type == "QuantizeLinear" else element_type(kinds, node.input[0])
        given = len(node.input) > 2 and node.input[2]
        if given or scale is None or kind not in (onnx.TensorProto.UINT8, onnx.TensorProto.INT8):
            continue
        zeros = np.zeros(scale.shape, onnx.helper.tensor_dtype_to_np_dtype(kind))
        name = add_constant(model, zeros, f"{node.name or node.output[0]}.zero_point")
        del node.input[2:]
        node.input.append(name)
        done.append(_name(node))
    return done


def make_scalars(model: onnx.ModelProto) -> list[str]:
    """Scales and zero points of activations with rank 0."""
    graph = read_graph(model)
    scalars: dict[str, str] = {}
    done = []
    for node in _hit(graph, rank_one_scale):
        for index in (1, 2):
            value = constant(graph, node, index)
            if value is not None and value.shape == (1,):
                old = node.input[index]
                if old not in scalars:
                    scalars[old] = add_constant(model, value.reshape(()), f"{old}.scalar")
                node.input[index] = scalars[old]
        done.append(_name(node))
    return done


def remove_double_pairs(model: onnx.ModelProto) -> list[str]:
    """The second Q is left out where it gives back the very codes that were dequantized."""
    done = []
    while True:
        graph = read_graph(model)
        kept = {value.name for value in model.graph.output} | inner_reads(model.graph)
        for node in _hit(graph, double_quantization):
            before = graph.producer.get(node.input[0])
            if before is not None and same_grid(graph, before, node) and node.output[0] not in kept:
                for reader in graph.consumers.get(node.output[0], ()):
                    for index, name in enumerate(reader.input):
                        if name == node.output[0]:
                            reader.input[index] = before.input[0]
                model.graph.node.remove(node)
                done.append(_name(node))
                if before.output[0] not in read_names(model.graph):
                    model.graph.node.remove(before)
                break
        else:
            return done


def remove_dead_quantizers(model: onnx.ModelProto) -> list[str]:
    """Quantizers that nobody reads, and those that were read by them alone."""
    done: list[str] = []
    while True:
        read = read_names(model.graph)
        dead = [node for node in model.graph.node if node.op_type in _QDQ and node.output[0] not in read]
        if not dead:
            return done
        for node in dead:
            model.graph.node.remove(node)
            done.append(_name(node))


def remove_idle_clips(model: onnx.ModelProto) -> list[str]:
    """A Clip whose readers are all int8 quantizers that saturate at its bounds, or before, by themselves."""
    graph = read_graph(model)
    outputs = {value.name for value in model.graph.output} | inner_reads(model.graph)
    done = []
    for node in _hit(graph, misplaced_float_clip):
        readers = graph.consumers.get(node.output[0], ())
        if node.output[0] in outputs or not readers or not all(_saturates(graph, node, reader) for reader in readers):
            continue
        for reader in readers:
            reader.input[0] = node.input[0]
        model.graph.node.remove(node)
        done.append(_name(node))
    return done


def clip_constants(model: onnx.ModelProto) -> list[str]:
    """A Clip of a constant's codes: the codes are stored as it would leave them."""
    graph, before = read_graph(model), read_names(model.graph)
    outputs = {value.name for value in model.graph.output} | inner_reads(model.graph)
    done = []
    for node in _hit(graph, clip_on_codes):
        value, bounds = constant(graph, node, 0), [constant(graph, node, index) for index in (1, 2)]
        computed = any(
            bound is None and len(node.input) > index and node.input[index] for index, bound in enumerate(bounds, 1)
        )
        if value is None or computed or node.output[0] in outputs:
            continue
        limits = np.iinfo(value.dtype.name)
        low, high = (limits.min if bounds[0] is None else bounds[0]), (limits.max if bounds[1] is None else bounds[1])
        clipped = value.clip(low, high).astype(value.dtype)
        name = add_constant(model, clipped, f"{node.input[0]}.clipped")
        for reader in graph.consumers.get(node.output[0], ()):
            for index, read in enumerate(reader.input):
                if read == node.output[0]:
                    reader.input[index] = name
        model.graph.node.remove(node)
        done.append(_name(node))
    drop_orphans(model, before)
    return done


def count_without_pads(model: onnx.ModelProto) -> list[str]:
    """count_include_pad off, where there is no padding to count."""
    graph = read_graph(model)
    done = []
    for node in _hit(graph, ceil_mode_over_padding):
        pads = attributes(node).get("pads", ())
        automatic = str(attributes(node).get("auto_pad", "NOTSET")) not in ("NOTSET", "VALID")
        if automatic or (isinstance(pads, tuple) and any(pads)):
            continue
        next(a for a in node.attribute if a.name == "count_include_pad").i = 0
        done.append(_name(node))
    return done


# in the order in which they are tried: what one leaves behind a later one takes away
REPAIRS: Final[Mapping[str, Repair]] = {
    "ir-version": lower_ir_version,
    "explicit-zero-point": add_zero_points,
    "scalar-scale": make_scalars,
    "double-quantization": remove_double_pairs,
    "unsigned-codes": signed_codes,
    "clip-on-codes": clip_constants,
    "transposed-weight": turned_weights,
    "float-clip": remove_idle_clips,
    "pool-ceil-mode": count_without_pads,
    "dead-quantizer": remove_dead_quantizers,
}


def _hit(graph: QdqGraph, rule: Callable[[QdqGraph], Iterator[Hit]]) -> list[onnx.NodeProto]:
    """The nodes that a rule names; another node of the same name may be among them."""
    names = {hit.node for hit in rule(graph)}
    return [node for node in graph.nodes if _name(node) in names]


def _saturates(graph: QdqGraph, clip: onnx.NodeProto, quantize: onnx.NodeProto) -> bool:
    point, scale = constant(graph, quantize, 2), constant(graph, quantize, 1)
    bounds = [constant(graph, clip, index) for index in (1, 2)]
    if quantize.op_type != "QuantizeLinear" or point is None or scale is None or any(b is None for b in bounds):
        return False
    if point.dtype != np.int8 or point.any() or point.size != 1 or scale.size != 1:
        return False
    low, high = (float(b.reshape(())) / float(scale.reshape(())) for b in bounds if b is not None)
    source = graph.producer.get(clip.input[0])
    positive = source is not None and source.op_type == "Relu"
    return high >= 127 and (low <= -128 or (positive and low <= 0))


def _name(node: onnx.NodeProto) -> str:
    return str(node.name or node.output[0])
