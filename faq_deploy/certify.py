"""Weight exponents at which no sum of a layer can round: the floor that recipe field `certify` puts under them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn

from faq_deploy.fixed_point import FixedPoint, ceil_log2, codes_of, in_blocks, in_rows
from faq_deploy.graph import WEIGHTED, Graph
from faq_deploy.layers import ActivationQuantizer, WeightedLayer

__all__ = ["FP32_INTEGERS", "Reach", "certified_exponents", "channel_rows", "largest_sums", "reaches"]

# Every integer up to 2^24 is a float32, so sums that stay within it never round.
FP32_INTEGERS: Final = 2**24

# Codes are rounded anew after each raise, so that a sum may need another one; twice is rare, three times unseen.
_PASSES: Final = 4

_LARGEST_CODE: Final = 127  # of a weight: the narrow 8-bit grid

_LARGEST_BIAS: Final = 2**22  # see `bias_floor`

_BIAS: Final = FixedPoint(32, signed=True)


@dataclass(frozen=True)
class Reach:
    """What comes into a layer's sums besides its own constants.

    Attributes:
        low, high: least and greatest code it reads; 0 lies between them, since padding reads zeros.
        added: largest absolute value that quantized tensors put onto its accumulators before the next quantizer, in
            the tensor's units.
        partners: layers whose accumulators are added to its own.
    """

    low: int
    high: int
    added: float = 0.0
    partners: tuple[str, ...] = ()


def largest_sums(rows: Tensor, bias: Tensor, reach: Reach) -> tuple[Tensor, Tensor]:
    """How far sums of weight code times input code, plus bias, can get from zero, above and below.

    Let P and N be the sums of a row's positive and of its negated negative codes. A product w·x with x in
    [low, high] and low <= 0 <= high lies between w·low and w·high, so the sum of *any* of a channel's products
    lies between low·P - high·N and high·P - low·N; the bias, whenever it is added, moves it by min(bias, 0) to
    max(bias, 0). Every partial sum, in any order and any grouping of the summation, is such a sum. If both ends are
    within 2^24, all partial sums are integers that float32 holds, each addition is exact, and so is a fused
    multiply-add. Both ends are reached: by the inputs that are `high` where the code is positive and `low` elsewhere,
    and the other way round.

    Args:
        rows: integer weight codes as floats, shape (channels, products).
        bias: integer codes as floats, shape (channels,).
        reach: input codes.

    Returns:
        Two float64 tensors (channels,), both >= 0: the greatest sum and the negated least one.
    """
    exact = torch.float32 if rows.shape[1] * _LARGEST_CODE <= FP32_INTEGERS else torch.float64
    total, positive = rows.sum(1, dtype=exact).double(), rows.clamp(min=0).sum(1, dtype=exact).double()
    negative = positive - total
    up = positive * reach.high - negative * reach.low + bias.double().clamp(min=0)
    down = negative * reach.high - positive * reach.low - bias.double().clamp(max=0)
    return up, down


def channel_rows(layer: WeightedLayer, weight: Tensor) -> Tensor:
    """All weights that an output channel sums over, shape (channels, products)."""
    return in_rows(layer.product.by_channel(weight))


def reaches(graph: Graph, layers: nn.ModuleDict) -> dict[str, Reach]:
    """The reach of every weighted layer that reads codes; a layer that reads floats has none.

    Args:
        graph: with quantizers.
        layers: calibrated, by node name.
    """
    codes: dict[str, tuple[int, int]] = {}  # of nodes whose tensor holds nothing but one grid's codes
    largest: dict[str, float] = {}
    for node in graph:
        layer = layers[node.name] if node.kind == "quantize" else None
        if isinstance(layer, ActivationQuantizer):
            codes[node.name] = (layer.grid.min_code, layer.top_code)
            largest[node.name] = max(-layer.grid.min_code, layer.top_code) * 2.0**layer.exponent_number
        elif node.moves_codes and all(i in codes for i in node.inputs):
            codes[node.name] = (min(codes[i][0] for i in node.inputs), max(codes[i][1] for i in node.inputs))
            largest[node.name] = max(largest[i] for i in node.inputs)
    weighted = {
        node.name
        for node in graph
        if node.kind in WEIGHTED and isinstance(layers[node.name], WeightedLayer) and node.inputs[0] in codes
    }
    added = dict.fromkeys((node.name for node in graph), 0.0)
    partners: dict[str, tuple[str, ...]] = dict.fromkeys(added, ())
    for node in reversed(graph.nodes):
        if node.kind in {"add", "sub"}:
            for name, other in (node.inputs, node.inputs[::-1]):
                added[name] = max(added[name], added[node.name] + largest.get(other, 0.0))
                joined = (*partners[name], *partners[node.name], *({other} & weighted))
                partners[name] = tuple(dict.fromkeys(joined))
    return {
        node.name: Reach(*codes[node.inputs[0]], added[node.name], partners[node.name])
        for node in graph
        if node.name in weighted
    }


@torch.no_grad()
def certified_exponents(
    layers: Mapping[str, WeightedLayer],
    folded: Mapping[str, tuple[Tensor, Tensor | None]],
    exponents: Mapping[str, Tensor],
    reached: Mapping[str, Reach],
) -> dict[str, Tensor]:
    """Raise the exponents of the channels whose sums could pass 2^24, and of no others.

    A raise by one halves the codes, and a code never rounds to more than it did before, so no raise makes a layer's
    sums larger. A layer with one exponent for its tensor is raised by what its worst channel needs. What can't be
    mended here stays as it is, and the certificate names it: a sum with a tensor on a finer grid than the layer's.

    Args:
        layers: weighted layers by name.
        folded: float weight and bias of each, as they get quantized.
        exponents: int32 of each, (channels,) or (1,), as the rule found them.
        reached: of each layer that is to be certified.

    Returns:
        int32 tensors of the same shapes.
    """
    found = dict(exponents)
    sums: dict[str, Tensor] = {}
    stale = [n for n, reach in reached.items() if folded[n][1] is not None and _can_pass(layers[n], reach)]
    waiting = list(stale)
    for _ in range(_PASSES):
        for name in stale:
            sums[name] = _sums(layers[name], folded[name], found[name], reached[name])
        excess = {name: _excess(name, layers, found, sums, reached[name]) for name in waiting}
        stale = [name for name in waiting if excess[name].device.type != "cpu" or bool(excess[name].any())]
        if not stale:
            break
        for name in stale:  # a GPU isn't asked which ones: that would make it wait
            found[name] = found[name] + (excess[name] if len(found[name]) > 1 else excess[name].amax())
    return found


def _can_pass(layer: WeightedLayer, reach: Reach) -> bool:
    """Whether the layer has enough products to get past the limit with some codes."""
    products = channel_rows(layer, layer.weight).shape[1]
    largest = products * layer.grid.max_code * max(-reach.low, reach.high) + _LARGEST_BIAS
    return largest > FP32_INTEGERS or reach.added > 0 or bool(reach.partners)


def _sums(layer: WeightedLayer, folded: tuple[Tensor, Tensor | None], exponent: Tensor, reach: Reach) -> Tensor:
    weight, bias = folded
    assert bias is not None
    rows = channel_rows(layer, weight)
    bias_codes = codes_of(bias, exponent + layer.input_exponent, _BIAS)
    parts = in_blocks(rows, exponent.expand(len(rows)), bias_codes)
    ends = (largest_sums(codes_of(few, e.unsqueeze(1), layer.grid), b, reach) for few, e, b in parts)
    return torch.cat([torch.maximum(up, down) for up, down in ends])


def _excess(
    name: str,
    layers: Mapping[str, WeightedLayer],
    exponents: Mapping[str, Tensor],
    sums: Mapping[str, Tensor],
    reach: Reach,
) -> Tensor:
    """By how much the exponents must rise, int32, (channels,)."""
    steps = {n: torch.exp2((exponents[n] + layers[n].input_exponent).double()) for n in (name, *reach.partners)}
    partners = [sums[n] * steps[n] for n in reach.partners if n in sums]
    total = sums[name] + sum(partners, torch.full_like(steps[name], reach.added)) / steps[name]
    return ceil_log2((total / FP32_INTEGERS).clamp(min=1.0))
