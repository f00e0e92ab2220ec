"""Which layers are exact in fp32 in any order of summation, proved from their integers alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, cast

import torch

from faq_deploy.layers import ActivationQuantizer
from faq_deploy.net import QuantizedNet
from faq_deploy.quantized_batch_norm import MULTIPLIER, QuantizedBatchNorm

__all__ = ["FP32_INTEGERS", "LayerBound", "certificate"]

# Every integer up to 2^24 is a float32, so sums that stay below it never round.
FP32_INTEGERS: Final = 2**24


@dataclass(frozen=True)
class LayerBound:
    """The largest sum that a layer can reach, in units of its accumulator's step.

    Attributes:
        name: of the layer.
        worst: max over channels of (Σ|w|·x_max)·k + |bias|, with k the integer of an absorbed batch norm
            multiplier (1 in `fold`).
        channel: where.
        dead_channels: channels whose weight codes are all zero.
    """

    name: str
    worst: int
    channel: int
    dead_channels: int

    @property
    def ratio(self) -> float:
        """`worst` over 2^24; at most 1 means exact in fp32 in any order."""
        return self.worst / FP32_INTEGERS

    @property
    def proven(self) -> bool:
        """Whether no input can make the layer round."""
        return self.worst <= FP32_INTEGERS


def certificate(net: QuantizedNet) -> list[LayerBound]:
    """One bound a weighted layer, in graph order. Data-independent: it holds for every image.

    Args:
        net: calibrated.

    Source: a float32 has 24 significant bits; design 4.
    """
    norms = {node.inputs[0]: node.name for node in net.graph if node.kind == "batch_norm"}
    return [_bound(net, name, norms.get(name)) for name in net.weighted()]


def _bound(net: QuantizedNet, name: str, norm: str | None) -> LayerBound:
    layer = net.weighted()[name]
    sources = [cast(ActivationQuantizer, net.layers[s]) for s in net.source_quantizers(name)]
    largest = max(max(abs(s.grid.min_code), s.top_code) for s in sources)
    codes = layer.weight_codes().to(torch.int64).abs().flatten(1).sum(1)
    if norm is None:
        worst = codes * largest + layer.bias_codes().to(torch.int64).abs()
    else:
        batch_norm = cast(QuantizedBatchNorm, net.layers[norm])
        with torch.no_grad():
            a, c = batch_norm.constants(batch_norm.running_mean, batch_norm.running_var)
            step = 2.0 ** float(batch_norm.multiplier_exponent)
            k = (a / step).abs().round().clamp(max=MULTIPLIER.max_code).to(torch.int64)
            # in the finest unit that the layer's sum has, accumulator step x 2^l of the multiplier
            bias = (c.double() / batch_norm.bias_step(a).double()).abs().round().to(torch.int64)
        worst = codes * largest * k + bias * k.clamp(min=1)
    channel = int(worst.argmax())
    return LayerBound(name, int(worst[channel]), channel, int((codes == 0).sum()))
