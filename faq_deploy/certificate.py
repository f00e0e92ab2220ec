"""Which sums of a net are exact in fp32 in any order of summation, proved from its integers alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, cast

import torch
from torch import Tensor

from faq_deploy.certify import FP32_INTEGERS, Reach, channel_rows, largest_sums, reaches
from faq_deploy.graph import Node
from faq_deploy.layers import ActivationQuantizer, WeightedLayer
from faq_deploy.net import QuantizedNet
from faq_deploy.quantized_batch_norm import MULTIPLIER, QuantizedBatchNorm

__all__ = ["FP32_INTEGERS", "LayerBound", "certificate", "over_the_bound", "proof_sentence"]

_ADDS: Final = frozenset({"add", "sub"})
_KEEPS_CHANNELS: Final = frozenset({"max_pool", "dropout", "stochastic_depth"})


@dataclass(frozen=True)
class LayerBound:
    """The largest sum that a node can reach, in units of its accumulator's step.

    Attributes:
        name: of the node.
        kind: of the node: a weighted layer, an add or a pool.
        worst: largest absolute value of any partial sum, over all channels and all inputs. In modes `paper` and
            `fit` it is multiplied by the channel's integer k (see `_multiplied`).
        channel: where; 0 for nodes without channels of their own.
        dead_channels: channels whose weight codes are all zero.
    """

    name: str
    kind: str
    worst: int
    channel: int
    dead_channels: int

    @property
    def ratio(self) -> float:
        """`worst` over 2^24; at most 1 means exact in fp32 in any order."""
        return self.worst / FP32_INTEGERS

    @property
    def proven(self) -> bool:
        """Whether no input can make the node round."""
        return self.worst <= FP32_INTEGERS

    def as_dict(self) -> dict[str, object]:
        """For JSON and the ONNX metadata."""
        return {
            "kind": self.kind,
            "worst": self.worst,
            "ratio": round(self.ratio, 6),
            "channel": self.channel,
            "proven": self.proven,
        }


def certificate(net: QuantizedNet) -> list[LayerBound]:
    """A bound for each layer, add and average pool that computes with codes, in graph order.

    Data-independent: it holds for every image. Nodes that read floats (kept in float by the user) have no bound.

    Args:
        net: calibrated.

    Source: a float32 has 24 significant bits; design 4. The proof is told at `largest_sums`.
    """
    return _Certificate(net).run()


def proof_sentence(bounds: Sequence[LayerBound]) -> str:
    """How much is proven, for people."""
    proven = sum(b.proven for b in bounds)
    count = f"All {len(bounds)}" if proven == len(bounds) else f"{proven} of {len(bounds)}"
    return f"{count} layers, adds and pools are proven exact in fp32 for every input (no sum passes 2^24)"


def over_the_bound(bounds: Sequence[LayerBound], most: int = 8) -> str:
    """The nodes that aren't proven with their worst cases, the worst first."""
    over = sorted((b for b in bounds if not b.proven), key=lambda b: -b.ratio)
    rest = [f"{len(over) - most} more"] if len(over) > most else []
    return ", ".join([f"{b.name} {b.ratio:.2f} x" for b in over[:most]] + rest)


@dataclass(frozen=True)
class _Extent:
    """Values code·2^exponent with codes from -down to up: float64 tensors, (channels,) or (1,)."""

    exponent: Tensor
    up: Tensor
    down: Tensor

    def largest(self) -> Tensor:
        return torch.maximum(self.up, self.down)

    def without_channels(self) -> _Extent:
        """The same for a tensor whose elements are elsewhere now."""
        lowest = self.exponent.amin()
        up, down = (e * torch.exp2(self.exponent - lowest) for e in (self.up, self.down))
        return _Extent(lowest.reshape(1), up.amax().reshape(1), down.amax().reshape(1))


class _Certificate:
    """A walk over a net: what every tensor can hold, and the bounds found on the way."""

    def __init__(self, net: QuantizedNet) -> None:
        self.net = net
        self.reaches = reaches(net.graph, net.layers)
        self.norms = {node.inputs[0]: node for node in net.graph if node.kind == "batch_norm"}
        self.extents: dict[str, _Extent] = {}  # of tensors that hold integers times a power of two
        self.bounds: list[LayerBound] = []

    @torch.no_grad()
    def run(self) -> list[LayerBound]:
        for node in self.net.graph:
            step = _WALK.get(node.kind)
            if step is not None:
                step(self, node)
            elif node.moves_codes and all(i in self.extents for i in node.inputs):
                self.extents[node.name] = self._moved(node)
        return self.bounds

    def _moved(self, node: Node) -> _Extent:
        sources = [self.extents[i] for i in node.inputs]
        if node.kind in _KEEPS_CHANNELS:
            return sources[0]
        sources = [s.without_channels() for s in sources]
        joined = _Extent(*[torch.cat([getattr(s, part) for s in sources]) for part in ("exponent", "up", "down")])
        return joined.without_channels()

    def quantize(self, node: Node) -> None:
        layer = cast(ActivationQuantizer, self.net.layers[node.name])
        ends = [float(layer.exponent_number), float(layer.top_code), float(-layer.grid.min_code)]
        self.extents[node.name] = _Extent(*torch.tensor(ends, dtype=torch.float64).reshape(3, 1).unbind())

    def weighted(self, node: Node) -> None:
        reach = self.reaches.get(node.name)
        if reach is None:
            return
        layer = cast(WeightedLayer, self.net.layers[node.name])
        rows = channel_rows(layer, layer.weight_codes().double()).cpu()
        norm = self.norms.get(node.name)
        if norm is None:
            bias = layer.bias_codes().double().cpu()
            up, down = largest_sums(rows, bias, reach)
            extent = _Extent(layer.accumulator_exponent.double().cpu(), up, down)
        else:
            batch_norm = cast(QuantizedBatchNorm, self.net.layers[norm.name])
            extent = _multiplied(rows, batch_norm, reach)
            self.extents[norm.name] = extent
        self.extents[node.name] = extent
        self._record(node, extent.largest(), int((rows == 0).all(1).sum()))

    def relu(self, node: Node) -> None:
        source = self.extents.get(node.inputs[0])
        if source is not None and node.settings.get("cap") is None:
            self.extents[node.name] = _Extent(source.exponent, source.up, torch.zeros_like(source.down))

    def add(self, node: Node) -> None:
        sources = [self.extents.get(i) for i in node.inputs]
        left, right = sources[0], sources[-1]
        if left is None or right is None:
            return
        if len({len(left.up), len(right.up), 1}) > 2:  # channels of one meet other axes of the other
            left, right = left.without_channels(), right.without_channels()
        if node.kind == "sub":
            right = _Extent(right.exponent, right.down, right.up)
        exponent = torch.minimum(left.exponent, right.exponent)
        up, down = (
            a * torch.exp2(left.exponent - exponent) + b * torch.exp2(right.exponent - exponent)
            for a, b in ((left.up, right.up), (left.down, right.down))
        )
        self.extents[node.name] = _Extent(exponent, up, down)
        self._record(node, torch.maximum(up, down))

    def mul(self, node: Node) -> None:
        left, right = self.extents.get(node.inputs[0]), self.extents.get(node.inputs[-1])
        if left is None or right is None:
            return
        if len({len(left.up), len(right.up), 1}) > 2:
            left, right = left.without_channels(), right.without_channels()
        up = torch.maximum(left.up * right.up, left.down * right.down)
        down = torch.maximum(left.up * right.down, left.down * right.up)
        self.extents[node.name] = _Extent(left.exponent + right.exponent, up, down)

    def pool(self, node: Node) -> None:
        """The sum alone: what the division makes of it is one IEEE operation, and no integer."""
        source = self.extents.get(node.inputs[0])
        if source is not None:
            self._record(node, source.largest() * _summed(node))

    def _record(self, node: Node, largest: Tensor, dead_channels: int = 0) -> None:
        channel = int(largest.argmax())
        self.bounds.append(LayerBound(node.name, node.kind, int(largest[channel]), channel, dead_channels))


_WALK: Final[dict[str, Callable[[_Certificate, Node], None]]] = {
    "quantize": _Certificate.quantize,
    "conv": _Certificate.weighted,
    "conv_transpose": _Certificate.weighted,
    "linear": _Certificate.weighted,
    "relu": _Certificate.relu,
    "add": _Certificate.add,
    "sub": _Certificate.add,
    "mul": _Certificate.mul,
    "avg_pool": _Certificate.pool,
    "global_avg_pool": _Certificate.pool,
    "adaptive_avg_pool": _Certificate.pool,
}


def _multiplied(rows: Tensor, batch_norm: QuantizedBatchNorm, reach: Reach) -> _Extent:
    """A layer whose batch norm has the integer multiplier k (modes `paper` and `fit`).

    Engines see the layer with steps of 2^(l_x + l_w + l_a)·|k|, and k's odd part takes bits of the 24 away.
    """
    a, c = batch_norm.constants(batch_norm.running_mean, batch_norm.running_var)
    shift = float(batch_norm.multiplier_exponent)
    k = (a.double() * 2.0**-shift).round().clamp(MULTIPLIER.min_code, MULTIPLIER.max_code)
    bias = (c.double() / batch_norm.bias_step(a).double()).round()
    up, down = largest_sums(rows * k.sign().unsqueeze(1), bias, reach)
    even = torch.tensor([float(int(n) & -int(n)) for n in torch.where(k == 0, 1.0, k)], dtype=torch.float64)
    odd = torch.where(k == 0, 1.0, k.abs()) / even
    exponent = batch_norm.accumulator_exponent.double() + torch.where(k == 0, 0.0, shift) + even.log2()
    return _Extent(exponent, up * odd, down * odd)


def _summed(node: Node) -> int:
    """How many numbers an average pool adds up for one of its own, at most."""
    if node.kind == "avg_pool":
        return math.prod(node.integers("kernel"))
    if node.kind == "global_avg_pool":
        return node.integer("positions")
    sizes = zip(node.integers("input_size"), node.integers("size"), strict=True)
    return math.prod(_largest_window(whole, parts) for whole, parts in sizes)


def _largest_window(whole: int, parts: int) -> int:
    """Of an adaptive pool along one axis: window i goes from floor(i·whole/parts) to ceil((i+1)·whole/parts)."""
    return max(-(-(i + 1) * whole // parts) - i * whole // parts for i in range(parts))
