"""Convolutions, linear layers and norms of the traced model."""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor, fx

from engines.errors import InputError
from faq_deploy.graph import Setting, pointwise
from faq_deploy.layout import Value
from faq_deploy.tracing import operation, source_of
from faq_deploy.walk import Handler, Walk, sizes, unsupported

__all__ = ["WEIGHTED_OPS"]

_DEFAULT_MOMENTUM: Final = 0.1  # torch's; also where a cumulative average was asked for


def _weights(walk: Walk, node: fx.Node, arguments: dict[str, Any]) -> tuple[Tensor, Tensor | None]:
    weight = walk.constant(arguments["weight"])
    bias = walk.constant(arguments["bias"]) if arguments["bias"] is not None else None
    if weight is None or (bias is None and arguments["bias"] is not None):
        raise unsupported(node, f"{operation(node)} with weights that depend on the input")
    return weight, bias


def _conv(walk: Walk, node: fx.Node, arguments: dict[str, Any]) -> None:
    weight, bias = _weights(walk, node, arguments)
    count = weight.dim() - 2
    if len(walk.shape(node)) != count + 1:
        raise unsupported(node, f"{operation(node)} without a batch dimension")
    stride, dilation = (sizes(arguments[key], count) for key in ("stride", "dilation"))
    padding = arguments["padding"]
    if padding == "valid":
        pads = [0] * count
    elif padding == "same":
        total = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
        begins, ends = [t // 2 for t in total], [t - t // 2 for t in total]
        pads = begins if begins == ends else begins + ends
    else:
        pads = sizes(padding, count)
    settings: dict[str, Setting] = {"stride": stride, "padding": pads, "dilation": dilation}
    source = walk.plain(arguments["input"])
    if arguments.get("transposed") or operation(node).startswith("conv_transpose"):
        settings |= {"output_padding": sizes(arguments["output_padding"], count), "groups": arguments["groups"]}
        kind = "conv_transpose"
    else:
        settings |= {"groups": arguments["groups"]}
        kind = "conv"
    state = {"weight": weight, "bias": bias}
    walk.put(node, walk.emit(node, kind, (source,), settings, state))  # type: ignore[arg-type]


def _linear(walk: Walk, node: fx.Node, arguments: dict[str, Any]) -> None:
    weight, bias = _weights(walk, node, arguments)
    _dense(walk, node, walk.value(arguments["input"]), weight, bias)


def _matmul(walk: Walk, node: fx.Node, arguments: dict[str, Any]) -> None:
    """x @ W with a constant W; between activations it is attention."""
    left, right = (arguments[key] for key in (("mat1", "mat2") if "mat1" in arguments else _operands(arguments)))
    weight = walk.constant(right)
    if weight is None or weight.dim() != 2 or walk.constant(left) is not None:
        raise unsupported(node, "a matrix product whose weight is not a constant matrix")
    bias = walk.constant(arguments["self"]) if "mat1" in arguments else None
    if bias is not None:
        bias = bias.flatten().expand(weight.shape[1])
    _dense(walk, node, walk.value(left), weight.t(), bias)


def _operands(arguments: dict[str, Any]) -> tuple[str, str]:
    return "self", "mat2" if "mat2" in arguments else "other"


def _dense(walk: Walk, node: fx.Node, value: Value, weight: Tensor, bias: Tensor | None) -> None:
    """A linear layer on the last axis; on images it is a 1x1 convolution."""
    state = {"weight": weight, "bias": bias}
    if value.rank == 2:
        source = walk.plain(node.args[0] if operation(node) != "addmm" else node.args[1])
        walk.put(node, walk.emit(node, "linear", (source,), {}, state))
        return
    value = _channel_first(walk, node, value)
    count = value.rank - 2
    shape = (len(weight), *value.shape[1:])
    state["weight"] = weight.reshape(*weight.shape, *[1] * count)
    walk.values[node] = value.with_tensor(walk.emit(node, "conv", (value.name,), pointwise(count), state), shape)


def _channel_first(walk: Walk, node: fx.Node, value: Value) -> Value:
    """The value over a tensor whose axis 1 is the value's last axis."""
    if value.axis(-1) == 1:
        return value
    value = walk.arranged(value)
    order = [0, value.rank - 1, *range(1, value.rank - 1)]
    moved = walk.arranged(value.permuted(order))
    return Value(moved.name, moved.shape, tuple(order.index(axis) for axis in range(value.rank)))


def _batch_norm(walk: Walk, node: fx.Node, arguments: dict[str, Any]) -> None:
    mean, var = (walk.constant(arguments.get(key)) for key in ("running_mean", "running_var"))
    if operation(node) not in {"_native_batch_norm_legit_no_training", "batch_norm"} or arguments.get("training"):
        mean = None
    if mean is None or var is None:
        raise InputError(
            f"the batch norm ({source_of(node) or node.name}) uses the statistics of the current batch at inference, "
            "so no engine can reproduce it image by image.",
            "turn on track_running_stats and re-estimate its statistics before quantizing.",
        )
    weight, bias = (walk.constant(arguments[key]) for key in ("weight", "bias"))
    state = {
        "weight": torch.ones_like(var) if weight is None else weight,
        "bias": torch.zeros_like(mean) if bias is None else bias,
        "running_mean": mean,
        "running_var": var,
    }
    source = walk.plain(arguments["input"])
    momentum = float(arguments["momentum"]) or _DEFAULT_MOMENTUM
    settings: dict[str, Setting] = {"eps": float(arguments["eps"]), "momentum": momentum}
    shape = walk.shape(arguments["input"])
    if len(shape) != 3:
        settings["spatial"] = len(shape) - 1
    walk.put(node, walk.emit(node, "batch_norm", (source,), settings, state), shape)


def _layer_norm(walk: Walk, node: fx.Node, arguments: dict[str, Any]) -> None:
    value = walk.value(arguments["input"])
    shape = list(arguments["normalized_shape"])
    weight, bias = (walk.constant(arguments.get(key)) for key in ("weight", "bias"))
    eps = float(arguments["eps"])
    if len(shape) == 1:
        value = _channel_first(walk, node, value)
        state = _affine(value.shape[0], weight, bias)
        settings: dict[str, Setting] = {"groups": 1, "spatial": False, "eps": eps}
        name = walk.emit(node, "norm", (value.name,), settings, state)
        walk.values[node] = value.with_tensor(name, value.shape)
        return
    if len(shape) != value.rank - 1:
        raise unsupported(node, f"layer norm over the last {len(shape)} of {value.rank - 1} dimensions")
    _grouped(walk, node, arguments["input"], 1, None, None, eps)
    if weight is not None or bias is not None:
        from faq_deploy.aten.arithmetic import scaled

        walk.values[node] = scaled(walk, node, walk.value(node), weight, bias)


def _rms_norm(walk: Walk, node: fx.Node, arguments: dict[str, Any]) -> None:
    if len(arguments["normalized_shape"]) != 1:
        raise unsupported(node, "rms_norm over several dimensions")
    value = _channel_first(walk, node, walk.value(arguments["input"]))
    weight = walk.constant(arguments["weight"]) if arguments.get("weight") is not None else None
    eps = arguments.get("eps")
    settings: dict[str, Setting] = {
        "groups": 1,
        "spatial": False,
        "eps": float(torch.finfo(torch.float32).eps if eps is None else eps),
        "centered": False,
    }
    name = walk.emit(node, "norm", (value.name,), settings, _affine(value.shape[0], weight, None))
    walk.values[node] = value.with_tensor(name, value.shape)


def _group_norm(walk: Walk, node: fx.Node, arguments: dict[str, Any]) -> None:
    groups = arguments["num_groups" if "num_groups" in arguments else "group"]
    weight, bias = (walk.constant(arguments.get(key)) for key in ("weight", "bias"))
    _grouped(walk, node, arguments["input"], int(groups), weight, bias, float(arguments["eps"]))


def _instance_norm(walk: Walk, node: fx.Node, arguments: dict[str, Any]) -> None:
    if not arguments["use_input_stats"]:
        _batch_norm(walk, node, arguments | {"training": False})
        return
    weight, bias = (walk.constant(arguments.get(key)) for key in ("weight", "bias"))
    channels = walk.shape(arguments["input"])[0]
    _grouped(walk, node, arguments["input"], channels, weight, bias, float(arguments["eps"]))


def _grouped(
    walk: Walk, node: fx.Node, argument: object, groups: int, weight: Tensor | None, bias: Tensor | None, eps: float
) -> None:
    source = walk.plain(argument)
    shape = walk.shape(node)
    settings: dict[str, Setting] = {"groups": groups, "spatial": True, "eps": eps}
    walk.put(node, walk.emit(node, "norm", (source,), settings, _affine(shape[0], weight, bias)), shape)


def _affine(channels: int, weight: Tensor | None, bias: Tensor | None) -> dict[str, Tensor]:
    return {
        "weight": torch.ones(channels) if weight is None else weight,
        "bias": torch.zeros(channels) if bias is None else bias,
    }


WEIGHTED_OPS: Final[dict[str, Handler]] = {
    **dict.fromkeys(("conv1d", "conv2d", "conv3d", "convolution"), _conv),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), _conv),
    "linear": _linear,
    **dict.fromkeys(("addmm", "mm", "matmul", "bmm"), _matmul),
    **dict.fromkeys(
        ("_native_batch_norm_legit_no_training", "_native_batch_norm_legit", "native_batch_norm", "batch_norm"),
        _batch_norm,
    ),
    **dict.fromkeys(("layer_norm", "native_layer_norm"), _layer_norm),
    **dict.fromkeys(("group_norm", "native_group_norm"), _group_norm),
    "instance_norm": _instance_norm,
    "rms_norm": _rms_norm,
}
