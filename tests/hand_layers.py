"""Pieces of hand-written graphs, one for each kind of node and what can be special about it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from faq_deploy.graph import Setting
from tests.hand_graphs import GraphBuilder, noise

__all__ = ["IMAGES", "Make", "dense", "group", "head", "ones", "relu_conv", "transposed", "unary"]

Make = Callable[[GraphBuilder, str], str]


def relu_conv(g: GraphBuilder, x: str, inputs: int, outputs: int, *kernel: int, **settings: Setting) -> str:
    weight = noise(outputs, inputs, *kernel, seed=len(g.nodes)) / (inputs * np.prod(kernel)) ** 0.5
    return g.quantize(g.conv(x, weight, noise(outputs, seed=7) * 0.1, also=settings), relu=True)


def head(g: GraphBuilder, x: str, features: int, shape: list[int]) -> str:
    flat = g.node("flatten", x, shape=shape)
    state = {"weight": noise(5, features, seed=3) / features**0.5, "bias": noise(5, seed=4)}
    return g.node("linear", flat, name="fc", state=state)


def transposed(groups: int, dims: int) -> Make:
    def make(g: GraphBuilder, x: str) -> str:
        n = dims
        weight = noise(4, 6 // groups, *[3] * n, seed=11) * 0.3
        settings: dict[str, Setting] = {
            "stride": [2] * n,
            "padding": [1] * n,
            "output_padding": [1] * n,
            "dilation": [1] * n,
            "groups": groups,
        }
        state = {"weight": weight, "bias": noise(6, seed=12)}
        return g.quantize(g.node("conv_transpose", x, state=state, also=settings), relu=True)

    return make


def _pad(mode: str) -> Make:
    return lambda g, x: relu_conv(g, g.node("pad", x, pads=[0, 1, 2, 0, 2, 1], mode=mode), 4, 6, 3, 3)


def _pad_channels(g: GraphBuilder, x: str) -> str:
    return relu_conv(g, g.node("pad", x, pads=[1, 0, 0, 2, 0, 0], mode="constant"), 7, 6, 3, 3)


def _permute(g: GraphBuilder, x: str) -> str:
    return relu_conv(g, g.node("permute", x, perm=[0, 2, 3, 1]), 6, 5, 3, 3)


def _slice(g: GraphBuilder, x: str) -> str:
    x = g.node("slice", x, axis=1, start=1, end=4, step=2)
    return relu_conv(g, g.node("slice", x, axis=3, start=0, end=5, step=1), 2, 5, 3, 3)


def _cat_rows(g: GraphBuilder, x: str) -> str:
    y = relu_conv(g, x, 4, 4, 1, 1)
    y = g.node("max_pool", y, kernel=[2, 1], stride=[2, 1], padding=[0, 0], dilation=[1, 1], ceil_mode=False)
    z = relu_conv(g, x, 4, 4, 1, 1)
    for name in (y, z):
        group(g, name)
    return relu_conv(g, g.node("cat", y, z, y, axis=2), 4, 6, 3, 3)


def group(g: GraphBuilder, name: str) -> None:
    """Give the quantizer behind `name` the group `joined`."""
    while True:
        position = next(i for i, node in enumerate(g.nodes) if node.name == name)
        if g.nodes[position].kind == "quantize":
            g.nodes[position] = g.nodes[position].with_settings(group="joined")
            return
        name = g.nodes[position].inputs[0]


def _prelu(slopes: int, trainable: bool) -> Make:
    def make(g: GraphBuilder, x: str) -> str:
        state = {"weight": noise(slopes, seed=21) * 0.3}
        return g.quantize(g.node("prelu", x, state=state, trainable=trainable))

    return make


def _mul(g: GraphBuilder, x: str) -> str:
    y = relu_conv(g, x, 4, 4, 1, 1)
    return g.quantize(g.node("mul", y, x))


def _sub(g: GraphBuilder, x: str) -> str:
    y = relu_conv(g, x, 4, 4, 1, 1)
    return g.quantize(g.node("sub", y, x))


def _squeeze(g: GraphBuilder, x: str) -> str:
    pooled = g.quantize(g.node("global_avg_pool", x, positions=36))
    gate = g.quantize(g.conv(pooled, noise(4, 4, 1, 1, seed=2)))
    settings: dict[str, Setting] = {"function": "sigmoid", "alpha": None, "low": None, "high": None, "gain": 1.0}
    gate = g.quantize(g.node("unary", gate, also=settings))
    return g.quantize(g.node("mul", x, gate))


def _constant_sum(g: GraphBuilder, x: str) -> str:
    name = g.node("constant", batched=False, state={"value": noise(1, 4, 6, 6, seed=5)})
    return g.quantize(g.node("add", x, g.quantize(name)))


def _constant_product(g: GraphBuilder, x: str) -> str:
    name = g.node("constant", batched=False, state={"value": noise(1, 4, 1, 6, seed=5)})
    return g.quantize(g.node("mul", x, g.quantize(name)))


def _constant_joined(g: GraphBuilder, x: str) -> str:
    name = g.node("constant", batched=True, state={"value": noise(1, 2, 6, 6, seed=5)})
    c = g.quantize(name)
    for member in (x, c):
        group(g, member)
    return relu_conv(g, g.node("cat", x, c), 6, 4, 3, 3)


def _norm(groups: int, spatial: bool) -> Make:
    def make(g: GraphBuilder, x: str) -> str:
        state = {"weight": noise(4, seed=8) + 1, "bias": noise(4, seed=9)}
        return g.quantize(g.node("norm", x, state=state, groups=groups, spatial=spatial, eps=1e-5))

    return make


def _large_norm(g: GraphBuilder, x: str) -> str:
    """More elements than one sum of squares can hold."""
    x = g.node("pad", x, pads=[0, 30, 30, 0, 30, 30], mode="edge")
    return _norm(1, True)(g, x)


def _resize(mode: str, size: list[int], align_corners: bool = False) -> Make:
    def make(g: GraphBuilder, x: str) -> str:
        settings: dict[str, Setting] = {
            "mode": mode,
            "input_size": [6, 6],
            "size": size,
            "align_corners": align_corners,
        }
        return relu_conv(g, g.quantize(g.node("resize", x, also=settings)), 4, 5, 3, 3)

    return make


def _adaptive(g: GraphBuilder, x: str) -> str:
    return g.quantize(g.node("adaptive_avg_pool", x, input_size=[6, 6], size=[4, 5]))


def _asymmetric(g: GraphBuilder, x: str) -> str:
    x = relu_conv(g, x, 4, 6, 3, 3, padding=[0, 1, 1, 2], stride=[2, 2])
    settings: dict[str, Setting] = {"kernel": [3, 3], "stride": [2, 2], "dilation": [1, 1], "ceil_mode": False}
    return g.node("max_pool", x, padding=[0, 0, 1, 1], also=settings)


def _dropped(g: GraphBuilder, x: str) -> str:
    return relu_conv(g, g.node("stochastic_depth", g.node("dropout", x, p=0.5), p=0.5), 4, 5, 1, 1)


def dense(g: GraphBuilder, x: str, features: int, name: str = "", **settings: Setting) -> str:
    state = {"weight": noise(6, features, seed=13) / features**0.5, "bias": noise(6, seed=14)}
    return g.node("linear", x, name=name, state=state, also=settings)


def unary(g: GraphBuilder, x: str, function: str, **settings: Setting) -> str:
    numbers: dict[str, Setting] = {"alpha": None, "low": None, "high": None, "gain": 1.0}
    return g.node("unary", x, function=function, also={**numbers, **settings})


def ones(channels: int) -> dict[str, Tensor]:
    return {"weight": torch.ones(channels), "bias": torch.zeros(channels)}


IMAGES: dict[str, Make] = {
    "conv_transpose": transposed(1, 2),
    "conv_transpose_grouped": transposed(2, 2),
    "pad_constant": _pad("constant"),
    "pad_reflect": _pad("reflect"),
    "pad_edge": _pad("edge"),
    "pad_channels": _pad_channels,
    "permute": _permute,
    "slice": _slice,
    "cat_rows": _cat_rows,
    "prelu": _prelu(4, True),
    "leaky_relu": _prelu(1, False),
    "mul": _mul,
    "sub": _sub,
    "squeeze": _squeeze,
    "constant_sum": _constant_sum,
    "constant_product": _constant_product,
    "constant_joined": _constant_joined,
    "layer_norm": _norm(1, False),
    "group_norm": _norm(2, True),
    "instance_norm": _norm(4, True),
    "large_norm": _large_norm,
    "nearest": _resize("nearest", [12, 18]),
    "nearest_uneven": _resize("nearest", [10, 4]),
    "nearest_exact": _resize("nearest-exact", [10, 3]),
    "bilinear": _resize("linear", [12, 24]),
    "bilinear_uneven": _resize("linear", [10, 9]),
    "bilinear_corners": _resize("linear", [12, 12], align_corners=True),
    "adaptive_avg_pool": _adaptive,
    "asymmetric": _asymmetric,
    "dropped": _dropped,
}
