"""Resizing and adaptive pooling by matrices."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.errors import InputError
from faq_deploy.resample import AdaptiveAveragePool, Resize, interpolation, nearest_indices, pool_matrix
from tests.hand_graphs import noise

SIZES = st.integers(1, 40)


def codes(*shape: int) -> torch.Tensor:
    return torch.randint(-128, 128, shape, generator=torch.Generator().manual_seed(1)).float()


@given(SIZES, SIZES, st.booleans())
def test_interpolation_rows_are_weights_of_seven_bits(old: int, new: int, corners: bool) -> None:
    found = interpolation(old, new, corners)
    assert torch.equal(found.matrix.sum(1), torch.ones(new))
    assert torch.equal((found.matrix * 128).round(), found.matrix * 128)
    wanted = F.interpolate(torch.eye(old).unsqueeze(0), size=[new], mode="linear", align_corners=corners)[0].T
    assert float((found.matrix - wanted).abs().amax()) <= 1 / 256 + 1e-5
    if found.exact:
        assert torch.equal(found.matrix, wanted)


@pytest.mark.parametrize(("old", "new", "corners"), [(6, 12, False), (5, 20, False), (8, 4, False), (3, 3, False)])
def test_factors_of_two_are_exact(old: int, new: int, corners: bool) -> None:
    assert interpolation(old, new, corners).exact


@pytest.mark.parametrize(("old", "new", "corners"), [(6, 12, True), (3, 9, False), (7, 10, False)])
def test_other_factors_are_rounded(old: int, new: int, corners: bool) -> None:
    assert not interpolation(old, new, corners).exact


@settings(deadline=None)
@given(SIZES, SIZES, st.sampled_from(["nearest", "nearest-exact"]))
def test_nearest_indices_are_torchs(old: int, new: int, mode: str) -> None:
    x = noise(1, 2, old)
    assert torch.equal(x[:, :, nearest_indices(old, new, mode)], F.interpolate(x, size=[new], mode=mode))


@given(SIZES, SIZES)
def test_pool_matrix_is_torchs_windows(old: int, new: int) -> None:
    matrix = pool_matrix(old, new)
    wanted = F.adaptive_avg_pool1d(torch.eye(old).unsqueeze(0), new)[0].T
    assert torch.equal(matrix / matrix.sum(1, keepdim=True), wanted)


@pytest.mark.parametrize(("size", "corners"), [([12, 24], False), ([10, 9], False), ([12, 7], True), ([3, 3], False)])
def test_quantized_bilinear_is_exact_in_float32(size: list[int], corners: bool) -> None:
    layer = Resize("linear", [6, 6], size, corners)
    layer.mode = "quantize"
    x = codes(3, 4, 6, 6)
    rows, columns = layer.matrices()
    wanted = rows.double() @ x.double() @ columns.double().T
    assert torch.equal(layer(x).double(), wanted)
    layer.mode = "float"
    float_form = F.interpolate(x, size, mode="bilinear", align_corners=corners)
    assert torch.equal(layer(x), float_form)
    assert float((float_form - wanted).abs().amax()) <= 256 / 128


def test_adaptive_pool_divides_an_exact_sum_once() -> None:
    layer, x = AdaptiveAveragePool([7, 9], [3, 4]), codes(2, 3, 7, 9)
    sums = layer.rows.long() @ x.long() @ layer.columns.T.long()
    assert torch.equal(layer(x), sums.float() / layer.counts)
    assert torch.allclose(layer(x), F.adaptive_avg_pool2d(x, (3, 4)), atol=1e-4)


def test_gradients_flow_through_matrices() -> None:
    for layer in (Resize("linear", [6, 6], [10, 9], False), AdaptiveAveragePool([6, 6], [4, 5])):
        x = codes(1, 1, 6, 6).requires_grad_()
        layer.mode = "quantize"
        y = layer(x)
        y.sum().backward()
        assert x.grad is not None
        assert abs(float(x.grad.sum()) - y.numel()) < 1e-3  # rows of weights sum to 1


def test_linear_resizing_of_volumes_is_refused() -> None:
    with pytest.raises(InputError, match="linear resizing of volumes"):
        Resize("linear", [4, 4, 4], [8, 8, 8], False)
