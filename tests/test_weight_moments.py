"""Tests of the second moments of layers' inputs."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from faq_deploy.products import Convolution, MatrixProduct
from faq_deploy.side_by_side import Seen
from faq_deploy.weight_moments import moments


def _covariance(left: Tensor, right: Tensor) -> Tensor:
    """Of rows (K, samples) in float64."""
    left, right = (rows.double() - rows.double().mean(1, keepdim=True) for rows in (left, right))
    return left @ right.t() / left.shape[1]


@pytest.mark.parametrize(
    ("stride", "padding", "dilation", "groups"),
    [([1, 1], [0, 0], [1, 1], 1), ([2, 1], [1, 2], [1, 2], 2), ([1, 2], [1, 0], [2, 1], 4)],
)
def test_they_are_the_covariances_of_unfolded_inputs(
    stride: list[int], padding: list[int], dilation: list[int], groups: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(3, 4, 8, 9, generator=generator) + 1 for _ in range(2))
    product = Convolution(stride, padding, dilation, groups)
    found = moments(product, (8, 4 // groups, 3, 2), Seen([x[:1], x[1:]], [y[:1], y[1:]]))
    unfolded = [
        F.unfold(images, (3, 2), tuple(dilation), tuple(padding), tuple(stride))
        .transpose(0, 1)
        .flatten(1)
        .reshape(groups, -1, found.samples)
        for images in (x, y)
    ]
    for group in range(groups):
        exact, quantized = (rows[group] for rows in unfolded)
        assert torch.allclose(found.quantized[group], _covariance(quantized, quantized), atol=1e-5)
        assert torch.allclose(found.crossed[group], _covariance(exact, quantized), atol=1e-5)


def test_padding_of_unequal_ends_is_that_of_the_convolution() -> None:
    x = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    product = Convolution([2, 2], [0, 0, 1, 1], [1, 1], 1)
    found = moments(product, (5, 3, 3, 3), Seen([x], [x]))
    rows = F.unfold(F.pad(x, (0, 1, 0, 1)), 3, stride=2).transpose(0, 1).flatten(1)
    assert torch.allclose(found.quantized[0], _covariance(rows, rows), atol=1e-5)


def test_a_linear_layer_has_one_group_and_one_sample_an_image() -> None:
    x = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
    found = moments(MatrixProduct(), (4, 5), Seen([x], [x]))
    assert found.samples == 7
    assert torch.allclose(found.crossed[0], _covariance(x.t(), x.t()), atol=1e-6)


def test_large_images_are_sampled_at_regular_places() -> None:
    x = torch.randn(1, 1, 512, 512, generator=torch.Generator().manual_seed(0))
    found = moments(Convolution([1, 1], [0, 0], [1, 1], 1), (1, 1, 1, 1), Seen([x], [x]))
    assert found.samples == 128 * 128
    assert torch.allclose(found.quantized[0], _covariance(*[x[0, :, ::4, ::4].flatten(1)] * 2), atol=1e-6)
