"""What autograd doesn't keep is made again with the same bits, the right way round."""

from __future__ import annotations

import contextlib
import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from faq_deploy import fusions, layers, made_again
from faq_deploy.layers import WeightedLayer
from tests.compiled_passes import bits, block
from tests.hand_graphs import noise
from tests.quantized import make_recipe, quantized_net


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of all tensors that a gradient needed and nobody had kept."""
    shapes: list[tuple[int, ...]] = []
    unpacked = made_again._unpacked

    def noted(packed: object) -> Tensor:
        if isinstance(packed, made_again._View):
            shapes.append(tuple(packed.shape))
        return unpacked(packed)

    monkeypatch.setattr(made_again, "_unpacked", noted)
    return shapes


@pytest.mark.parametrize("batch_norm", ["fold", "paper"])
def test_no_quantized_weight_is_kept_for_the_gradient(batch_norm: str, made: list[tuple[int, ...]]) -> None:
    net = block(batch_norm)
    weighted = [layer for layer in net.modules() if isinstance(layer, WeightedLayer)]
    net(noise(4, 3, 40, 40, seed=1)).square().sum().backward()
    *convolutions, linear = [tuple(layer.weight.shape) for layer in weighted]
    assert len(convolutions) == 3
    assert sorted(made) == sorted([*convolutions, linear[::-1]])  # a linear layer turns its weight round
    assert all(layer.weight.grad is not None for layer in weighted)


class Shortcut(nn.Module):
    """A sum of two convolutions' batch norms, neither of which anything else reads."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(3, 6, 3, padding=1, bias=False) for _ in range(2))
        self.norms = nn.ModuleList(nn.BatchNorm2d(6) for _ in range(2))
        self.linear = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        left, right = (norm(conv(x)) for conv, norm in zip(self.convs, self.norms, strict=True))
        logits: Tensor = self.linear(F.relu(left + right).mean((2, 3)))
        return logits


@pytest.mark.parametrize("batch_norm", ["fold", "paper"])
def test_a_residual_s_term_is_made_again_with_the_same_gradients(
    batch_norm: str, made: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    target = "paper" if batch_norm == "paper" else "tensorrt"
    data = noise(8, 3, 20, 20, seed=3)
    net = quantized_net(Shortcut(), make_recipe(target, 8, batch_norm), data).net.train()
    found = []
    for again in (True, False):
        with monkeypatch.context() as patched:
            if not again:
                for module in (fusions, layers):
                    patched.setattr(module, "made_again", lambda tensor: contextlib.nullcontext())
            ours = copy.deepcopy(net)
            made.clear()
            ours(data).square().sum().backward()
            assert made.count((8, 6, 20, 20)) == int(again)
            found.append([p.grad for p in ours.parameters() if p.grad is not None])
    ours_again, ours_kept = found
    assert len(ours_again) == len(ours_kept) >= 8
    assert all(bits(a).equal(bits(b)) for a, b in zip(ours_again, ours_kept, strict=True))


@pytest.mark.parametrize("kind", ["linear", "pointwise", "grouped", "turned"])
def test_square_weights_are_made_again_the_right_way_round(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A linear layer keeps its weight transposed, which has the same shape and place here."""
    torch.manual_seed(0)
    layer: nn.Module = {
        "linear": nn.Sequential(nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 12)),
        "pointwise": nn.Sequential(nn.Conv2d(12, 12, 1), nn.ReLU(), nn.Conv2d(12, 12, 1)),
        "grouped": nn.Sequential(nn.Conv2d(12, 12, 3, groups=12), nn.ReLU(), nn.Conv2d(12, 12, 1)),
        "turned": nn.Sequential(nn.ConvTranspose2d(12, 12, 3), nn.ReLU(), nn.Conv2d(12, 12, 3)),
    }[kind]
    x = noise(5, 12, seed=1) if kind == "linear" else noise(5, 12, 6, 6, seed=1)
    net = quantized_net(layer, make_recipe("tensorrt", 4), x).net.train()
    found = []
    for again in (True, False):
        with monkeypatch.context() as patched:
            if not again:
                patched.setattr(layers, "made_again", lambda tensor: contextlib.nullcontext())
            ours = copy.deepcopy(net)
            given = x.clone().requires_grad_()
            (ours(given) * noise(*ours(given).shape, seed=2)).sum().backward()
            assert given.grad is not None
            found.append([given.grad, *(p.grad for p in ours.parameters() if p.grad is not None)])
    assert found[0][0].abs().sum() > 0
    assert len(found[0]) == len(found[1]) == 5
    assert all(bits(a).equal(bits(b)) for a, b in zip(*found, strict=True))
