"""How each torch module becomes a graph node: a dict literal of small functions, or a refusal."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final

from torch import Tensor, fx, nn

from engines.errors import InputError
from faq_deploy.graph import Kind, Setting
from faq_deploy.tracing import BatchNorm, TensorShape, source_of

__all__ = ["MODULE_NODES", "layer_state", "unsupported"]

Made = tuple[Kind, dict[str, Setting]] | None
Handler = Callable[[fx.Node, nn.Module, TensorShape], Made]


def unsupported(node: fx.Node, what: str) -> InputError:
    """The error for an op that has no quantized form, with its place in the user's model."""
    place = source_of(node)
    return InputError(
        f"{what} is not supported (node {node.name}{', ' + place if place else ''}).",
        "replace it by supported layers (convolution, linear, batch norm, ReLU, ReLU6, add, concat, pooling, "
        "flatten, reshape, mean, dropout), or cut the network before it.",
    )


def layer_state(module: nn.Module) -> dict[str, Tensor]:
    """The tensors that a node keeps: weight and bias; for batch norm statistics too, ones for no affine."""
    kept = {key: getattr(module, key, None) for key in ("weight", "bias")}
    if isinstance(module, BatchNorm):
        mean, var = module.running_mean, module.running_var
        assert mean is not None and var is not None
        kept["weight"] = var.new_ones(var.shape) if kept["weight"] is None else kept["weight"]
        kept["bias"] = mean.new_zeros(mean.shape) if kept["bias"] is None else kept["bias"]
        kept |= {"running_mean": mean, "running_var": var}
    return {key: value for key, value in kept.items() if isinstance(value, Tensor)}


def _pair(value: int | Sequence[int]) -> list[int]:
    items = [value, value] if isinstance(value, int) else list(value)
    return items * 2 if len(items) == 1 else items


def _conv(node: fx.Node, module: nn.Module, shape: TensorShape) -> Made:
    assert isinstance(module, nn.Conv2d)
    if module.padding_mode != "zeros":
        raise unsupported(node, f"padding_mode={module.padding_mode!r}")
    if module.padding == "valid":
        padding = [0, 0]
    elif module.padding == "same":
        total = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
        if any(t % 2 for t in total):
            raise unsupported(node, "padding='same' with an even kernel")
        padding = [t // 2 for t in total]
    else:
        assert not isinstance(module.padding, str)
        padding = _pair(module.padding)
    return "conv", {
        "stride": _pair(module.stride),
        "padding": padding,
        "dilation": _pair(module.dilation),
        "groups": module.groups,
    }


def _linear(node: fx.Node, module: nn.Module, shape: TensorShape) -> Made:
    if len(shape) != 2:
        raise unsupported(node, f"a linear layer on {len(shape)} dimensions")
    return "linear", {}


def _batch_norm(node: fx.Node, module: nn.Module, shape: TensorShape) -> Made:
    assert isinstance(module, BatchNorm)
    if type(module).__name__ not in {"BatchNorm1d", "BatchNorm2d", "SyncBatchNorm"}:
        raise unsupported(node, type(module).__name__)
    if module.running_mean is None or module.running_var is None:
        raise InputError(
            f"{source_of(node)} uses the statistics of the current batch at inference, "
            "so no engine can reproduce it image by image.",
            "turn on track_running_stats and re-estimate its statistics before quantizing.",
        )
    momentum = module.momentum if module.momentum is not None else 0.1
    return "batch_norm", {"eps": float(module.eps), "momentum": float(momentum)}


def _relu(node: fx.Node, module: nn.Module, shape: TensorShape) -> Made:
    return "relu", {"cap": None}


def _clipped_relu(node: fx.Node, module: nn.Module, shape: TensorShape) -> Made:
    assert isinstance(module, nn.Hardtanh)  # nn.ReLU6 is one
    if module.min_val != 0 or module.max_val <= 0:
        raise unsupported(node, f"a clip to [{module.min_val}, {module.max_val}]")
    cap = float(module.max_val)
    return "relu", {"cap": None if math.isinf(cap) else cap}


def _max_pool(node: fx.Node, module: nn.Module, shape: TensorShape) -> Made:
    assert isinstance(module, nn.MaxPool2d)
    if module.return_indices:
        raise unsupported(node, "max pooling that returns indices")
    return "max_pool", {
        "kernel": _pair(module.kernel_size),
        "stride": _pair(module.stride),
        "padding": _pair(module.padding),
        "dilation": _pair(module.dilation),
        "ceil_mode": module.ceil_mode,
    }


def _avg_pool(node: fx.Node, module: nn.Module, shape: TensorShape) -> Made:
    assert isinstance(module, nn.AvgPool2d)
    padding = _pair(module.padding)
    if module.divisor_override is not None:
        raise unsupported(node, "an average pool with divisor_override")
    if module.ceil_mode and any(padding) and module.count_include_pad:
        # torch divides by the clipped window, ONNX runtimes by the whole kernel, depending on their age (C13)
        raise unsupported(node, "an average pool with ceil_mode, padding and count_include_pad")
    return "avg_pool", {
        "kernel": _pair(module.kernel_size),
        "stride": _pair(module.stride if module.stride is not None else module.kernel_size),
        "padding": padding,
        "ceil_mode": module.ceil_mode,
        "count_include_pad": module.count_include_pad,
    }


def _adaptive_avg_pool(node: fx.Node, module: nn.Module, shape: TensorShape) -> Made:
    assert isinstance(module, nn.AdaptiveAvgPool2d)
    size = module.output_size
    wanted = [s if s is not None else old for s, old in zip(_optional_pair(size), shape[2:], strict=True)]
    if wanted == [1, 1]:
        return "global_avg_pool", {"positions": shape[2] * shape[3]}
    if wanted == list(shape[2:]):
        return None
    if any(old % new for old, new in zip(shape[2:], wanted, strict=True)):
        raise unsupported(
            node, f"adaptive pooling from {tuple(shape[2:])} to {tuple(wanted)} (windows of unequal size)"
        )
    kernel: list[int] = [old // new for old, new in zip(shape[2:], wanted, strict=True)]
    return "avg_pool", {
        "kernel": kernel,
        "stride": kernel,
        "padding": [0, 0],
        "ceil_mode": False,
        "count_include_pad": True,
    }


def _flatten(node: fx.Node, module: nn.Module, shape: TensorShape) -> Made:
    assert isinstance(module, nn.Flatten)
    if module.start_dim % len(shape) != 1 or module.end_dim % len(shape) != len(shape) - 1:
        raise unsupported(node, f"flatten from dimension {module.start_dim} to {module.end_dim}")
    return ("flatten", {"shape": list(shape[1:])}) if len(shape) != 2 else None


def _dropout(node: fx.Node, module: nn.Module, shape: TensorShape) -> Made:
    p = getattr(module, "p", 0.0)
    return ("dropout", {"p": float(p)}) if p > 0 else None


def _identity(node: fx.Node, module: nn.Module, shape: TensorShape) -> Made:
    return None


def _optional_pair(size: int | Sequence[int | None] | None) -> list[int | None]:
    return [size, size] if size is None or isinstance(size, int) else list(size)


# first match wins, so subclasses stand before their bases
MODULE_NODES: Final[dict[type[nn.Module], Handler]] = {
    nn.Conv2d: _conv,
    nn.Linear: _linear,
    BatchNorm: _batch_norm,
    nn.ReLU: _relu,
    nn.Hardtanh: _clipped_relu,
    nn.MaxPool2d: _max_pool,
    nn.AvgPool2d: _avg_pool,
    nn.AdaptiveAvgPool2d: _adaptive_avg_pool,
    nn.Flatten: _flatten,
    nn.Dropout: _dropout,
    nn.Dropout2d: _dropout,
    nn.Identity: _identity,
}
