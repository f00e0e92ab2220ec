"""A net run in float and quantized side by side, layer by layer: what post-training corrections look at."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from faq_deploy.layers import WeightedLayer
from faq_deploy.live_norm import LiveNorm
from faq_deploy.net import QuantizedNet

__all__ = ["Seen", "mean_output", "mean_tensor", "shift_bias", "walk_side_by_side"]


@dataclass(frozen=True)
class Seen:
    """What one layer reads, a tensor (N, C, ...) a batch.

    Attributes:
        exact: in the float net.
        quantized: with everything before the layer quantized, and corrected already.
    """

    exact: Sequence[Tensor]
    quantized: Sequence[Tensor]


@torch.no_grad()
def walk_side_by_side(
    net: QuantizedNet, batches: Iterable[Tensor], correct: Callable[[WeightedLayer, Seen], None]
) -> None:
    """Run the net node by node over all images, in float and quantized, and correct each layer before it is used.

    All images' tensors that are still to be read are held at once: about 10 MB an image of 224 pixels for
    EfficientNet-Lite0. The net is left in mode `quantize`.

    Args:
        net: calibrated.
        batches: float32 images, shape (N, C, H, W), normalized.
        correct: called for every quantized weighted layer, in graph order; it may change the layer's parameters.
    """
    net.eval()
    net.set_mode("quantize")
    modal = {name for name, layer in net.layers.items() if hasattr(layer, "mode") and not net.is_float(name)}
    images = list(batches)
    exact: dict[str, Sequence[Tensor]] = {}
    quantized: dict[str, Sequence[Tensor]] = {}
    last_reader = {name: node.name for node in net.graph for name in node.inputs}
    for node in net.graph:
        if node.kind == "input":
            exact[node.name] = quantized[node.name] = images
            continue
        layer = net.layers[node.name]
        read = [exact[name] for name in node.inputs], [quantized[name] for name in node.inputs]
        if node.kind == "constant":
            exact[node.name] = quantized[node.name] = [layer(len(batch)) for batch in images]
            continue
        if node.name in modal:
            layer.mode = "float"  # type: ignore[assignment]
        exact[node.name] = [layer(*tensors) for tensors in zip(*read[0], strict=True)]
        if node.name in modal:
            layer.mode = "quantize"  # type: ignore[assignment]
        if isinstance(layer, WeightedLayer):
            correct(layer, Seen(read[0][0], read[1][0]))
        quantized[node.name] = [layer(*tensors) for tensors in zip(*read[1], strict=True)]
        for name in dict.fromkeys(node.inputs):
            if last_reader[name] == node.name:
                del exact[name], quantized[name]


def mean_tensor(batches: Sequence[Tensor]) -> Tensor:
    """The mean over all images, float64, shape (1, C, ...)."""
    total = sum((batch.double().sum(0, keepdim=True) for batch in batches), torch.zeros(()).double())
    return total / sum(len(batch) for batch in batches)


def mean_output(layer: WeightedLayer, mean: Tensor, weight: Tensor) -> Tensor:
    """Mean of the layer's output without bias over images and positions, float64, shape (channels,).

    The layer is linear, so the mean over images needs to pass through it only once.

    Args:
        layer: for its product.
        mean: of what it reads, float64, shape (1, C, ...).
        weight: to use in place of its own.
    """
    output = layer.product(mean, weight.double(), None)
    return output.transpose(0, 1).flatten(1).mean(1)


@torch.no_grad()
def shift_bias(layer: WeightedLayer, shift: Tensor) -> None:
    """Add to a layer's bias, or to the live batch norm's that stands for it.

    Args:
        layer: has either.
        shift: shape (channels,).
    """
    holder: nn.Module = layer if layer.norm is None else layer.norm
    assert isinstance(holder, (WeightedLayer, LiveNorm)) and holder.bias is not None
    holder.bias.add_(shift.to(holder.bias.dtype))
