"""What differs between two QDQ files that should be one: constants, by the layer that reads them, and the facts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx

from engines.first_difference import layer_before, layer_reading
from engines.preprocess import Preprocessing
from engines.qdq_graph import Constant, QdqGraph

__all__ = ["ConstantChange", "changed_constants", "changed_facts"]

Role = Literal["codes", "scale", "zero point", "values"]


@dataclass(frozen=True)
class ConstantChange:
    """A constant of a file that is another one than expected.

    Attributes:
        tensor: its name in the file.
        layer: the ONNX node that it goes to, past its dequantizer; of an activation's grid, the node that makes it.
        module: that layer's path in the user's model; empty where it is not known.
        role: codes (integers), scale or zero point of a quantizer, or values (a float bias, a shape).
        count: how many of its elements differ.
        size: how many it has.
        largest: the largest difference.
        channel: where that is, on the tensor's first axis; None for a scalar.
        factor: of a scale: by what it was multiplied, where that is one number.
    """

    tensor: str
    layer: str
    module: str
    role: Role
    count: int
    size: int
    largest: float
    channel: int | None
    factor: float | None = None

    def __str__(self) -> str:
        """What was changed, in words."""
        module = f" (module {self.module})" if self.module and self.module != self.layer else ""
        what = {"codes": "code", "scale": "scale", "zero point": "zero point", "values": "value"}[self.role]
        many = (
            f"{self.count:,} of {self.size:,} {what}s of {self.tensor}"
            if self.size > 1
            else f"the {what} {self.tensor}"
        )
        verb = "differ" if self.count > 1 else "differs"
        everywhere = self.size == 1 or (self.factor is not None and self.count == self.size)
        place = "" if self.channel is None or everywhere else f", in channel {self.channel}"
        up_to = "up to " if self.count > 1 else ""
        by = f"by a factor of {self.factor:g}" if self.factor is not None else f"by {up_to}{self.largest:g}"
        return f"{self.layer}{module}: {many} {verb} {by}{place}"


def changed_constants(
    expected: QdqGraph, found: QdqGraph, modules: Mapping[str, str] | None = None
) -> tuple[ConstantChange, ...]:
    """The constants that two files have in common by name, and that are not the same.

    Args:
        expected: the graph as it should be.
        found: the graph in question.
        modules: module path in the user's model by ONNX node name.

    Returns:
        One a constant, in the order of the nodes that read them; what only one of the files holds can't be compared,
        and is left out.
    """
    paths = modules or {}
    seen: set[str] = set()
    changes = []
    for node in found.nodes:
        for index, name in enumerate(node.input):
            if name in seen or name not in found.constants or name not in expected.constants:
                continue
            seen.add(name)
            change = _compared(expected.constants[name], found.constants[name])
            if change is not None:
                layer = _layer(found, node)
                count, largest, channel, factor = change
                role = _role(node, index, found.constants[name])
                factor = factor if role == "scale" else None
                size = int(found.constants[name].size)
                changes.append(
                    ConstantChange(name, layer, paths.get(layer, ""), role, count, size, largest, channel, factor)
                )
    return tuple(changes)


def changed_facts(expected: Mapping[str, object], found: Mapping[str, object]) -> Iterator[str]:
    """Sentences about preprocessing and classes that a file's metadata gives otherwise than expected.

    Args:
        expected: `preprocessing` and `classes` as JSON values.
        found: the metadata of the file; what it leaves out is no difference.

    Yields:
        A clause each, such as `mean and std are swapped: mean 0.5, not 0.25`.
    """
    before, after = expected.get("preprocessing"), found.get("preprocessing")
    if isinstance(before, dict) and isinstance(after, dict) and before != after:
        yield from _preprocessing(before, after)
    names, given = expected.get("classes"), found.get("classes")
    if isinstance(names, list | tuple) and isinstance(given, list | tuple) and list(names) != list(given):
        yield _classes([str(name) for name in names], [str(name) for name in given])


def _compared(a: Constant, b: Constant) -> tuple[int, float, int | None, float | None] | None:
    """Elements that differ, the largest difference, its channel, and the one factor between them; None if equal."""
    if a.shape != b.shape:
        return int(b.size), float("nan"), None, None
    unequal = np.asarray(a != b)
    if not unequal.any():
        return None
    before, after = a.astype(np.float64), b.astype(np.float64)
    distance = np.abs(after - before)
    place = np.unravel_index(int(distance.argmax()), distance.shape)
    channel = int(place[0]) if distance.ndim else None
    with np.errstate(divide="ignore", invalid="ignore"):
        factors = np.unique((after / before)[unequal])
    factor = float(factors[0]) if len(factors) == 1 and np.isfinite(factors[0]) else None
    return int(np.count_nonzero(unequal)), float(distance.max()), channel, factor


def _layer(graph: QdqGraph, node: onnx.NodeProto) -> str:
    """The layer that a constant belongs to: the grid of an activation is that of the layer which makes it."""
    if node.op_type == "QuantizeLinear" and node.output[0] in graph.code_names:
        return layer_before(graph, node.output[0])
    return layer_reading(graph, node)


def _role(node: onnx.NodeProto, index: int, value: Constant) -> Role:
    if node.op_type in ("QuantizeLinear", "DequantizeLinear") and index == 1:
        return "scale"
    if node.op_type in ("QuantizeLinear", "DequantizeLinear") and index == 2:
        return "zero point"
    return "codes" if np.issubdtype(value.dtype, np.integer) else "values"


def _preprocessing(before: Mapping[str, object], after: Mapping[str, object]) -> Iterator[str]:
    changed = [key for key in Preprocessing.model_fields if before.get(key) != after.get(key)]
    if {"mean", "std"} <= set(changed) and (before["mean"], before["std"]) == (after.get("std"), after.get("mean")):
        yield f"mean and std are swapped: mean {_words(after['mean'])}, std {_words(after['std'])}"
        changed = [key for key in changed if key not in ("mean", "std")]
    for key in changed:
        mirrored = key in ("mean", "std") and _words(before.get(key)) == _words(list(reversed(_list(after.get(key)))))
        said = " in the order of BGR" if mirrored else ""
        yield f"{key} is {_words(after.get(key))}{said}, not {_words(before.get(key))}"


def _classes(names: list[str], given: list[str]) -> str:
    if sorted(names) == sorted(given):
        moved = [(old, new) for old, new in zip(names, given, strict=True) if old != new]
        old, new = moved[0]
        return f"the classes are in another order: {len(moved)} of {len(names)} moved, first {new} to {old}'s place"
    return f"{len(set(given) - set(names))} of the {len(given)} classes are unknown to the run"


def _list(value: object) -> list[object]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _words(value: object) -> str:
    return ",".join(f"{item:g}" if isinstance(item, float) else str(item) for item in _list(value))
