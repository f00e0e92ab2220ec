"""The quantized network: a graph, a layer for each node, and the modes that they run in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, cast

import torch
from torch import Tensor, nn

from faq_deploy.batch_norm import BatchNormMode
from faq_deploy.fixed_point import FixedPoint, WeightRule, bias_floor, weight_exponents
from faq_deploy.graph import TRANSPARENT, WEIGHTED, Graph, Node
from faq_deploy.layers import (
    ActivationQuantizer,
    Add,
    Concat,
    Flatten,
    GlobalAveragePool,
    Mode,
    QuantizedConv,
    QuantizedLinear,
    Reshape,
    WeightedLayer,
)
from faq_deploy.live_norm import LiveNorm
from faq_deploy.quantized_batch_norm import QuantizedBatchNorm

__all__ = ["QuantizedNet", "WeightRules"]


class WeightRules(dict[int, WeightRule]):
    """The exponent rule of each weight bit width; 7-bit weights follow the 8-bit rule."""

    def of(self, bits: int) -> WeightRule:
        """The rule for `bits`."""
        return self[8 if bits == 7 else bits]


class QuantizedNet(nn.Module):
    """An ordinary module (same input and logits as the float model) made of fixed-point layers.

    Args:
        graph: with `quantize` nodes.
        state: float parameters, keyed `node.weight` and so on.
        per_channel: one weight exponent an output channel, else one a tensor.
        batch_norm: which constants `batch_norm` nodes use.
        rules: weight exponent rules.
        sigma_factor: c of rule `sigma` (A7).
    """

    def __init__(
        self,
        graph: Graph,
        state: Mapping[str, Tensor],
        *,
        per_channel: bool,
        batch_norm: BatchNormMode,
        rules: WeightRules,
        sigma_factor: float,
    ) -> None:
        super().__init__()
        self.graph, self.rules, self.sigma_factor, self.per_channel = graph, rules, sigma_factor, per_channel
        self.batch_norm: BatchNormMode = batch_norm
        self.layers = nn.ModuleDict(
            {node.name: _layer(node, state, per_channel, batch_norm) for node in graph if node.kind != "input"}
        )
        last_reader = {name: node.name for node in graph for name in node.inputs}
        self._spent = {
            node.name: [i for i in dict.fromkeys(node.inputs) if last_reader[i] == node.name and i not in graph.outputs]
            for node in graph
        }

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) float32 to logits (N, classes)."""
        return self._run(x, None)

    def codes(self, x: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Every quantizer's codes (int64, by name) and the logits."""
        found: dict[str, Tensor] = {}
        logits = self._run(x, found)
        return found, logits

    def _run(self, x: Tensor, found: dict[str, Tensor] | None) -> Tensor:
        values: dict[str, Tensor] = {}
        for node in self.graph:
            if node.kind == "input":
                values[node.name] = x
                continue
            layer = self.layers[node.name]
            values[node.name] = layer(*[values[i] for i in node.inputs])
            if found is not None and isinstance(layer, ActivationQuantizer):
                found[node.name] = layer.codes(values[node.name])
            for name in self._spent[node.name]:
                del values[name]
        return values[self.graph.outputs[0]]

    def set_mode(self, mode: Mode) -> None:
        """Put every layer into `float`, `observe` or `quantize`."""
        for layer in self.layers.values():
            if isinstance(layer, (ActivationQuantizer, WeightedLayer, QuantizedBatchNorm)):
                layer.mode = mode

    def quantizers(self) -> dict[str, ActivationQuantizer]:
        """Activation quantizers by name, in graph order."""
        return {name: q for name, q in self.layers.items() if isinstance(q, ActivationQuantizer)}

    def weighted(self) -> dict[str, WeightedLayer]:
        """Convolutions and linear layers by name, in graph order."""
        return {name: q for name, q in self.layers.items() if isinstance(q, WeightedLayer)}

    def source_quantizers(self, name: str) -> list[str]:
        """The quantizers whose codes node `name` reads (several behind a concat); empty if it reads floats."""
        return self._sources(self.graph.by_name(), name)

    def _sources(self, nodes: Mapping[str, Node], name: str) -> list[str]:
        found: list[str] = []
        for source in nodes[name].inputs:
            node = nodes[source]
            inner = [source] if node.kind == "quantize" else []
            if node.kind in TRANSPARENT:
                inner = self._sources(nodes, source)
            if not inner:
                return []
            found += inner
        return list(dict.fromkeys(found))

    @torch.no_grad()
    def link_exponents(self) -> None:
        """Tell every weighted layer its input's exponent; call after calibration."""
        for name, layer in self.weighted().items():
            source = self.layers[self.source_quantizers(name)[0]]  # those behind a concat share one exponent
            layer.input_exponent.copy_(cast(ActivationQuantizer, source).exponent)

    @torch.no_grad()
    def refresh(self) -> None:
        """Recompute all weight exponents from the weights of now (paper 3.1.1: at every iteration)."""
        layers = list(self.weighted().values())
        folded = [layer.folded() for layer in layers]
        found = weight_exponents(
            [weight for weight, _ in folded],
            [layer.grid for layer in layers],
            [self.rules.of(layer.grid.bits) for layer in layers],
            per_channel=self.per_channel,
            sigma_factor=self.sigma_factor,
        )
        for layer, (_, bias), exponent in zip(layers, folded, found, strict=True):
            if bias is not None:
                floor = bias_floor(bias, layer.input_exponent)
                exponent = torch.maximum(exponent, floor if self.per_channel else floor.amax())
            # a channel 2^24 times smaller than its neighbours is dead: fp32 could not add it to them either
            layer.weight_exponent.copy_(torch.maximum(exponent, exponent.amax() - 24))
        for node in self.graph:
            norm = self.layers[node.name] if node.kind == "batch_norm" else None
            if isinstance(norm, QuantizedBatchNorm):
                norm.accumulator_exponent = cast(WeightedLayer, self.layers[node.inputs[0]]).accumulator_exponent
                norm.fit_exponent()


def _grid(node: Node) -> FixedPoint:
    return FixedPoint(node.integer("bits"), bool(node.settings["signed"]), bool(node.settings["narrow"]))


def _layer(node: Node, state: Mapping[str, Tensor], per_channel: bool, batch_norm: BatchNormMode) -> nn.Module:
    if node.kind in WEIGHTED:
        weight = state[f"{node.name}.weight"].clone()
        bias = state.get(f"{node.name}.bias")
        grid = FixedPoint(node.integer("weight_bits"), signed=True, narrow=True)
        bias = None if bias is None else bias.clone()
        norm = _live_norm(node, state)
        if node.kind == "linear":
            return QuantizedLinear(weight, bias, grid, per_channel, norm)
        keys = ("stride", "padding", "dilation")
        window = {key: node.integers(key) for key in keys}
        return QuantizedConv(weight, bias, grid, per_channel, norm, **window, groups=node.integer("groups"))
    if node.kind == "batch_norm":
        tensors = ("weight", "bias", "running_mean", "running_var")
        gamma, beta, mean, var = (state[f"{node.name}.{key}"].clone() for key in tensors)
        eps, momentum = node.settings["eps"], node.settings["momentum"]
        assert isinstance(eps, float) and isinstance(momentum, float) and batch_norm != "fold"
        return QuantizedBatchNorm(gamma, beta, mean, var, eps=eps, momentum=momentum, constants=batch_norm)
    return _plain_layer(node)


def _live_norm(node: Node, state: Mapping[str, Tensor]) -> LiveNorm | None:
    eps, momentum = node.settings.get("norm_eps"), node.settings.get("norm_momentum")
    if not isinstance(eps, float) or not isinstance(momentum, float):
        return None
    keys = ("weight", "bias", "running_mean", "running_var")
    return LiveNorm(*[state[f"{node.name}.norm.{key}"].clone() for key in keys], eps=eps, momentum=momentum)


def _plain_layer(node: Node) -> nn.Module:
    cap = node.settings.get("cap")
    limit = float(cap) if isinstance(cap, (int, float)) else None
    match node.kind:
        case "quantize":
            clip: Literal["relu", "none"] = "relu" if node.text("clip") == "relu" else "none"
            return ActivationQuantizer(_grid(node), clip, limit)
        case "relu":
            return nn.ReLU() if limit is None else nn.Hardtanh(0.0, limit)
        case "add":
            return Add()
        case "cat":
            return Concat()
        case "max_pool":
            kernel, stride, padding, dilation = (node.integers(k) for k in ("kernel", "stride", "padding", "dilation"))
            return nn.MaxPool2d(
                tuple(kernel),
                tuple(stride),
                tuple(padding),
                tuple(dilation),
                ceil_mode=bool(node.settings["ceil_mode"]),
            )
        case "avg_pool":
            kernel, stride, padding = (node.integers(k) for k in ("kernel", "stride", "padding"))
            return nn.AvgPool2d(
                (kernel[0], kernel[1]),
                (stride[0], stride[1]),
                (padding[0], padding[1]),
                bool(node.settings["ceil_mode"]),
                bool(node.settings["count_include_pad"]),
            )
        case "global_avg_pool":
            return GlobalAveragePool()
        case "flatten":
            return Flatten()
        case "reshape":
            return Reshape(node.integers("shape"))
        case "dropout":
            p = node.settings["p"]
            assert isinstance(p, float)
            return nn.Dropout(p)
    raise AssertionError(node.kind)
