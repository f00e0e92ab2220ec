"""`snap`: the scales of another tool's QDQ file on powers of two, and everything else as it was."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import onnx
from onnx import helper

from engines.errors import CannotRunHere, InputError
from engines.files import write_atomic
from engines.lint import Finding, lint
from engines.lint_fix import fixed_model
from engines.lint_repairs import remove_dead_quantizers
from engines.lint_rules import RULES
from engines.lint_view import is_weight, quantizers
from engines.model_edit import add_constant, drop_orphans, free_name, read_names
from engines.not_negative import never_negative
from engines.qdq_graph import QdqGraph, constant, load_model, opset, read_graph
from engines.snapped_activations import Activation, SnapTarget, activations, move_activation, with_equal_concats
from engines.snapped_biases import move_biases
from engines.snapped_weights import Weight, bias_readers, move_weight, weights

__all__ = ["Moved", "SnapTarget", "Snapped", "snap_file", "snapped_model"]

_SIX: Final = 6.0  # where ReLU6 ends; tools let the end of the codes stand for it
_NEARLY: Final = 1e-3
_CLIP_OPSET: Final = 11
_OPERATORS: Final = "operator-format"


@dataclass(frozen=True)
class Moved:
    """A tensor that lies on another grid now.

    Attributes:
        node: its QuantizeLinear, or the DequantizeLinear of a weight.
        scales: of the file, one for each channel or one in all.
        exponents: the steps are 2 to these.
        source: "activation"; of a weight "floats" or "codes", whatever it was rounded from.
    """

    node: str
    scales: tuple[float, ...]
    exponents: tuple[int, ...]
    source: str


@dataclass(frozen=True)
class Snapped:
    """What became of a file.

    Attributes:
        model: the new one.
        target: for which engine.
        kept: quantized tensors that lay on powers of two already.
        activations: those that moved.
        weights: those that moved.
        biases: largest change of a bias by layer, of those that moved.
        clips: quantizers that got a Relu or Clip written out, which the end of their codes had stood for.
        coarser: layers with larger weight steps than their weights ask for, since their bias is so large.
        left: why others stay as they are.
        repaired: what `lint --fix` repaired besides, by rule.
        findings: what `lint` says of the result.
    """

    model: onnx.ModelProto
    target: SnapTarget
    kept: int
    activations: tuple[Moved, ...]
    weights: tuple[Moved, ...]
    biases: Mapping[str, float]
    clips: Mapping[str, str]
    coarser: tuple[str, ...]
    left: Mapping[str, str]
    repaired: Mapping[str, tuple[str, ...]]
    findings: tuple[Finding, ...]


def snap_file(path: Path, output: Path, target: SnapTarget = "tensorrt", most_clipped: float = 0.0) -> Snapped:
    """Move a file's scales to powers of two and write the result under another name.

    Args:
        path: the file; it stays as it is.
        output: written whole or not at all, with all weights inside.
        target: "tensorrt" makes int8 codes around 0 of all tensors; "onnxruntime" keeps types and zero points.
        most_clipped: as for `snapped_model`.

    Returns:
        What moved, and what did not.

    Raises:
        InputError: the two names are one; the file can't be read, or holds no quantizers.
    """
    if output.exists() and path.exists() and output.samefile(path):
        raise InputError(f"{output} is the file itself.", "name another file with -o: the original stays as it is.")
    snapped = snapped_model(load_model(path, any_inputs=True), target, most_clipped)
    try:
        content = snapped.model.SerializeToString()
    except ValueError as error:  # protobuf holds 2 GiB
        raise InputError(f"{path} is too large to be written as one file.", "snap a part of the network.") from error
    write_atomic(output, content)
    return snapped


def snapped_model(model: onnx.ModelProto, target: SnapTarget = "tensorrt", most_clipped: float = 0.0) -> Snapped:
    """Move a model's scales to powers of two.

    Weights are rounded anew, from the floats before their quantizer where the model holds them, else from codes times
    scale. The next step of an activation is the smallest that covers what the file's grid covered, less what may be
    clipped. Biases are rounded to the steps of the sums. What lies on powers of two stays as it is.

    Args:
        model: with its weights, INT4 unpacked; it stays as it is.
        target: as for `snap_file`.
        most_clipped: share of the range of an activation that may be cut off for a step of half the size, from 0 to
            below 1.

    Raises:
        InputError: it holds no quantizers, is written in operators on codes, names no operator set, or keeps weights
            outside its folder.
    """
    before = read_graph(model)
    _require_readable(before)
    made = onnx.ModelProto()
    made.CopyFrom(model)
    read = read_names(made.graph)
    graph = read_graph(made)
    found, left = activations(graph, target, most_clipped)
    moving = [one for one in with_equal_concats(graph, found) if one.is_moved]
    clips = {one.name: kind for one in moving if (kind := _stood_for(graph, one))}
    held, fixed = weights(graph, target)
    for one in moving:
        move_activation(made, one)
        if one.name in clips:
            _write_out(made, one, clips[one.name])
    for weight in held:
        move_weight(made, weight)
    biases, coarser, unrounded = move_biases(made, before, target)
    remove_dead_quantizers(made)
    drop_orphans(made, read)
    repaired: dict[str, tuple[str, ...]] = {}
    # nothing can be proved where onnxruntime does not run it: the findings are left, and said
    with contextlib.suppress(CannotRunHere, InputError):
        made, repaired, _ = fixed_model(made, target)
    return Snapped(
        model=made,
        target=target,
        kept=_count(before) - len(moving) - len(held) - len(left) - len(fixed),
        activations=tuple(_moved_activation(one) for one in moving),
        weights=tuple(_moved_weight(weight) for weight in held),
        biases=biases,
        clips=clips,
        coarser=tuple(coarser),
        left={**left, **fixed, **unrounded},
        repaired=repaired,
        findings=tuple(lint(made, target)),
    )


def _require_readable(graph: QdqGraph) -> None:
    for rule in RULES.values():
        if rule.sees == "file" and (unread := next(rule.check(graph), None)) is not None:
            raise InputError(f"The file can't be snapped: {unread.message}", unread.remedy)
    operators = next(RULES[_OPERATORS].check(graph), None)
    if operators is not None:
        raise InputError(f"The file is not in QDQ format: {operators.message}", operators.remedy)
    if next(quantizers(graph), None) is None:
        raise InputError(
            "The file holds no QuantizeLinear and no DequantizeLinear.",
            "quantize it first, with `faq-deploy quantize` or another tool.",
        )


def _count(graph: QdqGraph) -> int:
    """Quantized activations and weights."""
    biases = bias_readers(graph)
    inputs = [node for node in graph.nodes if node.op_type == "QuantizeLinear" and node.input[0] not in graph.constants]
    constants = [
        node
        for node in graph.nodes
        if node.op_type == "DequantizeLinear" and is_weight(graph, node) and node.output[0] not in biases
    ]
    return len(inputs) + len(constants)


def _stood_for(graph: QdqGraph, one: Activation) -> str:
    """The function that the ends of the old codes stood for and those of the new ones don't: "Relu", "Clip", or ""."""
    tensor = one.quantize.input[0]
    if one.low < 0 or (one.new_kind == one.kind and one.point == _old_point(graph, one)):
        return ""
    maker = graph.producer.get(tensor)
    if abs(one.high - _SIX) < _NEARLY * _SIX and opset(graph.model) >= _CLIP_OPSET:
        return "" if maker is not None and maker.op_type == "Clip" else "Clip"
    return "" if never_negative(graph, tensor) else "Relu"


def _old_point(graph: QdqGraph, one: Activation) -> int:
    point = constant(graph, one.quantize, 2)
    return 0 if point is None else int(point.reshape(-1)[0])


def _write_out(model: onnx.ModelProto, one: Activation, kind: str) -> None:
    source, name = one.quantize.input[0], one.name
    made = free_name(model, f"{source}.{kind.lower()}")
    bounds = []
    if kind == "Clip":
        bounds = [
            add_constant(model, np.asarray(v, one.step_type), f"{name}.{n}") for n, v in (("low", 0), ("high", _SIX))
        ]
    node = helper.make_node(kind, [source, *bounds], [made], made)
    at = next(index for index, other in enumerate(model.graph.node) if other.output[:1] == one.quantize.output[:1])
    one.quantize.input[0] = made
    model.graph.node.insert(at, node)


def _moved_activation(one: Activation) -> Moved:
    return Moved(one.name, tuple(float(scale) for scale in one.scales), (one.exponent,), "activation")


def _moved_weight(one: Weight) -> Moved:
    return Moved(one.name, tuple(float(scale) for scale in one.scales), one.exponents, one.source)
