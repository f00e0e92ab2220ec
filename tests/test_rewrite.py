"""The rewritten net computes what the model computes, or the model is refused."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from engines.errors import InputError
from faq_deploy.rewrite import rewrite
from tests.quantized import images, make_recipe


class Amplifier(nn.Module):
    """A batch norm of nearly constant channels: it makes rounding errors a million times larger."""

    def __init__(self, variance: float) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, eps=variance), nn.Linear(4, 5)
        with torch.no_grad():
            self.conv.weight.copy_(torch.randn(self.conv.weight.shape) * variance**0.5)
            self.conv.bias.fill_(1.0)  # type: ignore[union-attr]
            self.norm.running_mean.fill_(1.0)  # type: ignore[union-attr]
            self.norm.running_var.fill_(variance)  # type: ignore[union-attr]

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        logits: Tensor = self.head(self.norm(self.conv(x)).mean((2, 3)))
        return logits


def test_a_net_that_amplifies_rounding_is_not_taken_for_a_wrong_rewrite() -> None:
    torch.manual_seed(0)
    model = Amplifier(1e-12).eval()
    net = rewrite(model, images(), make_recipe())
    with torch.no_grad():
        wanted, found = model(images()), net(images())
    assert float((wanted - found).abs().amax() / wanted.abs().amax()) > 1e-3


def test_a_forward_that_computes_something_else_each_time_is_refused() -> None:
    calls: list[int] = []

    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 4, 1), nn.Linear(4, 5)

        def forward(self, x: Tensor) -> Tensor:
            calls.append(1)
            logits: Tensor = self.head(self.conv(x).mean((2, 3))) * len(calls)
            return logits

    with pytest.raises(InputError, match="does not reproduce the model"):
        rewrite(Counting().eval(), images(), make_recipe())
