"""Which exponents a net has, and how well its tensors fill their codes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from faq_deploy.fixed_point import FixedPoint
from faq_deploy.net import QuantizedNet

__all__ = ["Occupancy", "activation_occupancy", "exponent_counts", "occupancy_of", "weight_occupancy"]


@dataclass(frozen=True)
class Occupancy:
    """How a tensor's values spread over its codes.

    Attributes:
        name: of the layer or quantizer.
        bits: of a code.
        lowest_exponent, highest_exponent: of its steps; they differ where each output channel has its own.
        used: share of the codes that occur.
        entropy: of the codes, in bits; at most `bits`.
        clipped: share of the values on the highest code, or on the lowest of a signed grid.
        zero: share of the values on code 0.
    """

    name: str
    bits: int
    lowest_exponent: int
    highest_exponent: int
    used: float
    entropy: float
    clipped: float
    zero: float


def weight_occupancy(net: QuantizedNet) -> list[Occupancy]:
    """One record a quantized layer, in graph order."""
    found = []
    for name, layer in net.weighted().items():
        exponents = layer.weight_exponent.tolist()
        counts = _counts(layer.weight_codes(), layer.grid)
        found.append(occupancy_of(counts, name, layer.grid, min(exponents), max(exponents)))
    return found


@torch.inference_mode()
def activation_occupancy(net: QuantizedNet, batches: Iterable[Tensor]) -> list[Occupancy]:
    """One record an activation quantizer, in graph order.

    Args:
        net: in eval and quantized mode.
        batches: images, float32, (N, C, H, W); at least one batch.
    """
    quantizers = net.quantizers()
    sums: dict[str, Tensor] = {}
    for images in batches:
        for name, codes in net.codes(images)[0].items():
            counts = _counts(codes, quantizers[name].grid)
            sums[name] = counts if name not in sums else sums[name] + counts
    exponents = {name: int(quantizers[name].exponent) for name in sums}
    return [occupancy_of(c, n, quantizers[n].grid, exponents[n], exponents[n]) for n, c in sums.items()]


def exponent_counts(net: QuantizedNet) -> tuple[dict[int, int], dict[int, int]]:
    """How many weight exponents (one a channel, or one a tensor) and activation exponents there are of each value."""
    weights = Counter(e for layer in net.weighted().values() for e in layer.weight_exponent.tolist())
    activations = Counter(int(quantizer.exponent) for quantizer in net.quantizers().values())
    return dict(sorted(weights.items())), dict(sorted(activations.items()))


def occupancy_of(counts: Tensor, name: str, grid: FixedPoint, lowest: int, highest: int) -> Occupancy:
    """A record from how often each code occurs.

    Args:
        counts: int64, from the lowest code to the highest.
        name: of the tensor.
        grid: of its codes.
        lowest, highest: its exponents.
    """
    total = max(int(counts.sum()), 1)
    share = counts[counts > 0].double() / total
    ends = int(counts[-1]) + (int(counts[0]) if grid.signed else 0)
    entropy = max(float(-(share * share.log2()).sum()), 0.0)
    used = int((counts > 0).sum()) / len(counts)
    zero = int(counts[-grid.min_code])
    return Occupancy(name, grid.bits, lowest, highest, used, entropy, ends / total, zero / total)


def _counts(codes: Tensor, grid: FixedPoint) -> Tensor:
    shifted = codes.flatten().to(torch.int64) - grid.min_code
    return torch.bincount(shifted, minlength=grid.max_code - grid.min_code + 1)
