"""What a training says about its own health: exponents that still move, weights that leave their start, overflow."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import torch
from torch import Tensor, nn

from faq_deploy.layers import FloatLayer
from faq_deploy.similarity import network_similarity, neuron_similarity, weights_of

__all__ = ["Closeness", "OverflowWatch", "WeightExponents"]

_FAR: Final = 0.9  # mean cosine of a layer's neurons with their start; the paper's nets end at 0.994


@dataclass
class WeightExponents:
    """The exponents of a net's weights while it trains; counts how many changed, without waiting for the device.

    Args:
        net: any module; only buffers called `weight_exponent` count.
    """

    net: nn.Module

    def __post_init__(self) -> None:
        self.buffers = [value for name, value in self.net.named_buffers() if name.endswith("weight_exponent")]
        self._flips = torch.zeros((), dtype=torch.int64, device=self.buffers[0].device) if self.buffers else None
        self._before = torch.cat(self.buffers) if self.buffers else torch.zeros(0)

    def agree(self, maximum: Callable[[Tensor], Tensor]) -> None:
        """Replace all exponents by their maximum over processes.

        Args:
            maximum: such as `Ranks.maximum`.
        """
        if self.buffers:
            flat = maximum(torch.cat(self.buffers))
            torch._foreach_copy_(self.buffers, torch.split(flat, [len(value) for value in self.buffers]))

    def count(self) -> None:
        """Compare with the exponents of the step before."""
        if self._flips is not None:
            now = torch.cat(self.buffers)
            self._flips += (now != self._before).sum()
            self._before = now

    def go_on(self) -> None:
        """Compare the next step's exponents with those of now, such as after an evaluation has certified them."""
        if self._flips is not None:
            self._before = torch.cat(self.buffers)

    def take(self) -> int:
        """The changes since the last call; waits for the device."""
        if self._flips is None:
            return 0
        flips = int(self._flips)
        self._flips.zero_()
        return flips


@dataclass
class Closeness:
    """How close the weights are to those that training began with (paper 4.8).

    Args:
        net: its weights now are the start.
        pretrained: whether leaving the start is worth a warning; weights that began random must leave it.
    """

    net: nn.Module
    pretrained: bool
    warned: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.start = weights_of(self.net)

    def facts(self) -> dict[str, str | float]:
        """For an epoch's line in `metrics.jsonl`; empty for a net without weights of two dimensions."""
        if not self.start:
            return {}
        now = weights_of(self.net)
        layers = neuron_similarity(self.start, now)
        least = min(layers, key=lambda name: layers[name])
        return {
            "similarity": network_similarity(self.start, now),
            "least_similarity": layers[least],
            "least_similar_layer": least,
        }

    def warning(self, facts: dict[str, str | float]) -> str | None:
        """A sentence, once a layer, where one has left its start."""
        least, cosine = str(facts.get("least_similar_layer", "")), facts.get("least_similarity", 1.0)
        assert isinstance(cosine, float)
        if not self.pretrained or cosine >= _FAR or least in self.warned:
            return None
        self.warned.add(least)
        return (
            f"layer {least} has left its float weights (mean cosine {cosine:.3f}): lower training.lr if accuracy "
            "falls; the paper's nets stay at 0.994."
        )


class OverflowWatch:
    """Names the layer whose output became infinite, which a quantizer would clip and so hide; for fp16 training.

    Args:
        net: hooks are put on its weighted layers.
    """

    def __init__(self, net: nn.Module) -> None:
        layers = {name: m for name, m in net.named_modules() if isinstance(m, (FloatLayer, nn.Conv2d, nn.Linear))}
        self._names = [name.removeprefix("layers.") for name in layers]
        self._found: list[Tensor | None] = [None] * len(layers)
        self._hooks = [m.register_forward_hook(self._hook(number)) for number, m in enumerate(layers.values())]

    def _hook(self, number: int) -> Callable[[nn.Module, object, Tensor], None]:
        def look(module: nn.Module, inputs: object, output: Tensor) -> None:
            if module.training:
                bad = ~output.detach().isfinite().all()
                before = self._found[number]
                self._found[number] = bad if before is None else before | bad

        return look

    def first(self, maximum: Callable[[Tensor], Tensor]) -> str | None:
        """The first layer with an output that was infinite or NaN since the last call; waits for the device.

        Args:
            maximum: over processes, such as `Ranks.maximum`.
        """
        seen = [(name, found) for name, found in zip(self._names, self._found, strict=True) if found is not None]
        self._found = [None] * len(self._names)
        if not seen:
            return None
        flags = maximum(torch.stack([found for _, found in seen]).int()).tolist()
        return seen[flags.index(1)][0] if any(flags) else None

    def close(self) -> None:
        """Take the hooks off."""
        for hook in self._hooks:
            hook.remove()
