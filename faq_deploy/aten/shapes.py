"""Ops that only move elements: views, permutations, slices, concatenations, paddings."""

from __future__ import annotations

import math
from typing import Any, Final

from torch import fx

from faq_deploy.graph import Setting
from faq_deploy.layout import Value
from faq_deploy.tracing import operation
from faq_deploy.walk import Handler, Parts, Walk, unsupported

__all__ = ["SHAPES"]


def _view(walk: Walk, node: fx.Node, arguments: dict[str, Any]) -> None:
    before, after = walk.shape(arguments["self"]), walk.shape(node)
    if before == after:
        walk.values[node] = walk.value(arguments["self"])
        return
    source = walk.plain(arguments["self"])
    walk.put(node, _reshaped(walk, node, source, before, after))


def _reshaped(walk: Walk, node: fx.Node, source: str, before: tuple[int, ...], after: tuple[int, ...]) -> str:
    source, before = walk.reshaped.get(source, (source, before))  # two views in a row are one
    if before == after:
        return source
    if len(after) == 1:
        name = walk.emit(node, "flatten", (source,), {"shape": list(before)})
    else:
        name = walk.emit(node, "reshape", (source,), {"shape": list(after)})
    walk.reshaped[name] = source, before
    return name


def _permute(walk: Walk, node: fx.Node, arguments: dict[str, Any]) -> None:
    value = walk.value(arguments["self"])
    _permuted(walk, node, value, [int(d) % value.rank for d in arguments["dims"]])


def _transpose(walk: Walk, node: fx.Node, arguments: dict[str, Any]) -> None:
    value = walk.value(arguments["self"])
    first, second = (int(arguments[key]) % value.rank for key in ("dim0", "dim1"))
    order = list(range(value.rank))
    order[first], order[second] = order[second], order[first]
    _permuted(walk, node, value, order)


def _permuted(walk: Walk, node: fx.Node, value: Value, order: list[int]) -> None:
    if order[0] != 0:
        raise unsupported(node, f"{operation(node)} of the batch dimension")
    walk.values[node] = value.permuted(order)


def _slice(walk: Walk, node: fx.Node, arguments: dict[str, Any]) -> None:
    value = walk.value(arguments["self"])
    dim = int(arguments["dim"]) % value.rank
    start, end, step = arguments["start"] or 0, arguments["end"], int(arguments["step"])
    if dim == 0:
        if step != 1 or walk.full_shape(node)[0] != walk.full_shape(arguments["self"])[0]:
            raise unsupported(node, "a slice of the batch")
        walk.values[node] = value
        return
    size = value.seen_shape[dim - 1]
    start = min(max(start + size if start < 0 else start, 0), size)
    end = size if end is None else min(max(end + size if end < 0 else end, 0), size)
    walk.values[node] = _sliced(walk, node, value, dim, start, end, step)


def _sliced(walk: Walk, node: fx.Node, value: Value, dim: int, start: int, end: int, step: int = 1) -> Value:
    axis = value.axis(dim)
    size = value.shape[axis - 1]
    if (start, end, step) == (0, size, 1):
        return value
    settings: dict[str, Setting] = {"axis": axis, "start": start, "end": end, "step": step}
    shape = list(value.shape)
    shape[axis - 1] = len(range(start, end, step))
    return value.with_tensor(walk.emit(node, "slice", (value.name,), settings), shape)


def _select(walk: Walk, node: fx.Node, arguments: dict[str, Any]) -> None:
    value = walk.value(arguments["self"])
    dim = int(arguments["dim"]) % value.rank
    if dim == 0:
        raise unsupported(node, "the selection of one image")
    index = int(arguments["index"]) % value.seen_shape[dim - 1]
    _dropped(walk, node, _sliced(walk, node, value, dim, index, index + 1), dim)


def _dropped(walk: Walk, node: fx.Node, value: Value, dim: int) -> None:
    """The value without its axis `dim` of size 1."""
    lying = walk.arranged(value)
    after = tuple(size for axis, size in enumerate(lying.shape, start=1) if axis != dim)
    walk.put(node, _reshaped(walk, node, lying.name, lying.shape, after), after)


def _split(walk: Walk, node: fx.Node, arguments: dict[str, Any]) -> None:
    value = walk.value(arguments["self"])
    dim = int(arguments["dim"]) % value.rank
    if dim == 0:
        raise unsupported(node, "a split of the batch")
    ranges, start = [], 0
    drop = operation(node) == "unbind"
    for part in node.meta["val"]:
        size = 1 if drop else int(part.shape[dim])
        ranges.append((start, start + size))
        start += size
    walk.values[node] = Parts(value, dim, tuple(ranges), drop)


def _getitem(walk: Walk, node: fx.Node, arguments: dict[str, Any]) -> None:
    source, index = node.args
    assert isinstance(source, fx.Node) and isinstance(index, int)
    held = walk.values[source]
    if isinstance(held, Parts):
        start, end = held.ranges[index]
        part = _sliced(walk, node, held.value, held.dim, start, end)
        if held.drop:
            _dropped(walk, node, part, held.dim)
        else:
            walk.values[node] = part
    elif index == 0:
        walk.values[node] = held
    else:
        raise unsupported(source, f"{operation(source)} whose second result (indices, statistics) is used")


def _cat(walk: Walk, node: fx.Node, arguments: dict[str, Any]) -> None:
    tensors = [t for t in arguments["tensors"] if t.meta["val"].numel()]
    values = [walk.value(t) for t in tensors]
    dim = int(arguments["dim"]) % values[0].rank
    if dim == 0:
        raise unsupported(node, "a concatenation of batches")
    _concatenated(walk, node, [walk.full(t) for t in tensors], dim)


def _concatenated(walk: Walk, node: fx.Node, values: list[Value], dim: int) -> None:
    if any(value.perm != values[0].perm for value in values):
        values = [walk.arranged(value) for value in values]
    axis = values[0].axis(dim)
    settings: dict[str, Setting] = {} if axis == 1 else {"axis": axis}
    shape = list(values[0].shape)
    shape[axis - 1] = sum(value.shape[axis - 1] for value in values)
    name = values[0].name
    if len(values) > 1:
        name = walk.emit(node, "cat", tuple(value.name for value in values), settings)
    walk.values[node] = values[0].with_tensor(name, shape)


def _stack(walk: Walk, node: fx.Node, arguments: dict[str, Any]) -> None:
    dim = int(arguments["dim"]) % node.meta["val"].dim()
    if dim == 0:
        raise unsupported(node, "a stack along the batch")
    parts = []
    for tensor in arguments["tensors"]:
        before = walk.shape(tensor)
        after = (*before[: dim - 1], 1, *before[dim - 1 :])
        parts.append(Value.plain(_reshaped(walk, node, walk.plain(tensor), before, after), after))
    _concatenated(walk, node, parts, dim)


def _expand(walk: Walk, node: fx.Node, arguments: dict[str, Any]) -> None:
    value = walk.value(arguments["self"])
    if value.rank != node.meta["val"].dim():
        raise unsupported(node, "an expand that adds dimensions")
    walk.values[node] = value  # the axes stay 1 until someone needs the copies


def _repeat(walk: Walk, node: fx.Node, arguments: dict[str, Any]) -> None:
    value = walk.full(arguments["self"])
    repeats = [int(r) for r in arguments["repeats"]]
    if len(repeats) != value.rank or repeats[0] != 1:
        raise unsupported(node, "a repeat of the batch")
    for dim, count in enumerate(repeats):
        if count > 1:
            _concatenated(walk, node, [value] * count, dim)
            again = walk.values[node]
            assert isinstance(again, Value)
            value = again
    walk.values[node] = value


def _pixel_shuffle(walk: Walk, node: fx.Node, arguments: dict[str, Any]) -> None:
    r, (c, h, w) = int(arguments["upscale_factor"]), walk.shape(arguments["self"])
    parts = walk.emit(node, "reshape", (walk.plain(arguments["self"]),), {"shape": [c // (r * r), r, r, h, w]})
    moved = walk.emit(node, "permute", (parts,), {"perm": [0, 1, 4, 2, 5, 3]})
    walk.put(node, walk.emit(node, "reshape", (moved,), {"shape": [c // (r * r), h * r, w * r]}))


def _pixel_unshuffle(walk: Walk, node: fx.Node, arguments: dict[str, Any]) -> None:
    r, (c, h, w) = int(arguments["downscale_factor"]), walk.shape(arguments["self"])
    parts = walk.emit(node, "reshape", (walk.plain(arguments["self"]),), {"shape": [c, h // r, r, w // r, r]})
    moved = walk.emit(node, "permute", (parts,), {"perm": [0, 1, 3, 5, 2, 4]})
    walk.put(node, walk.emit(node, "reshape", (moved,), {"shape": [c * r * r, h // r, w // r]}))


def _channel_shuffle(walk: Walk, node: fx.Node, arguments: dict[str, Any]) -> None:
    groups, (c, h, w) = int(arguments["groups"]), walk.shape(arguments["self"])
    parts = walk.emit(node, "reshape", (walk.plain(arguments["self"]),), {"shape": [groups, c // groups, h, w]})
    moved = walk.emit(node, "permute", (parts,), {"perm": [0, 2, 1, 3, 4]})
    walk.put(node, walk.emit(node, "reshape", (moved,), {"shape": [c, h, w]}))


def _pad(walk: Walk, node: fx.Node, arguments: dict[str, Any]) -> None:
    op = operation(node)
    given = [int(p) for p in arguments["pad" if "pad" in arguments else "padding"]]
    mode = {"reflection": "reflect", "replication": "edge", "constant": "constant"}.get(op.partition("_")[0], "")
    mode = mode or {"replicate": "edge"}.get(str(arguments.get("mode")), str(arguments.get("mode")))
    value = float(arguments.get("value") or 0.0)
    if mode == "constant" and value == -math.inf:
        mode = "lowest"  # before a max pool, which takes it over
    elif mode not in {"constant", "reflect", "edge"} or value != 0:
        raise unsupported(node, f"padding with mode {mode!r}" + (f" and value {value:g}" if value else ""))
    rank = len(walk.shape(node))
    begins, ends = [0] * rank, [0] * rank
    for position in range(len(given) // 2):  # torch starts with the last axis
        begins[rank - 1 - position], ends[rank - 1 - position] = given[2 * position : 2 * position + 2]
    source = walk.plain(arguments["self" if "self" in arguments else "input"])
    if not any(given):
        walk.put(node, source)
        return
    pads = [max(size, 0) for size in begins + ends]
    if any(pads):
        source = walk.emit(node, "pad", (source,), {"pads": pads, "mode": mode})
    for axis, (begin, end) in enumerate(zip(begins, ends, strict=True), start=1):
        if begin < 0 or end < 0:  # a negative size crops
            start = max(-begin, 0)
            stop = start + walk.shape(node)[axis - 1]
            source = walk.emit(node, "slice", (source,), {"axis": axis, "start": start, "end": stop, "step": 1})
    walk.put(node, source)


SHAPES: Final[dict[str, Handler]] = {
    **dict.fromkeys(("view", "_unsafe_view", "reshape", "flatten", "squeeze", "unsqueeze", "unflatten"), _view),
    "permute": _permute,
    "transpose": _transpose,
    "slice": _slice,
    "select": _select,
    **dict.fromkeys(("split", "split_with_sizes", "chunk", "unbind", "tensor_split"), _split),
    "getitem": _getitem,
    **dict.fromkeys(("cat", "concat", "concatenate"), _cat),
    "stack": _stack,
    **dict.fromkeys(("expand", "expand_as"), _expand),
    "repeat": _repeat,
    "pixel_shuffle": _pixel_shuffle,
    "pixel_unshuffle": _pixel_unshuffle,
    "channel_shuffle": _channel_shuffle,
    **dict.fromkeys(("constant_pad_nd", "pad"), _pad),
    **dict.fromkeys(("reflection_pad1d", "reflection_pad2d", "reflection_pad3d"), _pad),
    **dict.fromkeys(("replication_pad1d", "replication_pad2d", "replication_pad3d"), _pad),
}
