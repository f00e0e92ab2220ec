"""Sums and products: of two activations, or of one with constants."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, fx

from faq_deploy.aten.elementwise import function_settings
from faq_deploy.graph import Kind
from faq_deploy.layout import Value
from faq_deploy.tracing import operation
from faq_deploy.walk import Handler, Walk, unsupported

__all__ = ["ARITHMETIC", "binary", "scaled"]


def _add(walk: Walk, node: fx.Node, arguments: dict[str, Any]) -> None:
    left, right, alpha = arguments["self"], arguments["other"], float(arguments.get("alpha", 1))
    sign = -1.0 if operation(node) in {"sub", "rsub"} else 1.0
    if operation(node) == "rsub":
        left, right = right, left
        if alpha != 1:
            raise unsupported(node, "rsub with alpha")
    of_left, of_right = walk.constant(left), walk.constant(right)
    if of_right is not None:
        walk.values[node] = scaled(walk, node, walk.value(left), None, sign * alpha * of_right)
    elif of_left is not None:
        walk.values[node] = scaled(walk, node, walk.value(right), torch.tensor(sign * alpha), of_left)
    else:
        second = walk.value(right)
        if alpha != 1:
            second = scaled(walk, node, second, torch.tensor(alpha), None)
        walk.values[node] = binary(walk, node, "add" if sign > 0 else "sub", walk.value(left), second)


def _mul(walk: Walk, node: fx.Node, arguments: dict[str, Any]) -> None:
    left, right = arguments["self"], arguments["other"]
    of_left, of_right = walk.constant(left), walk.constant(right)
    if of_right is not None:
        walk.values[node] = scaled(walk, node, walk.value(left), of_right, None)
    elif of_left is not None:
        walk.values[node] = scaled(walk, node, walk.value(right), of_left, None)
    else:
        walk.values[node] = binary(walk, node, "mul", walk.value(left), walk.value(right))


def _div(walk: Walk, node: fx.Node, arguments: dict[str, Any]) -> None:
    left, right = arguments["self"], arguments["other"]
    if arguments.get("rounding_mode") is not None:
        raise unsupported(node, "a division that rounds")
    of_right = walk.constant(right)
    if of_right is not None:
        walk.values[node] = scaled(walk, node, walk.value(left), 1 / of_right, None)
        return
    divisor = walk.value(right)
    inverse = divisor.with_tensor(
        walk.emit(node, "unary", (divisor.name,), function_settings("reciprocal")), divisor.shape
    )
    of_left = walk.constant(left)
    if of_left is not None:
        walk.values[node] = scaled(walk, node, inverse, of_left, None)
    else:
        walk.values[node] = binary(walk, node, "mul", walk.value(left), inverse)


def binary(walk: Walk, node: fx.Node, kind: Kind, left: Value, right: Value) -> Value:
    """Emit an op of two activations, which broadcast."""
    if left.rank != right.rank:
        raise unsupported(node, f"{operation(node)} of tensors of different rank")
    if left.perm != right.perm:
        left, right = walk.arranged(left), walk.arranged(right)
    shape = np.broadcast_shapes(left.shape, right.shape)
    return left.with_tensor(walk.emit(node, kind, (left.name, right.name), {}), shape)


def scaled(walk: Walk, node: fx.Node, value: Value, weight: Tensor | None, bias: Tensor | None) -> Value:
    """Emit value·weight + bias with constants: per channel if they allow it, else with constant tensors."""
    factors = _aligned(node, value, torch.tensor(1.0) if weight is None else weight)
    offsets = _aligned(node, value, torch.tensor(0.0) if bias is None else bias)
    if bool((factors == 1).all()) and bool((offsets == 0).all()) and _fits(value, factors, offsets):
        return value
    channels = value.shape[0]
    if all(_by_channel(t) and t.shape[1] in (1, channels) for t in (factors, offsets)):
        state = {"weight": factors.flatten().expand(channels), "bias": offsets.flatten().expand(channels)}
        settings = {} if value.rank == 4 else {"spatial": value.rank - 2}
        return value.with_tensor(walk.emit(node, "affine", (value.name,), settings, state), value.shape)
    if bool((factors != 1).any()) or not _fits(value, factors):
        value = _with_constant(walk, node, "mul", value, factors)
    if bool((offsets != 0).any()):
        value = _with_constant(walk, node, "add", value, offsets)
    return value


def _with_constant(walk: Walk, node: fx.Node, kind: Kind, value: Value, tensor: Tensor) -> Value:
    name = walk.emit(node, "constant", (), {"batched": False}, {"value": tensor})
    shape = np.broadcast_shapes(value.shape, tuple(tensor.shape[1:]))
    return value.with_tensor(walk.emit(node, kind, (value.name, name), {}), shape)


def _aligned(node: fx.Node, value: Value, tensor: Tensor) -> Tensor:
    """A constant with the rank of the value, its axes in the order of the value's tensor."""
    if tensor.dim() > value.rank:
        raise unsupported(node, "a constant of higher rank than the activation")
    full = tensor.reshape(*[1] * (value.rank - tensor.dim()), *tensor.shape)
    return full.permute(value.inverse())


def _by_channel(tensor: Tensor) -> bool:
    return all(size == 1 for axis, size in enumerate(tensor.shape) if axis != 1)


def _fits(value: Value, *tensors: Tensor) -> bool:
    """Whether the constants leave the shape alone."""
    return all(size in (1, have) for t in tensors for size, have in zip(t.shape[1:], value.shape, strict=True))


def _softmax(walk: Walk, node: fx.Node, arguments: dict[str, Any]) -> None:
    """A softmax of two is a pair of sigmoids of their difference (selective kernels, split attention)."""
    value = walk.value(arguments["self"])
    dim = int(arguments["dim"]) % value.rank
    axis = value.axis(dim)
    if axis == 0 or value.shape[axis - 1] != 2:
        raise unsupported(node, "a softmax of other than two")
    shape = tuple(1 if at == axis else size for at, size in enumerate(value.shape, start=1))
    halves = [
        value.with_tensor(
            walk.emit(node, "slice", (value.name,), {"axis": axis, "start": i, "end": i + 1, "step": 1}), shape
        )
        for i in range(2)
    ]
    gates = []
    for first, second in (halves, halves[::-1]):
        difference = binary(walk, node, "sub", first, second)
        gates.append(walk.emit(node, "unary", (difference.name,), function_settings("sigmoid")))
    name = walk.emit(node, "cat", tuple(gates), {} if axis == 1 else {"axis": axis})
    walk.values[node] = value.with_tensor(name, value.shape)


ARITHMETIC: Final[dict[str, Handler]] = {
    **dict.fromkeys(("add", "sub", "rsub"), _add),
    "mul": _mul,
    "div": _div,
    **dict.fromkeys(("softmax", "_softmax"), _softmax),
}
