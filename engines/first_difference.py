"""Where a computation leaves the expected one: the first tensor in the order of the graph, and the layer before it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx

from engines.bundle_samples import Expected, code_hash, constant_hashes
from engines.opened_bundle import OpenedBundle
from engines.operators import WEIGHTED
from engines.parity import IntArray, compare_codes, logits_of_bits
from engines.qdq_graph import QdqGraph
from engines.runner import CodeRunner, FloatArray

__all__ = ["LOGITS", "Difference", "changed_constant", "earlier", "first_difference", "layer_before", "layer_reading"]

LOGITS: Final = "logits"

_NO_LAYER: Final = frozenset({"QuantizeLinear", "DequantizeLinear", "Cast", "Identity"})


@dataclass(frozen=True)
class Difference:
    """The first difference.

    Attributes:
        tensor: the quantized tensor, or `logits`, or a weight of the file.
        layer: the ONNX node that computes or reads it: the nearest one with weights, where there is one.
        module: that layer's path in the user's model; empty where it is not known.
        image: the first sample that shows it; None for a weight.
        count: codes of that tensor in image 0 that differ; None where that isn't known.
        compared: how many it has.
        largest: largest difference there, in codes.
        channel: where the largest is, on the axis of the channels.
    """

    tensor: str
    layer: str
    module: str = ""
    image: int | None = None
    count: int | None = None
    compared: int | None = None
    largest: int | None = None
    channel: int | None = None

    def __str__(self) -> str:
        """The place, and how much, in words."""
        module = f" (module {self.module})" if self.module and self.module != self.layer else ""
        if self.image is None:
            return f"{self.layer}{module}: {self.tensor} is not the one that was bundled"
        shown = f"{self.layer}{module}: {self.tensor} differs from image {self.image} on"
        if not self.count:
            return shown
        channel = "" if self.channel is None else f", in channel {self.channel}"
        return f"{shown}; {self.count:,} of its {self.compared:,} codes in image 0 by up to {self.largest}{channel}"


def first_difference(
    bundle: OpenedBundle, runner: CodeRunner, images: FloatArray, start: int = 0
) -> tuple[Difference | None, int]:
    """Compare a runner's codes and logits on some samples.

    Args:
        bundle: what is expected.
        runner: of its model.
        images: consecutive samples as network input, float32 (N, C, H, W); N at most a few, to keep memory small.
        start: the number of the first one.

    Returns:
        The first tensor in graph order that differs in any of them, and how many codes were compared.
    """
    expected = bundle.samples.expected
    found = runner.codes(images)
    compared = sum(found[name].size for name in expected.tensors)
    for number, name in enumerate(expected.tensors):
        for offset, codes in enumerate(found[name]):
            if code_hash(codes) != expected.codes[start + offset, number].tobytes():
                return _located(bundle, name, start + offset, found[name] if start == 0 else None), compared
    logits = logits_of_bits(found[LOGITS])
    unequal = (logits != expected.logits[start : start + len(images)]).any(axis=1)
    if unequal.any():
        return _located(bundle, LOGITS, start + int(unequal.argmax()), None), compared
    return None, compared


def earlier(bundle: OpenedBundle, a: Difference | None, b: Difference | None) -> Difference | None:
    """Of two differences, the one that comes first in the graph; the first given where both are in one tensor."""
    order = (*bundle.samples.expected.tensors, LOGITS)
    return min((d for d in (a, b) if d is not None), key=lambda d: order.index(d.tensor), default=None)


def changed_constant(bundle: OpenedBundle) -> Difference | None:
    """The first weight, in the order of the nodes, that is not the one that was bundled."""
    expected, found = bundle.samples.expected.constants, constant_hashes(bundle.graph)
    changed = {name for name in {**expected, **found} if expected.get(name) != found.get(name)}
    for node in bundle.graph.nodes:
        for name in node.input:
            if name in changed:
                layer = layer_reading(bundle.graph, node)
                return Difference(name, layer, bundle.modules.get(layer, ""))
    if changed:  # nothing reads it: it is of no layer
        return Difference(min(changed), min(changed))
    return None


def layer_before(graph: QdqGraph, tensor: str) -> str:
    """The node that makes a tensor: between it and the quantized tensors before it, the last one with weights.

    Args:
        graph: of the file.
        tensor: quantized codes, or the logits.

    Returns:
        The node's name; where no node there has weights, that of the last one that computes.
    """
    open_names, seen, first = [tensor], {tensor}, ""
    while open_names:
        node = graph.producer.get(open_names.pop(0))
        if node is None:
            continue
        if node.op_type in WEIGHTED:
            return str(node.name)
        if node.op_type not in _NO_LAYER:
            first = first or str(node.name)
        for name in node.input:
            if name and name not in seen and name not in graph.code_names:
                seen.add(name)
                open_names.append(name)
    return first or tensor


def layer_reading(graph: QdqGraph, node: onnx.NodeProto) -> str:
    """The layer that a constant goes to: past its dequantizer.

    Args:
        graph: of the file.
        node: that reads the constant.

    Returns:
        The layer's name. A graph has no cycles, so this ends.
    """
    while node.op_type in _NO_LAYER and graph.consumers.get(node.output[0]):
        node = graph.consumers[node.output[0]][0]
    return str(node.name)


def _located(bundle: OpenedBundle, tensor: str, image: int, codes: IntArray | None) -> Difference:
    """The difference with its layer and, where image 0 is at hand, its size there."""
    layer = layer_before(bundle.graph, bundle.graph.logits_name if tensor == LOGITS else tensor)
    place = Difference(tensor, layer, bundle.modules.get(layer, ""), image)
    if codes is None:
        return place
    wanted = _codes_of_first(bundle.samples.expected, tensor)
    if wanted.shape != codes[:1].shape:
        return place
    first = compare_codes({tensor: wanted}, {tensor: codes[:1]}, [tensor]).first
    if first is None:
        return place
    return Difference(tensor, layer, place.module, image, first.count, wanted.size, first.largest, first.channel)


def _codes_of_first(expected: Expected, tensor: str) -> IntArray:
    return expected.first_codes[tensor].astype(np.int64)[np.newaxis]
