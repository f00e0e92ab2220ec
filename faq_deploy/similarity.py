"""How close weights stayed to those that training began with (paper 4.8, Fig. 2)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from faq_deploy.layers import FloatLayer

__all__ = ["cosines", "network_similarity", "neuron_cosines", "neuron_similarity", "used_weight", "weights_of"]


def weights_of(net: nn.Module) -> dict[str, Tensor]:
    """A copy of a net's float weights, by layer: every parameter `LAYER.weight` of two dimensions or more.

    In layers of ours the output channel is first, as `neuron_cosines` wants it, also where it isn't in torch
    (transposed convolutions). A batch norm behind a layer is not multiplied in: it would scale each neuron, and no
    cosine depends on that.
    """
    modules = dict(net.named_modules())
    found: dict[str, Tensor] = {}
    for name, value in net.named_parameters():
        layer, _, last = name.rpartition(".")
        if last == "weight" and value.dim() >= 2:
            found[layer.removeprefix("layers.")] = _by_channel(modules[layer], value.detach()).clone()
    return found


@torch.no_grad()
def used_weight(layer: FloatLayer) -> Tensor:
    """A layer's weights as the net multiplies with them, the factor of a live batch norm taken out again.

    Args:
        layer: quantized in mode `quantize`; else these are its float weights.

    Returns:
        Float32, in the layout of `layer.weight`. A channel that its batch norm multiplies by 0 has no weights: zeros.
    """
    weight, _ = layer.constants()
    if layer.norm is None:
        return weight.detach().clone()
    factor, _ = layer.norm.constants()
    alive = factor.abs() > torch.finfo(factor.dtype).tiny ** 0.5  # as LiveNorm has it
    return layer.product.scaled(weight, torch.where(alive, 1 / torch.where(alive, factor, 1.0), 0.0))


@torch.no_grad()
def cosines(a: Tensor, b: Tensor) -> Tensor:
    """The cosine of the angle between each row of `a` and the same row of `b`.

    Args:
        a, b: any float dtype, shape (rows, numbers).

    Returns:
        float64, shape (rows,); exactly 1 where the rows are the same, or one is the other times a power of two. Two
        rows of zeros count as 1, a row of zeros and another one as 0.
    """
    a, b = a.double(), b.double()
    a_square, b_square = a.square().sum(1), b.square().sum(1)
    both = (a_square * b_square).sqrt()  # not the product of two roots: √(s·s) is exactly s
    cosine = (a * b).sum(1) / torch.where(both > 0, both, 1.0)
    return torch.where((a_square == 0) & (b_square == 0), 1.0, cosine.clamp(-1.0, 1.0))


def neuron_cosines(start: Mapping[str, Tensor], now: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The cosine between the weights of each neuron (output channel) then and now.

    Args:
        start: float weights by layer, the output channel first.
        now: the same layers later.

    Returns:
        By layer, in the order of `start`, see `cosines`; shape (channels,).

    Source: paper 4.8.
    """
    return {name: cosines(before.flatten(1), now[name].flatten(1)) for name, before in start.items()}


def neuron_similarity(start: Mapping[str, Tensor], now: Mapping[str, Tensor]) -> dict[str, float]:
    """The mean over each layer's neurons of `neuron_cosines`, by layer."""
    return {name: float(found.mean()) for name, found in neuron_cosines(start, now).items()}


def network_similarity(start: Mapping[str, Tensor], now: Mapping[str, Tensor]) -> float:
    """The mean over all neurons of a net of `neuron_cosines`; the paper's ResNet-18 has 0.994 at 4 bits."""
    return float(torch.cat(list(neuron_cosines(start, now).values())).mean())


def _by_channel(module: nn.Module, weight: Tensor) -> Tensor:
    return module.product.by_channel(weight) if isinstance(module, FloatLayer) else weight
