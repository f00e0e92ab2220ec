"""The quantizer's laws, and its equality with NumPy integers."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays as hypothesis_arrays

from faq_deploy import fixed_point
from faq_deploy.fixed_point import (
    MAX_EXPONENT,
    MIN_EXPONENT,
    FixedPoint,
    _pieces,
    ceil_log2,
    codes_of,
    quantize,
    quantize_activation,
    quantize_weight,
    step_size,
)
from faq_deploy.weight_rule import bias_floor, weight_exponents

GRIDS = [FixedPoint(b, s, n) for b in (4, 7, 8) for s, n in ((False, False), (True, True), (True, False))]
grids = st.sampled_from(GRIDS)
Values = npt.NDArray[np.float32]
exponents = st.integers(-20, 20)
floats = st.floats(-(2.0**30), 2.0**30, width=32)
W8 = FixedPoint(8, signed=True, narrow=True)
W4 = FixedPoint(4, signed=True, narrow=True)


def _exponent(value: int) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.int32)


def test_codes_of_the_paper() -> None:
    assert (FixedPoint(8, False).min_code, FixedPoint(8, False).max_code) == (0, 255)
    assert (W8.min_code, W8.max_code) == (-127, 127)
    assert (W4.min_code, W4.max_code) == (-7, 7)
    assert (FixedPoint(8, True).min_code, FixedPoint(8, True).max_code) == (-128, 127)


def test_step_size_is_exact_at_every_exponent() -> None:
    exponent = torch.arange(-126, 128, dtype=torch.int32)
    assert step_size(exponent).double().tolist() == [math.ldexp(1.0, e) for e in range(-126, 128)]


@given(st.floats(1e-30, 1e30))
def test_ceil_log2_is_the_least_exponent_that_reaches(value: float) -> None:
    found = int(ceil_log2(torch.tensor([value], dtype=torch.float64)))
    assert math.ldexp(1.0, found) >= value > math.ldexp(1.0, found - 1)


@pytest.mark.parametrize("exponent", range(-60, 61))
def test_ceil_log2_of_a_power_of_two_stays(exponent: int) -> None:
    assert int(ceil_log2(torch.tensor([2.0**exponent]))) == exponent


@given(floats, exponents, grids)
def test_torch_codes_equal_numpy_integers(value: float, exponent: int, grid: FixedPoint) -> None:
    found = codes_of(torch.tensor([value]), _exponent(exponent), grid)
    wanted = np.clip(np.rint(np.ldexp(np.float64(value), -exponent)), grid.min_code, grid.max_code)
    assert int(found) == int(wanted)


tensors = hypothesis_arrays(np.float32, st.integers(1, 64), elements=floats)


@given(tensors, exponents, grids)
def test_codes_stay_in_range_and_are_the_nearest_there(values: Values, exponent: int, grid: FixedPoint) -> None:
    found = codes_of(torch.from_numpy(values), _exponent(exponent), grid).double().numpy()
    assert np.array_equal(found, np.rint(found))
    assert found.min() >= grid.min_code
    assert found.max() <= grid.max_code
    scaled = np.ldexp(values.astype(np.float64), -exponent)
    inside = np.clip(scaled, grid.min_code, grid.max_code)
    assert np.all(np.abs(found - inside) <= 0.5)
    assert np.all(np.abs(found - inside)[scaled != inside] == 0)  # outside of the range: its very end


@given(tensors, exponents, grids)
def test_torch_codes_equal_numpy_integers_on_whole_tensors(values: Values, exponent: int, grid: FixedPoint) -> None:
    found = codes_of(torch.from_numpy(values), _exponent(exponent), grid)
    wanted = np.clip(np.rint(np.ldexp(values.astype(np.float64), -exponent)), grid.min_code, grid.max_code)
    assert np.array_equal(found.numpy().astype(np.int64), wanted.astype(np.int64))
    assert torch.equal(
        quantize(torch.from_numpy(values), _exponent(exponent), grid), torch.ldexp(found.float(), _exponent(exponent))
    )


@given(tensors, exponents, grids)
def test_order_is_kept(values: Values, exponent: int, grid: FixedPoint) -> None:
    ordered = torch.from_numpy(np.sort(values))
    codes = codes_of(ordered, _exponent(exponent), grid)
    assert bool((codes[1:] >= codes[:-1]).all())


@given(floats, exponents, grids)
def test_quantizing_twice_changes_nothing(value: float, exponent: int, grid: FixedPoint) -> None:
    once = quantize(torch.tensor([value]), _exponent(exponent), grid)
    assert torch.equal(quantize(once, _exponent(exponent), grid), once)


@given(floats, exponents, grids)
def test_doubling_the_value_and_the_step_doubles_the_result(value: float, exponent: int, grid: FixedPoint) -> None:
    once = quantize(torch.tensor([value]), _exponent(exponent), grid)
    assert torch.equal(quantize(torch.tensor([2 * value]), _exponent(exponent + 1), grid), 2 * once)


@given(floats, exponents, st.sampled_from([W8, W4]))
def test_narrow_grid_is_symmetric(value: float, exponent: int, grid: FixedPoint) -> None:
    plus = quantize(torch.tensor([value]), _exponent(exponent), grid)
    assert torch.equal(quantize(torch.tensor([-value]), _exponent(exponent), grid), -plus)


def test_ties_go_to_even() -> None:
    halves = torch.tensor([0.5, 1.5, 2.5, 3.5, -0.5, -1.5, -2.5])
    assert codes_of(halves, _exponent(0), W8).tolist() == [0, 2, 2, 4, 0, -2, -2]


def test_activation_gradient_passes_inside_the_range_only() -> None:
    x = torch.tensor([-1.0, 0.0, 0.1, 1.0, 14.9, 15.9, 16.0, 20.0], requires_grad=True)
    y = quantize_activation(x, 0, FixedPoint(4, False))
    y.sum().backward()  # type: ignore[no-untyped-call]
    assert y.tolist() == [0, 0, 0, 1, 15, 15, 15, 15]
    assert x.grad is not None
    assert x.grad.tolist() == [0, 0, 1, 1, 1, 1, 0, 0]  # the range is (0, ymax), ymax = 2^(l+b) = 16


def test_signed_activation_gradient_passes_on_both_sides() -> None:
    x = torch.tensor([-130.0, -127.9, 0.0, 127.9, 128.0], requires_grad=True)
    quantize_activation(x, 0, FixedPoint(8, True)).sum().backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None
    assert x.grad.tolist() == [0, 1, 1, 1, 0]


def test_capped_activation_stops_at_its_cap() -> None:
    x = torch.tensor([5.9, 6.0, 7.0], requires_grad=True)
    y = quantize_activation(x, -4, FixedPoint(7, False), max_code=96)
    y.sum().backward()  # type: ignore[no-untyped-call]
    assert y.tolist() == [94 / 16, 6, 6]
    assert x.grad is not None
    assert x.grad.tolist() == [1, 0, 0]


def test_weight_gradient_is_never_masked() -> None:
    w = torch.tensor([-500.0, 0.3, 500.0], requires_grad=True)
    y = quantize_weight(w, _exponent(0), W8)
    (y * torch.tensor([1.0, 2.0, 3.0])).sum().backward()  # type: ignore[no-untyped-call]
    assert y.tolist() == [-127, 0, 127]
    assert w.grad is not None
    assert w.grad.tolist() == [1, 2, 3]


def test_max_rule_clips_nothing_and_is_tight() -> None:
    w = torch.tensor([[1.0, -0.5], [127.0, 3.0], [127.5, 3.0]])
    (found,) = weight_exponents([w], [W8], ["max"], per_channel=True, sigma_factor=4.12)
    assert found.tolist() == [-6, 0, 1]  # ceil(log2(1/127)) = -6; 127 just fits at step 1


def test_sigma_rule_follows_the_papers_formula() -> None:
    torch.manual_seed(0)
    w = torch.randn(1, 10_000)
    sigma = float(w.double().std(correction=0))
    (r2,) = weight_exponents([w], [W4], ["sigma"], per_channel=False, sigma_factor=4.12)
    (r1,) = weight_exponents([w], [W4], ["sigma"], per_channel=False, sigma_factor=8.24)
    assert r2.tolist() == [math.ceil(math.log2(4.12 * sigma / 15))] == [-1]
    assert r1.tolist() == [math.ceil(math.log2(8.24 * sigma / 15))] == [0]


@given(st.integers(0, 10_000))
def test_mse_rule_is_the_best_of_its_candidates(seed: int) -> None:
    w = torch.randn(3, 40, generator=torch.Generator().manual_seed(seed))
    (highest,) = weight_exponents([w], [W4], ["max"], per_channel=True, sigma_factor=4.12)
    (found,) = weight_exponents([w], [W4], ["mse"], per_channel=True, sigma_factor=4.12)
    for row, top, chosen in zip(w, highest.tolist(), found.tolist(), strict=True):
        errors = {
            e: float((quantize(row, _exponent(e), W4).double() - row.double()).square().sum())
            for e in range(top - 3, top + 1)
        }
        assert errors[chosen] <= min(errors.values()) * (1 + 1e-5)


def test_layers_together_give_what_they_give_alone() -> None:
    torch.manual_seed(1)
    sizes = [((5, 3, 3, 3), 1.0), ((7, 20), 100.0), ((2, 4), 1e-4), ((6, 30), 0.1), ((3, 8), 10.0), ((4, 50), 1.0)]
    weights = [torch.randn(shape) * scale for shape, scale in sizes]
    rules, grids = ["mse", "sigma", "max", "mse", "mse", "mse"], [W8, W4, W8, W4, W8, W4]
    together = weight_exponents(weights, grids, rules, per_channel=True, sigma_factor=4.12)  # type: ignore[arg-type]
    for w, grid, rule, found in zip(weights, grids, rules, together, strict=True):
        (alone,) = weight_exponents([w], [grid], [rule], per_channel=True, sigma_factor=4.12)  # type: ignore[list-item]
        assert torch.equal(alone, found)


@pytest.mark.parametrize("rule", ["sigma", "max", "mse"])
@pytest.mark.parametrize("value", [0.0, 1e-44, 1e-38, 1e-20, 1.0, 3e38])
def test_constant_weights_have_a_positive_step(rule: str, value: float) -> None:
    w = torch.full((2, 9), value)
    (found,) = weight_exponents([w], [W8], [rule], per_channel=True, sigma_factor=4.12)  # type: ignore[list-item]
    assert all(MIN_EXPONENT <= e <= MAX_EXPONENT for e in found.tolist())
    assert bool((step_size(found) > 0).all())
    if value == 0.0:
        assert found.tolist() == [-6, -6]  # as if the channel reached 1


def test_bias_codes_stay_within_22_bits() -> None:
    bias = torch.tensor([0.0, 1.0, -3.0, 1e-12, 1000.0])
    floor = bias_floor(bias, _exponent(-5))
    assert floor[0] == MIN_EXPONENT
    codes = bias[1:].double() / step_size(floor[1:] + _exponent(-5)).double()
    assert bool((codes.abs() <= 2**22).all())
    assert bool((codes.abs() > 2**21).all())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_values_of_16_bits_are_quantized_in_fp32(dtype: torch.dtype) -> None:
    x = torch.randn(1000, generator=torch.Generator().manual_seed(1)).to(dtype)
    grid = FixedPoint(8, False)
    found = quantize_activation(x / 1024, -20, grid)
    assert found.dtype == torch.float32
    assert torch.equal(found, quantize_activation((x / 1024).float(), -20, grid))
    assert float(found.max()) == 255 * 2.0**-20


def test_channels_last_is_quantized_in_pieces_to_the_same_values_and_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fixed_point, "PIECE", 2**18)
    x = torch.randn(9, 32, 40, 40, generator=torch.Generator().manual_seed(2))
    grid = FixedPoint(4, False)
    plain = x.clone().requires_grad_()
    other = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    values, found = quantize_activation(plain, -2, grid), quantize_activation(other, -2, grid)
    assert found.is_contiguous(memory_format=torch.channels_last) and torch.equal(found, values)
    (values.square().sum() + found.square().sum()).backward()  # type: ignore[no-untyped-call]
    assert plain.grad is not None and other.grad is not None
    assert torch.equal(plain.grad, other.grad) and float(plain.grad.abs().max()) > 0
    pieces = _pieces(other.detach(), torch.empty_like(other))
    assert len(pieces) == math.ceil(x.numel() / 2**18)
    strided = x[:, :, ::2]  # neither layout: one piece
    assert torch.equal(quantize_activation(strided, -2, grid), values.detach()[:, :, ::2])
