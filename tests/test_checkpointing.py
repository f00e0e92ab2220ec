"""Gradient checkpointing around a prepared model gives the gradients and statistics that the plain loop gives."""

from __future__ import annotations

import contextlib
import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from faq_deploy.net import QuantizedNet
from tests.compiled_passes import bits, block, use_plain_path
from tests.hand_graphs import noise


def trained(net: QuantizedNet, reentrant: bool | None) -> list[Tensor]:
    """Gradients and state after three steps.

    Args:
        net: left as it is.
        reentrant: which kind of checkpointing; None for none.
    """
    net = copy.deepcopy(net)
    gradients: list[Tensor] = []
    for seed in range(3):
        net.refresh()
        net.zero_grad()
        x = noise(8, 3, 24, 24, seed=seed).requires_grad_()
        logits = net(x) if reentrant is None else checkpoint(net, x, use_reentrant=reentrant)
        torch.autograd.backward(F.cross_entropy(logits, torch.arange(8) % 4))
        with torch.no_grad():
            for parameter in net.parameters():
                assert parameter.grad is not None
                gradients.append(parameter.grad.clone())
                parameter.sub_(parameter.grad, alpha=0.05)
    return gradients + [value for value in net.state_dict().values() if value.dtype == torch.float32]


@pytest.mark.parametrize("plain", [False, True], ids=["compiled", "plain"])
@pytest.mark.parametrize("reentrant", [False, True], ids=["hooks", "reentrant"])
@pytest.mark.parametrize("batch_norm", ["fold", "paper", "fit"])
def test_the_repeated_forward_pass_is_the_first_one(
    batch_norm: str, reentrant: bool, plain: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if plain:
        use_plain_path(monkeypatch)
    net = block(batch_norm)
    wanted, found = trained(net, None), trained(net, reentrant)
    assert len(wanted) > 20
    assert all(bits(one).equal(bits(other)) for one, other in zip(wanted, found, strict=True))


def test_tensors_are_kept_as_somebody_s_hooks_say() -> None:
    net, x, found = block("fold"), noise(8, 3, 24, 24, seed=1), []
    for context in (contextlib.nullcontext(), torch.autograd.graph.save_on_cpu()):
        ours = copy.deepcopy(net)
        with context:
            loss = ours(x).square().sum()
        found.append(torch.autograd.grad(loss, list(ours.parameters())))
    assert len(found[0]) > 8
    assert all(bits(one).equal(bits(other)) for one, other in zip(*found, strict=True))
