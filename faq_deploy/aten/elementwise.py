"""ReLUs and other functions of one activation."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

from torch import fx

from faq_deploy.graph import Kind, Setting
from faq_deploy.tracing import operation
from faq_deploy.walk import Handler, Walk, unsupported

__all__ = ["ELEMENTWISE", "function_settings"]


def _pointwise(walk: Walk, node: fx.Node, kind: Kind, settings: dict[str, Setting]) -> None:
    """A node that acts on every element: the value's permutation stays pending."""
    first = node.args[0]
    value = walk.value(first)
    name = walk.emit(node, kind, (value.name,), settings)
    walk.values[node] = value.with_tensor(name, value.shape)


def _relu(walk: Walk, node: fx.Node, arguments: dict[str, Any]) -> None:
    _pointwise(walk, node, "relu", {"cap": None})


def _relu6(walk: Walk, node: fx.Node, arguments: dict[str, Any]) -> None:
    _pointwise(walk, node, "relu", {"cap": 6.0})


def _clip(walk: Walk, node: fx.Node, arguments: dict[str, Any]) -> None:
    """hardtanh and clamp: a clipped ReLU where the lower bound is 0."""
    low = arguments.get("min_val", arguments.get("min"))
    high = arguments.get("max_val", arguments.get("max"))
    bounds = [None if b is None else walk.constant(b) for b in (low, high)]
    if any(b is None and given is not None for b, given in zip(bounds, (low, high), strict=True)):
        raise unsupported(node, "a clip to bounds that depend on the input")
    if any(b is not None and b.numel() != 1 for b in bounds):
        raise unsupported(node, "a clip to bounds that are tensors")
    least, most = (None if b is None else float(b) for b in bounds)
    most = None if most is None or math.isinf(most) else most
    least = None if least is None or math.isinf(least) else least
    if least == 0 and (most is None or most > 0):
        _pointwise(walk, node, "relu", {"cap": most})
    else:
        _function(walk, node, "clip", low=least, high=most)


def _function(
    walk: Walk,
    node: fx.Node,
    function: str,
    *,
    alpha: float | None = None,
    low: float | None = None,
    high: float | None = None,
) -> None:
    _pointwise(walk, node, "unary", function_settings(function, alpha=alpha, low=low, high=high))


def function_settings(
    function: str, *, alpha: float | None = None, low: float | None = None, high: float | None = None
) -> dict[str, Setting]:
    """Settings of a node of kind `unary`."""
    return {"function": function, "alpha": alpha, "low": low, "high": high, "gain": 1.0}


def _named(function: str) -> Handler:
    def handle(walk: Walk, node: fx.Node, arguments: dict[str, Any]) -> None:
        _function(walk, node, function)

    return handle


def _gelu(walk: Walk, node: fx.Node, arguments: dict[str, Any]) -> None:
    _function(walk, node, "gelu_tanh" if arguments["approximate"] == "tanh" else "gelu")


def _elu(walk: Walk, node: fx.Node, arguments: dict[str, Any]) -> None:
    if float(arguments.get("input_scale", 1)) != 1 or float(arguments.get("scale", 1)) != 1:
        raise unsupported(node, "an elu with scales")
    _function(walk, node, "elu", alpha=float(arguments["alpha"]))


def _celu(walk: Walk, node: fx.Node, arguments: dict[str, Any]) -> None:
    _function(walk, node, "celu", alpha=float(arguments["alpha"]))


def _softplus(walk: Walk, node: fx.Node, arguments: dict[str, Any]) -> None:
    _function(walk, node, "softplus", alpha=float(arguments["beta"]))


def _leaky(walk: Walk, node: fx.Node, arguments: dict[str, Any]) -> None:
    slope = walk.constant(arguments["negative_slope"])
    _sloped(walk, node, slope, trainable=False)


def _prelu(walk: Walk, node: fx.Node, arguments: dict[str, Any]) -> None:
    _sloped(walk, node, walk.constant(arguments["weight"]), trainable=True)


def _sloped(walk: Walk, node: fx.Node, slope: Any, *, trainable: bool) -> None:
    value = walk.value(node.args[0])
    if slope is None or (slope.numel() > 1 and value.axis(1) != 1):
        raise unsupported(node, "a prelu with slopes of other than the channels")
    state = {"weight": slope.flatten()}
    name = walk.emit(node, "prelu", (value.name,), {"trainable": trainable}, state)
    walk.values[node] = value.with_tensor(name, value.shape)


def _power(walk: Walk, node: fx.Node, arguments: dict[str, Any]) -> None:
    exponent = walk.constant(arguments["exponent"])
    known: dict[float, str] = {2.0: "square", 0.5: "sqrt", -1.0: "reciprocal", -0.5: "rsqrt"}
    if exponent is None or exponent.numel() != 1 or float(exponent) not in known:
        raise unsupported(node, f"a power with exponent {arguments['exponent']}")
    _function(walk, node, known[float(exponent)])


def _dropout(walk: Walk, node: fx.Node, arguments: dict[str, Any]) -> None:
    kind: Kind = "stochastic_depth" if operation(node) == "stochastic_depth" else "dropout"
    _pointwise(walk, node, kind, {"p": float(arguments["p"])})


def _alias(walk: Walk, node: fx.Node, arguments: dict[str, Any]) -> None:
    walk.values[node] = walk.value(node.args[0])


_FUNCTIONS: Final = (
    *("silu", "sigmoid", "tanh", "hardswish", "hardsigmoid", "mish", "exp", "log", "sqrt", "rsqrt", "reciprocal"),
    *("abs", "neg", "square", "selu", "sin", "cos"),
)

ELEMENTWISE: Final[dict[str, Callable[[Walk, fx.Node, dict[str, Any]], None]]] = {
    "relu": _relu,
    "relu6": _relu6,
    **dict.fromkeys(("hardtanh", "clamp", "clamp_min", "clamp_max", "clip"), _clip),
    **{function: _named(function) for function in _FUNCTIONS},
    "log_sigmoid": _named("logsigmoid"),
    "gelu": _gelu,
    "elu": _elu,
    "celu": _celu,
    "softplus": _softplus,
    "leaky_relu": _leaky,
    "prelu": _prelu,
    "_prelu_kernel": _prelu,
    "pow": _power,
    **dict.fromkeys(("dropout", "stochastic_depth"), _dropout),
    **dict.fromkeys(("clone", "alias", "detach", "contiguous", "lift_fresh_copy", "_to_copy", "to"), _alias),
}
