"""From a graph's nodes and float parameters to layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from torch import Tensor, nn

from faq_deploy.batch_norm import BatchNormMode
from faq_deploy.fixed_point import FixedPoint
from faq_deploy.graph import Node
from faq_deploy.layers import ActivationQuantizer, FloatLayer, WeightedLayer
from faq_deploy.live_norm import LiveNorm
from faq_deploy.norm_layer import ExactNorm
from faq_deploy.plain_layers import (
    Add,
    AveragePool,
    Concat,
    Constant,
    Flatten,
    GlobalAveragePool,
    MaxPool,
    Multiply,
    Pad,
    Permute,
    Reshape,
    Slice,
    StochasticDepth,
    Subtract,
)
from faq_deploy.products import Convolution, MatrixProduct, Product, TransposedConvolution
from faq_deploy.quantized_batch_norm import QuantizedBatchNorm
from faq_deploy.resample import AdaptiveAveragePool, Resize
from faq_deploy.slope import SlopedRelu
from faq_deploy.unary import Shape, Unary

__all__ = ["Surroundings", "build_layer", "grid_of"]


@dataclass(frozen=True)
class Surroundings:
    """What a layer needs to know beside its node.

    Attributes:
        state: float parameters, keyed `node.weight` and so on.
        per_channel: one weight exponent an output channel, else one a tensor.
        batch_norm: which constants `batch_norm` nodes use.
        read: grids of the quantizers whose codes the node reads; empty if it reads floats.
    """

    state: Mapping[str, Tensor]
    per_channel: bool
    batch_norm: BatchNormMode
    read: tuple[FixedPoint, ...]


def build_layer(node: Node, around: Surroundings) -> nn.Module:
    """The layer of any node but an input, in mode `float`."""
    return _BUILD[node.kind](node, around)


def grid_of(node: Node) -> FixedPoint:
    """The codes of a `quantize` node."""
    return FixedPoint(node.integer("bits"), bool(node.settings["signed"]), bool(node.settings["narrow"]))


def _weighted(node: Node, around: Surroundings) -> nn.Module:
    weight = around.state[f"{node.name}.weight"].clone()
    bias = around.state.get(f"{node.name}.bias")
    bias = None if bias is None else bias.clone()
    product, norm = _product(node), _live_norm(node, around.state)
    if node.settings.get("float"):
        return FloatLayer(weight, bias, product, norm)
    grid = FixedPoint(node.integer("weight_bits"), signed=True, narrow=True)
    # engines disagree about the channel axis of a transposed convolution: one exponent in all (U11)
    per_channel = around.per_channel and node.kind != "conv_transpose"
    return WeightedLayer(weight, bias, product, norm, grid=grid, per_channel=per_channel)


def _product(node: Node) -> Product:
    if node.kind == "linear":
        return MatrixProduct()
    stride, padding, dilation = (node.integers(key) for key in ("stride", "padding", "dilation"))
    groups = node.integer("groups")
    if node.kind == "conv":
        return Convolution(stride, padding, dilation, groups)
    return TransposedConvolution(stride, padding, node.integers("output_padding"), dilation, groups)


def _live_norm(node: Node, state: Mapping[str, Tensor]) -> LiveNorm | None:
    eps, momentum = node.settings.get("norm_eps"), node.settings.get("norm_momentum")
    if not isinstance(eps, float) or not isinstance(momentum, float):
        return None
    keys = ("weight", "bias", "running_mean", "running_var")
    return LiveNorm(*[state[f"{node.name}.norm.{key}"].clone() for key in keys], eps=eps, momentum=momentum)


def _batch_norm(node: Node, around: Surroundings) -> nn.Module:
    tensors = ("weight", "bias", "running_mean", "running_var")
    gamma, beta, mean, var = (around.state[f"{node.name}.{key}"].clone() for key in tensors)
    eps, momentum = _number(node, "eps"), _number(node, "momentum")
    assert around.batch_norm != "fold"
    return QuantizedBatchNorm(gamma, beta, mean, var, eps=eps, momentum=momentum, constants=around.batch_norm)


def _norm(node: Node, around: Surroundings) -> nn.Module:
    weight, bias = (around.state[f"{node.name}.{key}"].clone() for key in ("weight", "bias"))
    return ExactNorm(
        weight,
        bias,
        groups=node.integer("groups"),
        spatial=bool(node.settings["spatial"]),
        eps=_number(node, "eps"),
        largest_code=max((max(-grid.min_code, grid.max_code) for grid in around.read), default=0),
        centered=bool(node.settings.get("centered", True)),
    )


def _quantize(node: Node, around: Surroundings) -> nn.Module:
    clip: Literal["relu", "none"] = "relu" if node.text("clip") == "relu" else "none"
    return ActivationQuantizer(grid_of(node), clip, _limit(node, "cap"))


def _relu(node: Node, around: Surroundings) -> nn.Module:
    cap = _limit(node, "cap")
    return nn.ReLU() if cap is None else nn.Hardtanh(0.0, cap)


def _unary(node: Node, around: Surroundings) -> nn.Module:
    shape = Shape(*[_limit(node, key) for key in ("alpha", "low", "high")])
    gain = _limit(node, "gain")
    return Unary(node.text("function"), shape, 1.0 if gain is None else gain)


def _max_pool(node: Node, around: Surroundings) -> nn.Module:
    kernel, stride, padding, dilation = (node.integers(key) for key in ("kernel", "stride", "padding", "dilation"))
    return MaxPool(kernel, stride, padding, dilation, bool(node.settings["ceil_mode"]))


def _avg_pool(node: Node, around: Surroundings) -> nn.Module:
    kernel, stride, padding = (node.integers(key) for key in ("kernel", "stride", "padding"))
    ceil_mode, include = bool(node.settings["ceil_mode"]), bool(node.settings["count_include_pad"])
    return AveragePool(kernel, stride, padding, ceil_mode, include)


def _resize(node: Node, around: Surroundings) -> nn.Module:
    old, new = node.integers("input_size"), node.integers("size")
    return Resize(node.text("mode"), old, new, bool(node.settings.get("align_corners")))


def _slice(node: Node, around: Surroundings) -> nn.Module:
    return Slice(*[node.integer(key) for key in ("axis", "start", "end", "step")])


def _concat(node: Node, around: Surroundings) -> nn.Module:
    return Concat(node.integer("axis") if "axis" in node.settings else 1)


def _constant(node: Node, around: Surroundings) -> nn.Module:
    return Constant(around.state[f"{node.name}.value"].clone(), bool(node.settings["batched"]))


def _sloped(node: Node, around: Surroundings) -> nn.Module:
    return SlopedRelu(around.state[f"{node.name}.weight"].clone(), bool(node.settings["trainable"]))


def _limit(node: Node, key: str) -> float | None:
    value = node.settings.get(key)
    return float(value) if isinstance(value, (int, float)) else None


def _number(node: Node, key: str) -> float:
    value = _limit(node, key)
    assert value is not None, (node.name, key)
    return value


_BUILD: Final[dict[str, Callable[[Node, Surroundings], nn.Module]]] = {
    "constant": _constant,
    "conv": _weighted,
    "conv_transpose": _weighted,
    "linear": _weighted,
    "batch_norm": _batch_norm,
    "norm": _norm,
    "relu": _relu,
    "prelu": _sloped,
    "unary": _unary,
    "quantize": _quantize,
    "add": lambda node, around: Add(),
    "sub": lambda node, around: Subtract(),
    "mul": lambda node, around: Multiply(),
    "cat": _concat,
    "max_pool": _max_pool,
    "avg_pool": _avg_pool,
    "global_avg_pool": lambda node, around: GlobalAveragePool(),
    "adaptive_avg_pool": lambda node, around: AdaptiveAveragePool(node.integers("input_size"), node.integers("size")),
    "resize": _resize,
    "pad": lambda node, around: Pad(node.integers("pads"), node.text("mode")),
    "permute": lambda node, around: Permute(node.integers("perm")),
    "slice": _slice,
    "flatten": lambda node, around: Flatten(),
    "reshape": lambda node, around: Reshape(node.integers("shape")),
    "dropout": lambda node, around: nn.Dropout(_number(node, "p")),
    "stochastic_depth": lambda node, around: StochasticDepth(_number(node, "p")),
}
