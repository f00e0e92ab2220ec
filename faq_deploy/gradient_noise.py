"""How much noise quantized weights bring into training: the paper's Fig. 1, and a simpler measure beside it."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from engines.errors import InputError
from faq_deploy.fixed_point import FixedPoint
from faq_deploy.layers import WeightedLayer
from faq_deploy.live_norm import LiveNorm
from faq_deploy.net import QuantizedNet
from faq_deploy.place import inner_layers
from faq_deploy.quantized_batch_norm import QuantizedBatchNorm
from faq_deploy.ranks import Ranks
from faq_deploy.recipe import TrainingSection
from faq_deploy.repeatable import reseed
from faq_deploy.similarity import cosines, used_weight
from faq_deploy.update_step import UpdateStep, memory_format_of

__all__ = ["Batch", "GradientNoise", "StepNoise", "Walk", "gradient_noise", "step_noise", "with_weight_bits"]

Batch = tuple[Tensor, Tensor]

_SMOOTHING = 0.9  # of the steps taken (paper 4.7)
_COUNTED = 4  # the last quarter of the steps counts: what comes before is no typical training yet


@dataclass(frozen=True)
class GradientNoise:
    """Cosines between gradients of the same weights, by layer, each the mean over batches; 1 is no noise.

    Attributes:
        quantized: by weight width and layer, between the gradient with quantized and that with float weights.
        batches: between those of two batches after each other, with float weights: SGD's own noise, for comparison.
            Empty where there was one batch.
    """

    quantized: dict[int, dict[str, float]]
    batches: dict[str, float]


@dataclass(frozen=True)
class StepNoise:
    """Cosines between the step that SGD calls for and the steps taken, by layer (paper 4.7); 1 is no noise.

    Attributes:
        quantized: against the moving average of what the quantized weights did.
        floating: against that of what their float copies did: what the smoothing alone leaves of 1.
    """

    quantized: dict[str, float]
    floating: dict[str, float]


def with_weight_bits(net: QuantizedNet, bits: int) -> QuantizedNet:
    """A copy of a net in training mode whose inner layers (see `inner_layers`) have weights of another width.

    Args:
        net: calibrated. Activations, and the layers with a width of their own, stay as they are.
        bits: 2 to 8.
    """
    changed = copy.deepcopy(net).train()
    changed.set_mode("quantize")
    _set_weight_bits(changed, bits)
    return changed


def gradient_noise(
    net: QuantizedNet, batches: Iterable[Batch], widths: Sequence[int], training: TrainingSection, ranks: Ranks
) -> GradientNoise:
    """Compare the gradients of the cross entropy with quantized and with float weights, at several widths.

    Nothing else differs: activations are quantized on the net's own grids in both, and images, dropout and the
    running statistics of batch norms are the same.

    Args:
        net: calibrated; left as it is.
        batches: at least one; images (N, C, H, W) float32 and labels (N,) int64.
        widths: bits of the weights, 2 to 8.
        training: its seed and memory format count.
        ranks: one process, with the device to compute on.

    Raises:
        InputError: a gradient is NaN or infinite.
    """
    net = with_weight_bits(net, widths[0])
    layout = memory_format_of(net, training)
    net.to(ranks.device, memory_format=layout)  # type: ignore[call-overload]
    for module in net.modules():
        if isinstance(module, (LiveNorm, QuantizedBatchNorm)):
            module.momentum = 0.0  # running statistics stay; they are in the folded weights
    layers = net.weighted()
    sums = {bits: torch.zeros(len(layers), dtype=torch.float64, device=ranks.device) for bits in widths}
    between, before, count = torch.zeros_like(sums[widths[0]]), None, 0
    for count, (images, labels) in enumerate(batches, 1):
        images, labels = images.to(ranks.device), labels.to(ranks.device)
        if images.dim() == 4:
            images = images.contiguous(memory_format=layout)
        reseed(training.seed, count, ranks)
        plain = _gradients(net, images, labels, "float")
        for bits in widths:
            _set_weight_bits(net, bits)
            reseed(training.seed, count, ranks)
            sums[bits] += _layer_cosines(_gradients(net, images, labels, "quantize"), plain)
        if before is not None:
            between += _layer_cosines(plain, before)
        before = plain
    found = {bits: _by_layer(layers, total / count) for bits, total in sums.items()}
    for bits, values in found.items():
        _require_finite(values, bits)
    return GradientNoise(found, _by_layer(layers, between / (count - 1)) if count > 1 else {})


def step_noise(
    net: QuantizedNet,
    batches: Iterable[Batch],
    steps: int,
    training: TrainingSection,
    ranks: Ranks,
    *,
    teacher: QuantizedNet | None = None,
    on_step: Callable[[], None] = lambda: None,
) -> StepNoise:
    """Train a net, and compare the step that SGD with momentum calls for with the steps taken.

    With float copies w and the weights Q(w) that the net multiplies with, the step called for is w(t) - w(t-1), the
    one taken Q(w(t)) - Q(w(t-1)); the latter go into a moving average with factor 0.9. Where a batch norm is folded
    into Q, its factor is taken out again, so that both are steps of the same weights. Angles are averaged over the
    last quarter of the steps; the result is the cosine of that.

    Args:
        net: from `with_weight_bits`; trained.
        batches: at least `steps`, on any device.
        steps: of the optimizer, a batch each.
        training: the recipe's; the learning rate of its first epoch is kept.
        ranks: one process, with the device to train on.
        teacher: the float net, where `training.distill` is over 0.
        on_step: called after each.

    Raises:
        InputError: training diverged.

    Source: paper 4.7, Fig. 1.
    """
    net.to(ranks.device)
    optimizer = torch.optim.SGD(net.parameters(), training.lr, training.momentum, weight_decay=training.weight_decay)
    update = UpdateStep(net, optimizer, training, ranks, net.before_step, teacher)
    layers = net.weighted()
    walk = Walk(list(layers.values()))
    angles = torch.zeros(2, len(layers), dtype=torch.float64, device=ranks.device)
    counted = max(1, steps // _COUNTED)
    try:
        for number, (images, labels) in enumerate(itertools.islice(batches, steps)):
            update.begin(0)
            if number > 0:
                angles += walk.go_on() * (number > steps - counted)
            else:
                walk.start()
            reseed(training.seed, number, ranks)
            update.add(*update.on_device(images, labels), len(labels), last=True)
            update.finish()
            on_step()
        update.begin(0)
        angles += walk.go_on()
    finally:
        update.close()
    quantized, floating = (_by_layer(layers, row) for row in (angles / counted).cos())
    _require_finite(quantized, min(layer.grid.bits for layer in layers.values()))
    return StepNoise(quantized, floating)


class Walk:
    """The way of some layers' weights, as floats and as the net uses them.

    Args:
        layers: on one device.
    """

    def __init__(self, layers: Sequence[WeightedLayer]) -> None:
        self._layers = layers

    def start(self) -> None:
        """Begin where the weights are."""
        self._plain, self._used = self._look()
        self._plain_steps = [torch.zeros_like(weight) for weight in self._plain]
        self._used_steps = [torch.zeros_like(weight) for weight in self._plain]

    @torch.no_grad()
    def go_on(self) -> Tensor:
        """The angles between the float weights' last step and the averages of the steps taken.

        Returns:
            Radians, float64, shape (2, layers): against those of the weights in use, and of the float weights.
        """
        plain, used = self._look()
        called_for = [now - then for now, then in zip(plain, self._plain, strict=True)]
        taken = [now - then for now, then in zip(used, self._used, strict=True)]
        torch._foreach_lerp_(self._plain_steps, called_for, 1 - _SMOOTHING)
        torch._foreach_lerp_(self._used_steps, taken, 1 - _SMOOTHING)
        self._plain, self._used = plain, used
        averages = (self._used_steps, self._plain_steps)
        return torch.stack([_layer_cosines(called_for, average) for average in averages]).acos()

    def _look(self) -> tuple[list[Tensor], list[Tensor]]:
        plain = [layer.weight.detach().clone() for layer in self._layers]
        return plain, [used_weight(layer) for layer in self._layers]


def _set_weight_bits(net: QuantizedNet, bits: int) -> None:
    layers = net.weighted()
    for name in inner_layers(net.graph):
        layers[name].grid = FixedPoint(bits, signed=True, narrow=True)
    net.refresh()


def _gradients(net: QuantizedNet, images: Tensor, labels: Tensor, mode: str) -> list[Tensor]:
    """Of every weighted layer's weights; the layers' own mode is left at `mode`."""
    layers = net.weighted().values()
    for layer in layers:
        layer.mode = "quantize" if mode == "quantize" else "float"
    loss = F.cross_entropy(net(images), labels)
    return list(torch.autograd.grad(loss, [layer.weight for layer in layers]))


def _layer_cosines(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    """One cosine a layer, float64."""
    return torch.cat([cosines(x.reshape(1, -1), y.reshape(1, -1)) for x, y in zip(a, b, strict=True)])


def _by_layer(layers: Mapping[str, WeightedLayer], values: Tensor) -> dict[str, float]:
    return dict(zip(layers, values.tolist(), strict=True))


def _require_finite(values: Mapping[str, float], bits: int) -> None:
    for name, value in values.items():
        if not math.isfinite(value):
            raise InputError(
                f"The gradients of {name} became NaN or infinite with {bits}-bit weights.",
                f"leave --bits {bits} out, or take a run with a lower learning rate.",
            )
