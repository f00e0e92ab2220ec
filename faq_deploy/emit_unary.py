"""ONNX nodes of functions of one value, written out in operators that every engine has."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final, cast

from faq_deploy.emitter import Emitter
from faq_deploy.graph import Node
from faq_deploy.slope import SlopedRelu
from faq_deploy.unary import SELU_ALPHA, SELU_SCALE, Shape, Unary

__all__ = ["emit_sloped", "emit_unary"]


class _Steps:
    """Adds one function's operators; each takes the next name under the node's."""

    def __init__(self, out: Emitter, name: str) -> None:
        self.out, self.name, self.count = out, name, 0

    def op(self, kind: str, *inputs: str | float, **attributes: float) -> str:
        """An operator over tensors and numbers."""
        self.count += 1
        name = f"{self.name}.{kind.lower()}_{self.count}"
        named = [
            given if isinstance(given, str) else self.out.number(f"{name}_{position}", given)
            for position, given in enumerate(inputs)
        ]
        return self.out.op(kind, named, name, **attributes)


def emit_unary(out: Emitter, node: Node) -> None:
    """gain·f(x) + offset."""
    layer = cast(Unary, out.net.layers[node.name])
    (source,) = out.elementwise(node)
    steps = _Steps(out, node.name)
    result = _FUNCTIONS[layer.function](steps, source, layer.shape)
    if layer.gain != 1.0:
        result = steps.op("Mul", result, layer.gain)
    offset = float(layer.offset)
    out.tensor[node.name] = steps.op("Add", result, offset) if offset else result


def emit_sloped(out: Emitter, node: Node) -> None:
    """PReLU and LeakyReLU."""
    layer = cast(SlopedRelu, out.net.layers[node.name])
    slopes = layer.slopes().detach().numpy()
    source = node.inputs[0]
    if len(slopes) > 1 and len(slopes) != out.unflattened.get(source, [len(slopes)])[0]:
        tensor, rank = out.flat(source), 2
    else:
        (tensor,) = out.elementwise(node)
        rank = 4 if node.name in out.unflattened else len(out.shapes[node.name]) + 1
    slope = out.by_channel(f"{node.name}.slope", slopes, rank)
    out.tensor[node.name] = out.op("PRelu", [tensor, slope], f"{node.name}.out")


def _silu(steps: _Steps, x: str, shape: Shape) -> str:
    return steps.op("Mul", x, steps.op("Sigmoid", x))


def _hardsigmoid(steps: _Steps, x: str, shape: Shape) -> str:
    return steps.op("Div", steps.op("Clip", steps.op("Add", x, 3.0), 0.0, 6.0), 6.0)


def _hardswish(steps: _Steps, x: str, shape: Shape) -> str:
    return steps.op("Div", steps.op("Mul", x, steps.op("Clip", steps.op("Add", x, 3.0), 0.0, 6.0)), 6.0)


def _gelu(steps: _Steps, x: str, shape: Shape) -> str:
    one_more = steps.op("Add", steps.op("Erf", steps.op("Div", x, math.sqrt(2))), 1.0)
    return steps.op("Mul", steps.op("Mul", x, one_more), 0.5)


def _gelu_tanh(steps: _Steps, x: str, shape: Shape) -> str:
    cube = steps.op("Mul", steps.op("Mul", x, x), x)
    inner = steps.op("Mul", steps.op("Add", x, steps.op("Mul", cube, 0.044715)), math.sqrt(2 / math.pi))
    return steps.op("Mul", steps.op("Mul", x, 0.5), steps.op("Add", steps.op("Tanh", inner), 1.0))


def _mish(steps: _Steps, x: str, shape: Shape) -> str:
    return steps.op("Mul", x, steps.op("Tanh", steps.op("Softplus", x)))


def _softplus(steps: _Steps, x: str, shape: Shape) -> str:
    if shape.slope == 1.0:
        return steps.op("Softplus", x)
    return steps.op("Div", steps.op("Softplus", steps.op("Mul", x, shape.slope)), shape.slope)


def _elu(steps: _Steps, x: str, shape: Shape) -> str:
    return steps.op("Elu", x, alpha=shape.slope)


def _selu(steps: _Steps, x: str, shape: Shape) -> str:
    return steps.op("Mul", steps.op("Elu", x, alpha=SELU_ALPHA), SELU_SCALE)


def _celu(steps: _Steps, x: str, shape: Shape) -> str:
    return steps.op("Mul", steps.op("Elu", steps.op("Div", x, shape.slope), alpha=1.0), shape.slope)


def _clip(steps: _Steps, x: str, shape: Shape) -> str:
    low: str | float = "" if shape.low is None else shape.low
    return steps.op("Clip", x, low) if shape.high is None else steps.op("Clip", x, low, shape.high)


def _logsigmoid(steps: _Steps, x: str, shape: Shape) -> str:
    return steps.op("Neg", steps.op("Softplus", steps.op("Neg", x)))


def _named(kind: str) -> Callable[[_Steps, str, Shape], str]:
    return lambda steps, x, shape: steps.op(kind, x)


_FUNCTIONS: Final[dict[str, Callable[[_Steps, str, Shape], str]]] = {
    "silu": _silu,
    "sigmoid": _named("Sigmoid"),
    "tanh": _named("Tanh"),
    "hardswish": _hardswish,
    "hardsigmoid": _hardsigmoid,
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "mish": _mish,
    "softplus": _softplus,
    "elu": _elu,
    "selu": _selu,
    "celu": _celu,
    "exp": _named("Exp"),
    "log": _named("Log"),
    "sqrt": _named("Sqrt"),
    "rsqrt": lambda steps, x, shape: steps.op("Reciprocal", steps.op("Sqrt", x)),
    "reciprocal": _named("Reciprocal"),
    "abs": _named("Abs"),
    "neg": _named("Neg"),
    "square": lambda steps, x, shape: steps.op("Mul", x, x),
    "clip": _clip,
    "softsign": _named("Softsign"),
    "logsigmoid": _logsigmoid,
    "sin": _named("Sin"),
    "cos": _named("Cos"),
}
