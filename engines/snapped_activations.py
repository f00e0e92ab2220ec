"""Activations of a QDQ file on power-of-two grids: what each quantizer covers, and the grid that covers it next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper

from engines.lint_view import grids
from engines.model_edit import add_constant, inner_reads
from engines.power_of_two import exponent_of, fitting_exponent
from engines.qdq_graph import QdqGraph, attributes, constant, label, opset

__all__ = ["Activation", "Left", "SnapTarget", "activations", "move_activation", "with_equal_concats"]

SnapTarget = Literal["tensorrt", "onnxruntime"]

# between Q and DQ these only move codes
_MOVES: Final = frozenset({"Flatten", "Identity", "MaxPool", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})
_KINDS: Final = (np.dtype(np.int8), np.dtype(np.uint8), np.dtype(np.int16), np.dtype(np.uint16))
_CLIP_OPSET: Final = 11  # before it the bounds were attributes


class Left(Exception):
    """Why something stays as it is: a clause that follows its name and a colon."""


@dataclass(frozen=True)
class Activation:
    """One quantized tensor.

    Attributes:
        quantize: its QuantizeLinear.
        readers: every DequantizeLinear of its codes.
        clips: Clip nodes on the codes that have to go.
        low: the least value that the file's grid holds.
        high: the greatest.
        scales: of the file's grid, flat.
        step_type: of the file's scale.
        kind: of the file's codes.
        point: zero point from now on.
        new_kind: of the codes from now on.
        exponent: of the step from now on.
        is_moved: whether anything of it changes.
    """

    quantize: onnx.NodeProto
    readers: tuple[onnx.NodeProto, ...]
    clips: tuple[onnx.NodeProto, ...]
    low: float
    high: float
    scales: npt.NDArray[np.float64]
    step_type: np.dtype[np.generic]
    kind: np.dtype[np.generic]
    point: int
    new_kind: np.dtype[np.generic]
    exponent: int
    is_moved: bool

    @property
    def name(self) -> str:
        """Of its QuantizeLinear."""
        return str(self.quantize.name or self.quantize.output[0])


def activations(graph: QdqGraph, target: SnapTarget, most_clipped: float) -> tuple[list[Activation], dict[str, str]]:
    """Every quantized activation with its next grid.

    Args:
        graph: the file.
        target: "tensorrt" makes int8 codes around 0 of all of them; "onnxruntime" keeps types and zero points.
        most_clipped: share of its range that a tensor may lose for a step of half the size, from 0 to below 1.

    Returns:
        The activations, and why others stay as they are, by the quantizer's name.
    """
    found, left = [], {}
    kept = {value.name for value in graph.model.graph.output} | inner_reads(graph.model.graph)
    for node in graph.nodes:
        if node.op_type == "QuantizeLinear" and node.input[0] not in graph.constants:
            try:
                found.append(_activation(graph, node, kept, target, most_clipped))
            except Left as reason:
                left[str(node.name or node.output[0])] = str(reason)
    return found, left


def with_equal_concats(graph: QdqGraph, found: Sequence[Activation]) -> list[Activation]:
    """The same activations, those that one Concat joins with the largest of their steps."""
    by_reader = {reader.output[0]: index for index, one in enumerate(found) for reader in one.readers}
    joined = []
    for node in graph.nodes:
        parts = [grids(graph, name) for name in node.input] if node.op_type == "Concat" else []
        members = {by_reader[part.output[0]] for whole in parts for part in whole if part.output[0] in by_reader}
        if parts and all(parts) and len(members) > 1:
            joined.append(members)
    made, changed = list(found), True
    while changed:  # a tensor may lie in several
        changed = False
        for members in joined:
            largest = max(made[index].exponent for index in members)
            for index in members:
                if made[index].exponent < largest:
                    made[index] = replace(made[index], exponent=largest, is_moved=True)
                    changed = True
    return made


def move_activation(model: onnx.ModelProto, one: Activation) -> None:
    """Give a tensor its next grid.

    Args:
        model: is changed; `one` is of its nodes.
        one: the tensor.
    """
    quantizers, name = (one.quantize, *one.readers), one.quantize.output[0]
    scale = add_constant(model, np.asarray(2.0**one.exponent, one.step_type), f"{name}.po2_scale")
    point = add_constant(model, np.asarray(one.point, one.new_kind), f"{name}.po2_zero_point")
    for node in quantizers:
        del node.input[1:]
        node.input.extend([scale, point])
        said = [attribute for attribute in node.attribute if attribute.name not in ("axis", "output_dtype")]
        del node.attribute[:]
        node.attribute.extend(said)
    for node in one.clips:
        for reader in model.graph.node:
            for index, read in enumerate(reader.input):
                if read == node.output[0]:
                    reader.input[index] = node.input[0]
        model.graph.node.remove(node)
    if one.new_kind != one.kind:
        _forget_types(model, name)


def _forget_types(model: onnx.ModelProto, codes: str) -> None:
    """Drop what the file says of the codes' type besides: it is another one now."""
    names, pending = set(), [codes]
    while pending:
        name = pending.pop()
        names.add(name)
        pending += [
            o for node in model.graph.node if node.op_type in _MOVES and name in node.input for o in node.output
        ]
    for entry in [entry for entry in model.graph.value_info if entry.name in names]:
        model.graph.value_info.remove(entry)


def _activation(
    graph: QdqGraph, node: onnx.NodeProto, kept: set[str], target: SnapTarget, most_clipped: float
) -> Activation:
    scale, kind, point = _grid(graph, node)
    readers, clips = _readers(graph, node.output[0], kept)
    for reader in readers:
        other, other_kind, other_point = _grid(graph, reader, kind)
        same = other.shape == scale.shape and np.array_equal(other, scale) and np.array_equal(other_point, point)
        if not same or other_kind != kind:
            raise Left(f"{label(reader)} reads its codes on another grid")
    if kind not in _KINDS or (target == "tensorrt" and kind.itemsize > 1):
        raise Left(f"its codes are {kind}")
    lowest, highest = _code_limits(graph, kind, clips)
    low, high = float(((lowest - point) * scale).min()), float(((highest - point) * scale).max())
    if high <= 0:
        raise Left("it holds no positive value")
    single = point.size == 1 or bool((point == point[0]).all())
    new_kind = np.dtype(np.int8) if target == "tensorrt" else kind
    new_point = 0 if target == "tensorrt" else int(point[0]) if single else _neutral_point(kind, low)
    limits = np.iinfo(new_kind.name) if target == "tensorrt" or not clips else _Limits(lowest, highest)
    share = 1 - most_clipped
    fitting = fitting_exponent(high * share, int(limits.max) - new_point)
    if low < 0:
        fitting = max(fitting, fitting_exponent(-low * share, new_point - int(limits.min)))
    exponent = exponent_of(float(scale[0])) if scale.size == 1 else None
    is_same = exponent is not None and new_kind == kind and single and new_point == int(point[0])
    is_same = is_same and len(node.input) > 2 and (target != "tensorrt" or not clips)
    if is_same and exponent is not None:
        fitting = exponent
    return Activation(
        quantize=node,
        readers=readers,
        clips=clips if target == "tensorrt" else (),
        low=low,
        high=high,
        scales=scale,
        step_type=graph.constants[node.input[1]].dtype,
        kind=kind,
        point=new_point,
        new_kind=new_kind,
        exponent=fitting,
        is_moved=not is_same,
    )


@dataclass(frozen=True)
class _Limits:
    min: int
    max: int


def _grid(
    graph: QdqGraph, node: onnx.NodeProto, codes: np.dtype[np.generic] | None = None
) -> tuple[npt.NDArray[np.float64], np.dtype[np.generic], npt.NDArray[np.int64]]:
    """Scales, type of the codes, and zero points, one for each scale."""
    scale, point = constant(graph, node, 1), constant(graph, node, 2)
    if scale is None or (point is None and len(node.input) > 2 and node.input[2]):
        raise Left("its scale is computed")
    flat = scale.astype(np.float64).reshape(-1)
    if not (np.isfinite(flat) & (flat > 0)).all():
        raise Left(f"its scale is {flat[~(np.isfinite(flat) & (flat > 0))][0]:g}")
    if attributes(node).get("block_size"):
        raise Left("it has a scale for each block")
    if point is None:
        said = attributes(node).get("output_dtype")
        written = helper.tensor_dtype_to_np_dtype(said) if isinstance(said, int) and said else np.dtype(np.uint8)
        return flat, codes or written, np.zeros(flat.size, np.int64)
    if point.dtype.kind not in "iu":
        raise Left(f"its codes are {point.dtype}")
    return flat, point.dtype, np.broadcast_to(point.astype(np.int64).reshape(-1), flat.shape)


def _readers(
    graph: QdqGraph, codes: str, kept: set[str]
) -> tuple[tuple[onnx.NodeProto, ...], tuple[onnx.NodeProto, ...]]:
    """All DequantizeLinear nodes that the codes reach, and the Clips between."""
    readers: list[onnx.NodeProto] = []
    clips: list[onnx.NodeProto] = []
    pending = [codes]
    while pending:
        name = pending.pop()
        if name in kept:
            raise Left("its codes are an output of the file")
        for node in graph.consumers.get(name, ()):
            if node.op_type == "DequantizeLinear":
                readers.append(node)
            elif node.op_type in _MOVES or node.op_type == "Clip":
                pending += node.output
                clips += [node] if node.op_type == "Clip" else []
            else:
                raise Left(f"{label(node)} reads its codes")
    return tuple(readers), tuple(clips)


def _code_limits(graph: QdqGraph, kind: np.dtype[np.generic], clips: Sequence[onnx.NodeProto]) -> tuple[int, int]:
    limits = np.iinfo(kind.name)
    low, high = int(limits.min), int(limits.max)
    for node in clips:
        bounds = [constant(graph, node, index) for index in (1, 2)]
        if opset(graph.model) < _CLIP_OPSET or any(b is None or b.size != 1 for b in bounds):
            raise Left(f"{label(node)} clips its codes at bounds that are computed")
        least, greatest = (int(bound.reshape(())) for bound in bounds if bound is not None)
        low, high = max(low, least), min(high, greatest)
    return low, high


def _neutral_point(kind: np.dtype[np.generic], low: float) -> int:
    limits = np.iinfo(kind.name)
    return int(limits.min) if low >= 0 else (int(limits.min) + int(limits.max) + 1) // 2
