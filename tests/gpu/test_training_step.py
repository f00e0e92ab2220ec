"""A step of fine-tuning on a GPU: it never waits for the device."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tests.nets import Small, with_statistics
from tests.quantized import images, make_recipe, quantized_net

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU"),
]


@pytest.mark.parametrize("batch_norm", ["fold", "paper"])
def test_the_host_waits_for_nothing_in_a_step(batch_norm: str) -> None:
    net = quantized_net(with_statistics(Small()), make_recipe(batch_norm=batch_norm)).net.cuda().train()
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9)
    batch, labels = images().cuda(), torch.zeros(len(images()), dtype=torch.int64, device="cuda")

    def step() -> None:
        net.refresh()
        optimizer.zero_grad()
        F.cross_entropy(net(batch), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    step()  # libraries that wait when they are loaded
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(bool(p.isfinite().all()) for p in net.parameters())
