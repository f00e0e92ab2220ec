"""Where NaN began, found after it has spread."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from engines.errors import InputError
from faq_deploy.diagnosis import first_damaged_layer
from tests.nets import Small, with_statistics
from tests.quantized import images, make_recipe, quantized_net
from tests.training_jobs import STEPS, Batches, Job


@pytest.mark.parametrize("place", ["weight", "input"])
def test_first_damaged_layer_is_the_first_in_the_order_of_computing(place: str) -> None:
    net = quantized_net(with_statistics(Small()), make_recipe()).net.train()
    data = images()
    assert first_damaged_layer(net, data) is None
    if place == "weight":
        for name in ("blocks_1_conv1", "fc"):
            layer = net.layers[name]
            assert isinstance(layer.weight, Tensor)
            layer.weight.data.view(-1)[0] = math.nan
        assert first_damaged_layer(net, data) == "blocks_1_conv1"
    else:
        data[0, 0, 0, 0] = math.nan
        assert first_damaged_layer(net, data) == "input_quantizer"
    assert net.training
    assert all(not module._forward_hooks for module in net.modules())


def test_loss_that_is_nan_names_step_layer_and_checkpoint(tmp_path: Path) -> None:
    job = Job(tmp_path)

    def spoil(step: int) -> None:
        if step == STEPS + 4:
            with torch.no_grad():
                job.net[5].weight[0, 0] = math.nan  # type: ignore[index]

    job.train = Batches(before=spoil)
    with pytest.raises(InputError) as caught:
        job()
    what, remedy = caught.value.what, caught.value.remedy
    assert what == f"The loss is nan at step {STEPS + 4} (learning rate 0.005; NaN or Inf begins in layer 5)."
    assert f"checkpoint.pt is the last good checkpoint (step {STEPS})." in remedy


@pytest.mark.parametrize("doublings", [[], [1]])
def test_loss_that_becomes_infinite_by_a_step_names_the_layer_that_the_step_broke(
    tmp_path: Path, doublings: list[int]
) -> None:
    """Found by a repetition: by the time that the loss is read, NaN is everywhere."""
    job = Job(tmp_path, changes={"training.batch_doublings": doublings})
    weight = job.net[5].weight  # type: ignore[index]
    assert isinstance(weight, Tensor)
    seen: list[int] = []

    def burst(gradient: Tensor) -> Tensor:
        return gradient * math.inf if seen[-1] == STEPS + 9 else gradient

    weight.register_hook(burst)  # type: ignore[no-untyped-call]
    job.train = Batches(before=seen.append)
    with pytest.raises(InputError, match=f"at step {STEPS + 10} .*NaN or Inf begins in layer 5"):
        job()
    assert seen.count(STEPS + 10) == 2
