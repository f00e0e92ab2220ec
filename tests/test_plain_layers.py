"""Layers without parameters against torch's own."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from faq_deploy.plain_layers import AveragePool, Constant, GlobalAveragePool, MaxPool, Pad, Slice, StochasticDepth
from tests.hand_graphs import noise


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_pools_work_in_every_dimension(dims: int) -> None:
    x = noise(2, 3, *[7] * dims)
    largest = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)[dims - 1](3, 2, 1, ceil_mode=True)
    mean = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)[dims - 1](3, 2, 1, count_include_pad=False)
    three, two, one = [3] * dims, [2] * dims, [1] * dims
    assert torch.equal(MaxPool(three, two, one, one, True)(x), largest(x))
    assert torch.equal(AveragePool(three, two, one, False, False)(x), mean(x))
    assert torch.allclose(GlobalAveragePool()(x).flatten(1), x.flatten(2).mean(2), atol=1e-6)


def test_uneven_and_wide_padding_of_a_max_pool_is_no_value() -> None:
    x = noise(2, 3, 6, 6) - 10
    padded = F.pad(x, (1, 2, 0, 1), value=float("-inf"))
    assert torch.equal(MaxPool([3, 3], [1, 1], [0, 1, 1, 2], [1, 1], False)(x), F.max_pool2d(padded, 3, 1))
    wide = F.pad(x, (2, 2, 2, 2), value=float("-inf"))
    assert torch.equal(MaxPool([3, 3], [1, 1], [2, 2], [1, 1], False)(x), F.max_pool2d(wide, 3, 1))


@pytest.mark.parametrize(("mode", "torch_mode"), [("reflect", "reflect"), ("edge", "replicate")])
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_pads_name_beginnings_then_ends(mode: str, torch_mode: str, dims: int) -> None:
    x = noise(2, 3, *[5] * dims)
    begins, ends = list(range(dims)), [2] * dims
    pairs = [p for axis in reversed(range(dims)) for p in (begins[axis], ends[axis])]
    assert torch.equal(Pad([0, *begins, 0, *ends], mode)(x), F.pad(x, pairs, torch_mode))


def test_zeros_may_be_new_channels() -> None:
    x = noise(2, 3, 4)
    padded = Pad([1, 0, 2, 1], "constant")(x)
    assert padded.shape == (2, 6, 5)
    assert torch.equal(padded[:, 1:4, :4], x)
    assert float(padded[:, 0].abs().sum() + padded[:, 4:].abs().sum() + padded[:, :, 4].abs().sum()) == 0.0


def test_slice_takes_every_step() -> None:
    x = noise(2, 3, 9)
    assert torch.equal(Slice(2, 1, 8, 3)(x), x[:, :, 1:8:3])


def test_constant_is_repeated_only_where_it_must_be() -> None:
    value = noise(1, 3, 2)
    assert Constant(value, batched=False)(5).shape == (1, 3, 2)
    assert torch.equal(Constant(value, batched=True)(5), value.expand(5, 3, 2))


def test_stochastic_depth_drops_whole_images_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    layer, x = StochasticDepth(0.25), torch.ones(4000, 2, 3)
    y = layer.train()(x)
    kept = y.flatten(1).amax(1)
    assert torch.equal(y, kept.reshape(-1, 1, 1).expand_as(y))
    assert set(kept.unique().tolist()) == {0.0, float(torch.tensor(1.0) / 0.75)}
    assert abs(float(y.mean()) - 1) < 0.05
    assert torch.equal(layer.eval()(x), x)
    assert float(StochasticDepth(1.0).train()(x).abs().sum()) == 0.0
