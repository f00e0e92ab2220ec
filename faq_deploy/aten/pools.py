"""Pooling, means and sums over positions, and resizing."""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import fx

from faq_deploy.aten.arithmetic import binary, scaled
from faq_deploy.graph import Kind, Setting, pointwise
from faq_deploy.layout import Value
from faq_deploy.tracing import operation
from faq_deploy.walk import Handler, Walk, sizes, unsupported

__all__ = ["POOLS"]

_FEW: Final = 16  # slices that a sum over an extra axis may be written as


def _windowsizes(arguments: dict[str, Any], count: int) -> tuple[list[int], list[int], list[int]]:
    """Kernel, stride and padding."""
    kernel = sizes(arguments["kernel_size"], count)
    return kernel, sizes(arguments["stride"] or kernel, count), sizes(arguments["padding"], count)


def _window(walk: Walk, arguments: dict[str, Any]) -> dict[str, Setting]:
    kernel, stride, padding = _windowsizes(arguments, len(walk.shape(arguments["self"])) - 1)
    return {"kernel": kernel, "stride": stride, "padding": padding, "ceil_mode": bool(arguments["ceil_mode"])}


def _settle_ceil_mode(walk: Walk, node: fx.Node, arguments: dict[str, Any], settings: dict[str, Setting]) -> None:
    """torch drops a last window that begins in the padding, ONNX does not: there ceil_mode changes nothing."""
    if not settings["ceil_mode"]:
        return
    count = len(walk.shape(node)) - 1
    kernels, strides, pads = _windowsizes(arguments, count)
    dilation = sizes(arguments.get("dilation", 1), count)
    wanted, floors, ceils = list(walk.shape(node)[1:]), [], []
    before = walk.shape(arguments["self"])[1:]
    for size, kernel, stride, pad, step in zip(before, kernels, strides, pads, dilation, strict=True):
        span = size + 2 * pad - (kernel - 1) * step - 1
        floors.append(span // stride + 1)
        ceils.append(-(-span // stride) + 1)
    if floors == wanted:
        settings["ceil_mode"] = False
    elif ceils != wanted:
        raise unsupported(
            node, f"{operation(node)} whose last window, by ceil_mode, lies in the padding along one axis"
        )


def _max_pool(walk: Walk, node: fx.Node, arguments: dict[str, Any]) -> None:
    settings = _window(walk, arguments)
    settings["dilation"] = sizes(arguments["dilation"], len(walk.shape(arguments["self"])) - 1)
    _settle_ceil_mode(walk, node, arguments, settings)
    walk.put(node, walk.emit(node, "max_pool", (walk.plain(arguments["self"]),), settings))


def _avg_pool(walk: Walk, node: fx.Node, arguments: dict[str, Any]) -> None:
    if arguments.get("divisor_override") is not None:
        raise unsupported(node, "an average pool with divisor_override")
    settings = _window(walk, arguments) | {"count_include_pad": bool(arguments["count_include_pad"])}
    _settle_ceil_mode(walk, node, arguments, settings)
    padding, source = settings["padding"], walk.plain(arguments["self"])
    assert isinstance(padding, list)
    if settings["ceil_mode"] and any(padding) and settings["count_include_pad"]:
        # torch divides by the window clipped to the padded image, ONNX runtimes by the whole kernel, depending on
        # their age (C13). On an image that was padded before, all divide by what lies within it.
        source = walk.emit(node, "pad", (source,), {"pads": [0, *padding] * 2, "mode": "constant"})
        settings |= {"padding": [0] * len(padding), "count_include_pad": False}
    walk.put(node, walk.emit(node, "avg_pool", (source,), settings))


def _adaptive_avg_pool(walk: Walk, node: fx.Node, arguments: dict[str, Any]) -> None:
    before, after = walk.shape(arguments["self"]), walk.shape(node)
    source = walk.plain(arguments["self"])
    if before == after:
        walk.put(node, source)
    elif len(before) == 2:  # on sequences: images of height 1
        image = walk.emit(node, "reshape", (source,), {"shape": [before[0], 1, before[1]]})
        pooled = _pooled(walk, node, image, (before[0], 1, before[1]), (1, after[1]))
        walk.put(node, walk.emit(node, "reshape", (pooled,), {"shape": list(after)}))
    else:
        walk.put(node, _pooled(walk, node, source, before, after[1:]))


def _pooled(walk: Walk, node: fx.Node, source: str, before: tuple[int, ...], after: tuple[int, ...]) -> str:
    if after == (1, 1):
        return walk.emit(node, "global_avg_pool", (source,), {"positions": before[1] * before[2]})
    if any(old % new for old, new in zip(before[1:], after, strict=True)):
        if len(after) != 2:
            raise unsupported(node, "adaptive pooling of volumes with windows of unequal size")
        settings: dict[str, Setting] = {"input_size": list(before[1:]), "size": list(after)}
        return walk.emit(node, "adaptive_avg_pool", (source,), settings)
    kernel: list[int] = [old // new for old, new in zip(before[1:], after, strict=True)]
    return walk.emit(node, "avg_pool", (source,), _tiles(kernel) | {"count_include_pad": True})


def _adaptive_max_pool(walk: Walk, node: fx.Node, arguments: dict[str, Any]) -> None:
    before, after = walk.shape(arguments["self"]), [int(s) for s in node.meta["val"][0].shape[1:]]
    if any(old % new for old, new in zip(before[1:], after[1:], strict=True)):
        raise unsupported(node, f"adaptive max pooling from {before[1:]} to {tuple(after[1:])}")
    kernel = [old // new for old, new in zip(before[1:], after[1:], strict=True)]
    walk.put(node, _whole_max(walk, node, walk.plain(arguments["self"]), kernel), after)


def _whole_max(walk: Walk, node: fx.Node, source: str, kernel: list[int]) -> str:
    return walk.emit(node, "max_pool", (source,), _tiles(kernel) | {"dilation": [1] * len(kernel)})


def _dims(node: fx.Node, value: Value, arguments: dict[str, Any]) -> tuple[list[int], bool]:
    """The tensor's axes that are reduced, sorted, and whether they stay as 1."""
    dims = arguments.get("dim")
    dims = [dims] if isinstance(dims, int) else list(dims or range(value.rank))
    axes = sorted(value.axis(dim) for dim in dims)
    if 0 in axes:
        raise unsupported(node, f"{operation(node)} over the batch")
    return axes, bool(arguments.get("keepdim", False))


def _mean(walk: Walk, node: fx.Node, arguments: dict[str, Any]) -> None:
    value = walk.value(arguments["self"])
    axes, keep = _dims(node, value, arguments)
    _reduced(walk, node, _mean_over(walk, node, value, axes), axes, keep)


def _mean_over(walk: Walk, node: fx.Node, value: Value, axes: list[int]) -> Value:
    """The mean over the tensor's axes, which stay as 1."""
    shape = tuple(1 if axis in axes else size for axis, size in enumerate(value.shape, start=1))
    positions = list(range(2, value.rank))
    if axes == [1] and positions:  # a 1x1 convolution with equal weights
        weight = torch.full((1, value.shape[0], *[1] * len(positions)), 1 / value.shape[0])
        name = walk.emit(node, "conv", (value.name,), pointwise(len(positions)), {"weight": weight})
        return value.with_tensor(name, shape)
    if axes == positions and len(positions) == 2:
        settings: dict[str, Setting] = {"positions": value.shape[1] * value.shape[2]}
        return value.with_tensor(walk.emit(node, "global_avg_pool", (value.name,), settings), shape)
    if axes and set(axes) <= set(positions):
        settings = _tiles(_whole(value, axes)) | {"count_include_pad": True}
        return value.with_tensor(walk.emit(node, "avg_pool", (value.name,), settings), shape)
    raise unsupported(node, f"{operation(node)} over axes {axes} of {value.rank}")


def _whole(value: Value, axes: list[int]) -> list[int]:
    """The window that covers the tensor's axes `axes` whole."""
    return [value.shape[axis - 1] if axis in axes else 1 for axis in range(2, value.rank)]


def _tiles(kernel: list[int]) -> dict[str, Setting]:
    """Settings of a pool whose windows stand side by side."""
    return {"kernel": kernel, "stride": kernel, "padding": [0] * len(kernel), "ceil_mode": False}


def _reduced(walk: Walk, node: fx.Node, value: Value, axes: list[int], keep: bool) -> None:
    if keep:
        walk.values[node] = value
        return
    kept = [axis for axis in value.perm if axis not in axes]
    shape = tuple(value.shape[axis - 1] for axis in sorted(kept) if axis)
    kind: Kind = "flatten" if len(shape) == 1 else "reshape"
    settings: dict[str, Setting] = {"shape": list(value.shape) if kind == "flatten" else list(shape)}
    name = walk.emit(node, kind, (value.name,), settings)
    walk.values[node] = Value(name, shape, tuple(sorted(kept).index(axis) for axis in kept))


def _sum(walk: Walk, node: fx.Node, arguments: dict[str, Any]) -> None:
    value = walk.value(arguments["self"])
    axes, keep = _dims(node, value, arguments)
    if len(axes) == 1 and value.shape[axes[0] - 1] <= _FEW and (value.rank == 5 or axes == [1]):
        total: Value | None = None
        shape = tuple(1 if axis == axes[0] else size for axis, size in enumerate(value.shape, start=1))
        for start in range(value.shape[axes[0] - 1]):
            settings: dict[str, Setting] = {"axis": axes[0], "start": start, "end": start + 1, "step": 1}
            part = value.with_tensor(walk.emit(node, "slice", (value.name,), settings), shape)
            total = part if total is None else binary(walk, node, "add", total, part)
        assert total is not None
        _reduced(walk, node, total, axes, keep)
        return
    count = 1
    for axis in axes:
        count *= value.shape[axis - 1]
    mean = scaled(walk, node, _mean_over(walk, node, value, axes), torch.tensor(float(count)), None)
    _reduced(walk, node, mean, axes, keep)


def _amax(walk: Walk, node: fx.Node, arguments: dict[str, Any]) -> None:
    value = walk.value(arguments["self"])
    axes, keep = _dims(node, value, arguments)
    if not axes or min(axes) < 2:
        raise unsupported(node, f"{operation(node)} over the channels")
    shape = tuple(1 if axis in axes else size for axis, size in enumerate(value.shape, start=1))
    pooled = _whole_max(walk, node, value.name, _whole(value, axes))
    _reduced(walk, node, value.with_tensor(pooled, shape), axes, keep)


def _resize(mode: str) -> Handler:
    def handle(walk: Walk, node: fx.Node, arguments: dict[str, Any]) -> None:
        argument = arguments["input" if "input" in arguments else "self"]
        before, after = walk.shape(argument), walk.shape(node)
        if before == after and not arguments.get("align_corners"):
            walk.put(node, walk.plain(argument))
            return
        settings: dict[str, Setting] = {
            "mode": mode,
            "input_size": list(before[1:]),
            "size": list(after[1:]),
            "align_corners": bool(arguments.get("align_corners", False)),
        }
        walk.put(node, walk.emit(node, "resize", (walk.plain(argument),), settings))

    return handle


POOLS: Final[dict[str, Handler]] = {
    **dict.fromkeys(("max_pool1d", "max_pool2d", "max_pool3d", "max_pool2d_with_indices"), _max_pool),
    **dict.fromkeys(("max_pool1d_with_indices", "max_pool3d_with_indices"), _max_pool),
    **dict.fromkeys(("avg_pool1d", "avg_pool2d", "avg_pool3d"), _avg_pool),
    **dict.fromkeys(("adaptive_avg_pool1d", "adaptive_avg_pool2d", "_adaptive_avg_pool2d"), _adaptive_avg_pool),
    **dict.fromkeys(("adaptive_max_pool1d", "adaptive_max_pool2d"), _adaptive_max_pool),
    "mean": _mean,
    "sum": _sum,
    "amax": _amax,
    "upsample_nearest2d": _resize("nearest"),
    "_upsample_nearest_exact2d": _resize("nearest-exact"),
    "upsample_bilinear2d": _resize("linear"),
}
