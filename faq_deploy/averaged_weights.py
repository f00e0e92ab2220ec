"""The moving average of a net's weights: steadier than its last step, where codes flip to and fro."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

__all__ = ["AveragedWeights"]

_RUNNING = ("running_mean", "running_var")


class AveragedWeights:
    """An exponential moving average of parameters and running statistics, and the way to put it into the net and back.

    A weight that lies between two codes flips between them from step to step, and with it an exponent or a running
    variance moves all codes of a channel. The last step is one draw of that; the average is its middle.

    Args:
        net: whose tensors of now are the first average.
        decay: of the average, from 0 to below 1: each step's weights enter with 1 minus it.
    """

    def __init__(self, net: nn.Module, decay: float) -> None:
        self.decay = decay
        self._net = net
        running = {name: value for name, value in net.named_buffers() if name.rpartition(".")[2] in _RUNNING}
        self._tensors = {name: value.detach() for name, value in net.named_parameters()} | running
        self._averages = {name: value.clone() for name, value in self._tensors.items()}
        self._others: list[tuple[Tensor, Tensor]] = []

    @torch.no_grad()
    def add(self) -> None:
        """Take in the weights of now."""
        torch._foreach_lerp_(list(self._averages.values()), list(self._tensors.values()), 1 - self.decay)

    @torch.no_grad()
    def put_in(self) -> None:
        """Let the net compute with the average; exponents and other buffers may change until `take_out`."""
        known = {id(value) for value in self._tensors.values()}
        self._others = [(value, value.clone()) for value in self._net.buffers() if id(value) not in known]
        self._exchange()

    @torch.no_grad()
    def take_out(self) -> None:
        """Give the net back what it had before `put_in`, every buffer included."""
        self._exchange()
        for value, before in self._others:
            value.copy_(before)
        self._others = []

    def state(self) -> dict[str, Tensor]:
        """The average by name, for a checkpoint."""
        return dict(self._averages)

    @torch.no_grad()
    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state` gave; names that the net doesn't have are left out."""
        for name, average in self._averages.items():
            if name in state:
                average.copy_(state[name])

    def _exchange(self) -> None:
        for name, value in self._tensors.items():
            average = self._averages[name]
            before = value.clone()
            value.copy_(average)
            average.copy_(before)
