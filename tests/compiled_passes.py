"""Tests with the compiled passes and without them."""

from __future__ import annotations

import copy
import ctypes
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engines.host import c_compiler
from faq_deploy import compiled, fast_path
from faq_deploy.net import QuantizedNet
from tests.hand_graphs import noise
from tests.quantized import make_recipe, quantized_net

__all__ = [
    *("FIRST", "LAST", "bits", "block", "both", "changed_library", "require_compiled", "trained", "use_plain_path"),
]

FIRST, LAST = torch.contiguous_format, torch.channels_last


def require_compiled() -> None:
    """Skip where this machine can't have them."""
    if reason := fast_path.why_not():
        pytest.skip(f"no compiled passes: {reason}")


def use_plain_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's operations alone from here to the test's end."""
    monkeypatch.setattr(fast_path, "_choice", lambda: fast_path._Choice(None, "a test"))


def bits(x: Tensor) -> Tensor:
    """As integers: NaN equals NaN, and 0 is not -0."""
    return x.detach().contiguous().view(torch.int32)


def both(monkeypatch: pytest.MonkeyPatch, make: Callable[[], list[Tensor]]) -> tuple[list[Tensor], list[Tensor]]:
    """What `make` gives with the compiled passes, and by torch's operations alone."""
    fast = make()
    with monkeypatch.context() as patched:
        use_plain_path(patched)
        return fast, make()


class Block(nn.Module):
    """Batch norms with and without ReLU, a sum, a product without a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 10, 3, padding=1, bias=False)
        self.second = nn.Conv2d(10, 10, 3, padding=1, groups=2, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(10) for _ in range(2))
        self.third = nn.Conv2d(10, 7, 1)
        self.linear = nn.Linear(7, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        x = F.relu(self.norms[0](self.first(x)))
        x = F.relu(self.norms[1](self.second(x)) + x)
        x = F.relu(self.third(x))
        logits: Tensor = self.linear(x.mean((2, 3)))
        return logits


def block(batch_norm: str, bits: int = 8) -> QuantizedNet:
    """`Block` on its grids, in training."""
    torch.manual_seed(0)
    target = "paper" if batch_norm == "paper" else "tensorrt"
    return quantized_net(Block(), make_recipe(target, bits, batch_norm), noise(8, 3, 40, 40, seed=3)).net.train()


def trained(net: QuantizedNet, layout: torch.memory_format) -> list[Tensor]:
    """All float numbers of its state after three steps; the net itself is left as it is."""
    net = copy.deepcopy(net).to(memory_format=layout)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    for seed in range(3):
        net.refresh()
        optimizer.zero_grad()
        x = noise(16, 3, 40, 40, seed=seed).contiguous(memory_format=layout)
        F.cross_entropy(net(x), torch.arange(16) % 4).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return [value for value in net.state_dict().values() if value.dtype == torch.float32]


def changed_library(folder: Path, old: str, new: str) -> ctypes.CDLL:
    """passes.c with other arithmetic."""
    compiler, source, file = c_compiler(), folder / "changed.c", folder / "changed.so"
    assert compiler is not None
    text = Path(compiled.__file__).with_name("passes.c").read_text()
    assert old in text
    source.write_text(text.replace(old, new))
    subprocess.run([compiler, *compiled._FLAGS, source, "-o", file, "-lm"], check=True, timeout=60)
    return ctypes.CDLL(str(file))
