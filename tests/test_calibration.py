"""Range estimators against sorted oracles, slow references and values worked out by hand."""

from __future__ import annotations

import ast
import math
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import calibration
from calibration import (
    ESTIMATORS,
    CalibrationError,
    EntropyRange,
    Method,
    MseRange,
    PercentileRange,
    make_estimator,
    power_of_two_ceiling,
    waste,
)
from calibration.entropy import divergences
from calibration.histogram import MagnitudeHistogram
from calibration.percentile import kth_largest
from calibration.squared_error import squared_error


def percentile_by_sorting(tensor: Tensor, percent: str, *, signed: bool) -> float:
    values = sorted((tensor.abs() if signed else tensor.clamp(min=0)).flatten().tolist())
    k = math.ceil(len(values) * Fraction(percent) / 100)
    return float(values[k - 1])


def percentile(tensor: Tensor, percent: str, *, signed: bool = False) -> float:
    estimator = PercentileRange(percent, signed=signed)
    estimator.update(tensor)
    return estimator.result()


def filled_histogram(batches: list[Tensor], bins: int, *, signed: bool) -> MagnitudeHistogram:
    histogram = MagnitudeHistogram(bins, signed=signed)
    for batch in batches:
        histogram.update(batch)
    return histogram


# --- percentile ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("percent", ["0.001", "50", "90", "99", "99.9", "99.99", "100"])
def test_percentile_equals_the_sorted_value_at_every_size_to_200(percent: str, signed: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    for size in range(1, 201):
        values = torch.randn(size, generator=generator)
        assert percentile(values, percent, signed=signed) == percentile_by_sorting(values, percent, signed=signed)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("percent", ["97.5", "99.9", "99.99"])
@pytest.mark.parametrize("size", [4_097, 50_003, 131_072])
def test_percentile_equals_the_sorted_value_where_rows_are_searched(size: int, percent: str, signed: bool) -> None:
    generator = torch.Generator().manual_seed(size)
    heavy_tails = torch.randn(size, generator=generator) / torch.rand(size, generator=generator).clamp(min=1e-4)
    for values in (heavy_tails, heavy_tails.sort().values, heavy_tails.sort(descending=True).values, -heavy_tails):
        assert percentile(values, percent, signed=signed) == percentile_by_sorting(values, percent, signed=signed)


@settings(max_examples=150, deadline=None)
@given(
    size=st.integers(1, 5_000),
    distinct=st.integers(1, 6),
    percent=st.sampled_from(["50", "95", "99", "99.9", "99.99", "100"]),
    signed=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_percentile_is_exact_among_ties(size: int, distinct: int, percent: str, signed: bool, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(-distinct, distinct + 1, (size,), generator=generator).float()
    assert percentile(values, percent, signed=signed) == percentile_by_sorting(values, percent, signed=signed)


@settings(max_examples=100, deadline=None)
@given(size=st.integers(1, 3_000), place=st.floats(0, 1), seed=st.integers(0, 2**31), signed=st.booleans())
def test_every_rank_is_found_wherever_the_great_values_lie(size: int, place: float, seed: int, signed: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(size, generator=generator)
    start = int(place * (size - 1))
    values[start : start + 5] = torch.tensor([9.0, -9.0, 7.0, 8.0, -9.5])[: size - start]
    ordered = (values.abs() if signed else values).sort(descending=True).values
    for rank in {1, 2, 3, 5, 8, size // 300, size // 40, size} & set(range(1, size + 1)):
        assert kth_largest(values, rank, signed=signed) == ordered[rank - 1].item()


@pytest.mark.slow
@pytest.mark.parametrize("signed", [False, True])
def test_percentile_of_205_million_values_equals_the_sorted_one(signed: bool) -> None:
    """256 images' activations of a ResNet's first layer, 64 x 112 x 112: over torch.quantile's limit of 2^24."""
    values = torch.randn(256 * 64 * 112 * 112, generator=torch.Generator().manual_seed(3))
    if not signed:
        values.clamp_(min=0)
    estimator = PercentileRange("99.99", signed=signed)
    estimator.update(values)
    ordered = np.sort(values.abs_().numpy())
    assert estimator.result() == ordered[-(-len(ordered) * 9999 // 10000) - 1]


def test_percentile_is_exact_past_the_integers_of_float32() -> None:
    size = 2**24 + 1
    values = torch.arange(size, 0, -1, dtype=torch.float64)  # 1 .. size, each once
    assert percentile(values, "99.99") == -(-size * 9999 // 10000) == 16_775_540
    assert percentile(values, "99.9") == -(-size * 999 // 1000) == 16_760_440


def test_percentile_rank_is_rational_arithmetic() -> None:
    # 0.07 * 100 is 7.000000000000001 in binary floating point: its ceiling would be the 8th value
    assert 0.07 * 100 > 7
    assert percentile(torch.arange(1.0, 101.0), "7") == 7
    ten_thousand = torch.arange(1.0, 10_001.0)
    for percent in (99.99, "99.99", Decimal("99.99")):
        estimator = PercentileRange(percent)
        estimator.update(ten_thousand)
        assert estimator.result() == 9_999


def test_percentile_is_the_maximum_over_batches_not_pooled() -> None:
    estimator = PercentileRange("50")
    estimator.update(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    estimator.update(torch.tensor([10.0, 20.0, 30.0, 40.0]))
    estimator.update(torch.tensor([5.0, 6.0, 7.0, 8.0]))
    assert estimator.result() == 20  # pooled, it would be 6


@pytest.mark.parametrize("value", [0.0, 0.3, 1.0, 2.0**-130])
def test_percentile_of_a_constant_is_the_constant(value: float) -> None:
    constant = torch.full((3, 5, 700), value)
    assert percentile(constant, "99.99") == constant[0, 0, 0].item()


def test_negative_values_count_as_zero_on_an_unsigned_grid() -> None:
    negative = -torch.rand(10_000) - 1
    assert percentile(negative, "99.99", signed=False) == 0
    assert percentile(negative, "100", signed=True) == negative.abs().max().item()


@pytest.mark.parametrize("layout", ["channels_last", "transposed", "strided", "expanded"])
def test_memory_layout_changes_nothing(layout: str) -> None:
    values = torch.randn(8, 6, 20, 20, generator=torch.Generator().manual_seed(1))
    other = {
        "channels_last": values.contiguous(memory_format=torch.channels_last),
        "transposed": values.permute(3, 0, 2, 1),
        "strided": torch.stack((values, values + 100), dim=-1)[..., 0],
        "expanded": values.unsqueeze(0).expand(2, -1, -1, -1, -1),
    }[layout]
    for method in get_args(Method):
        one = make_estimator(method, bits=8, signed=True, percent=99)
        two = make_estimator(method, bits=8, signed=True, percent=99)
        one.update(values if layout != "expanded" else torch.cat((values, values)))
        two.update(other)
        assert one.result() == two.result()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_float_types_keep_their_values(dtype: torch.dtype) -> None:
    values = torch.randn(20_000, generator=torch.Generator().manual_seed(2)).to(dtype)
    assert percentile(values, "99.9", signed=True) == percentile_by_sorting(values.double(), "99.9", signed=True)


def test_calibration_leaves_the_tensor_and_its_graph_alone() -> None:
    activations = torch.randn(2, 3, 40, 40, requires_grad=True)
    kept = activations.detach().clone()
    for method in get_args(Method):
        make_estimator(method, bits=8, signed=True, percent=99.9).update(activations)
    assert torch.equal(activations.detach(), kept)
    assert activations.grad_fn is None


@pytest.mark.parametrize("method", get_args(Method))
def test_batches_in_and_out_of_inference_mode_mix(method: Method) -> None:
    batches = torch.randn(4, 3_000, generator=torch.Generator().manual_seed(7)) * torch.tensor([[1], [9], [2], [40]])
    one = make_estimator(method, bits=8, signed=True, percent=99.9)
    two = make_estimator(method, bits=8, signed=True, percent=99.9)
    for number, batch in enumerate(batches):
        one.update(batch)
        with torch.inference_mode(number % 2 == 0):
            two.update(batch * 1)
    assert one.result() == two.result()


# --- what every estimator refuses ---------------------------------------------------------------------------


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("method", get_args(Method))
def test_nan_and_inf_are_refused_wherever_they_stand(method: Method, bad: float, signed: bool) -> None:
    for size in (1, 7, 100_003):
        for place in {0, size // 2, size - 1}:
            values = torch.rand(size)
            values[place] = bad
            with pytest.raises(CalibrationError, match="NaN or Inf"):
                make_estimator(method, bits=8, signed=signed, percent=99.99).update(values)


@pytest.mark.parametrize("method", get_args(Method))
def test_missing_empty_and_integer_batches_are_refused(method: Method) -> None:
    estimator = make_estimator(method, bits=8, signed=False, percent=99.9)
    with pytest.raises(CalibrationError, match="no batch"):
        estimator.result()
    with pytest.raises(CalibrationError, match="empty"):
        estimator.update(torch.zeros(0, 3))
    with pytest.raises(CalibrationError, match="int64"):
        estimator.update(torch.ones(3, dtype=torch.int64))


@pytest.mark.parametrize("method", get_args(Method))
@pytest.mark.parametrize("signed", [False, True])
def test_a_layer_that_is_always_zero_has_range_zero(method: Method, signed: bool) -> None:
    estimator = make_estimator(method, bits=4, signed=signed, percent=99.9)
    estimator.update(torch.zeros(2, 900))
    estimator.update(-torch.zeros(1))
    assert estimator.result() == 0
    assert power_of_two_ceiling(estimator.result()) == 0


@pytest.mark.parametrize("method", get_args(Method))
def test_one_value_alone_is_covered(method: Method) -> None:
    estimator = make_estimator(method, bits=8, signed=False, percent=99.99)
    estimator.update(torch.tensor([0.7]))
    assert 2 ** power_of_two_ceiling(estimator.result()) == 1


@pytest.mark.parametrize("percent", [0, -1, 100.001, "abc", math.nan, math.inf, ""])
def test_a_percentile_out_of_range_is_refused(percent: float | str) -> None:
    with pytest.raises(CalibrationError, match="percentile"):
        PercentileRange(percent)


def test_unknown_method_and_bits_out_of_range_are_refused() -> None:
    with pytest.raises(CalibrationError, match="percentile, max, mse, entropy"):
        make_estimator("median", bits=8, signed=False, percent=99)  # type: ignore[arg-type]
    with pytest.raises(CalibrationError, match="1 bits"):
        make_estimator("mse", bits=1, signed=False, percent=99)
    with pytest.raises(CalibrationError, match="12 bits"):
        make_estimator("entropy", bits=12, signed=False, percent=99)
    with pytest.raises(CalibrationError, match="power of two"):
        MagnitudeHistogram(100, signed=False)


def test_every_method_has_an_estimator() -> None:
    assert tuple(ESTIMATORS) == get_args(Method)


# --- max ----------------------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=40), min_size=1, max_size=4))
def test_max_is_the_greatest_of_all_batches(batches: list[list[float]]) -> None:
    signed = make_estimator("max", bits=8, signed=True, percent=50)
    unsigned = make_estimator("max", bits=8, signed=False, percent=50)
    for batch in batches:
        signed.update(torch.tensor(batch))
        unsigned.update(torch.tensor(batch))
    assert signed.result() == max(abs(value) for batch in batches for value in batch)
    assert unsigned.result() == max(0.0, *(value for batch in batches for value in batch))


# --- histogram ----------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    scales=st.lists(st.integers(-12, 12), min_size=1, max_size=5),
    bins=st.sampled_from([2, 16, 2048]),
    signed=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_histogram_in_batches_equals_numpy_in_one_pass(scales: list[int], bins: int, signed: bool, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    batches = [torch.randn(300, generator=generator) * 2.0**scale for scale in scales]
    batches[0][:9] = torch.tensor([0.0, -0.0, 1.0, 2.0, 0.5, 0.25, -4.0, 3.0, 0.75])  # zeros and bin edges
    histogram = filled_histogram(batches, bins, signed=signed)
    values = torch.cat(batches)
    magnitudes = (values.abs() if signed else values.clamp(min=0)).double().numpy()
    expected, edges = np.histogram(magnitudes[magnitudes > 0], bins, (0, 2.0**histogram.exponent))
    assert histogram.counts.tolist() == expected.tolist()
    assert histogram.zeros == (magnitudes == 0).sum()
    assert histogram.bin_width == edges[1]
    assert histogram.exponent == math.frexp(magnitudes.max())[1]


def test_histogram_counts_past_the_integers_of_float32() -> None:
    # torch.histc counts in the values' type: a float32 count stops at 2^24
    histogram = filled_histogram([torch.ones(1).expand(2**24 + 3)], 16, signed=False)
    assert histogram.counts.tolist() == [0] * 8 + [2**24 + 3] + [0] * 7


@pytest.mark.parametrize("value", [3.4e38, 1e-44, 1e-30])
def test_histogram_takes_values_at_the_ends_of_float32(value: float) -> None:
    histogram = filled_histogram([torch.tensor([value, 0.0])], 2048, signed=True)
    assert (int(histogram.counts.sum()), histogram.zeros) == (1, 1)


# --- mse ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clip_exponent", [4, 3, 2, 0, -3, -6])
@pytest.mark.parametrize("magnitude_bits", [3, 4, 7, 8])
def test_squared_error_equals_that_of_values_spread_in_their_bins(clip_exponent: int, magnitude_bits: int) -> None:
    # 64 bins over [0, 8), each filled with an even comb much finer than any step
    teeth = 2**14
    values = (np.arange(64 * teeth) + 0.5) / teeth / 8
    counts = np.random.default_rng(0).integers(0, 50, 64).astype(np.float64)
    clip = 2.0**clip_exponent
    step = clip / 2**magnitude_bits
    quantized = np.minimum(np.rint(values / step), 2**magnitude_bits - 1) * step
    in_bins = ((values - quantized) ** 2).reshape(64, teeth).mean(1)
    expected = float(counts @ in_bins)
    assert squared_error(counts, np.arange(65) / 8, clip, magnitude_bits) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(("bits", "signed"), [(8, False), (7, False), (4, False), (8, True), (4, True)])
@pytest.mark.parametrize("shape", ["normal", "relu", "laplace", "outlier", "uniform", "near_top"])
def test_mse_clip_is_the_best_power_of_two(bits: int, signed: bool, shape: str) -> None:
    generator = torch.Generator().manual_seed(3)
    normal = torch.randn(40_000, generator=generator, dtype=torch.float64)
    uniform = torch.rand(40_000, generator=generator, dtype=torch.float64)
    values = {
        "normal": normal,
        "relu": normal.relu(),
        "laplace": normal * uniform.log().neg().mul(2).sqrt(),
        "outlier": torch.cat((normal, torch.tensor([300.0], dtype=torch.float64))),
        "uniform": uniform,
        "near_top": torch.full((100,), 1 - 2.0**-9, dtype=torch.float64),
    }[shape]
    if not signed:
        values = values.clamp(min=0)
    top = 2 ** (bits - 1 if signed else bits) - 1

    def error(clip: float) -> float:
        step = clip / (top + 1)
        quantized = (values / step).round().clamp(-top, top) * step
        return float(((values - quantized) ** 2).sum())

    clips = [2.0**e for e in range(-5, 11)]
    estimator = MseRange(bits, signed=signed)
    estimator.update(values[:17_000] if len(values) > 17_000 else values)
    estimator.update(values[17_000:] if len(values) > 17_000 else values)
    best = min(clips, key=error)
    # bins are finite: a clip within a thousandth of the best is as good
    assert error(estimator.result()) <= error(best) * 1.001
    assert math.frexp(estimator.result())[0] == 0.5


def test_mse_clips_one_outlier_among_many() -> None:
    values = torch.cat((torch.linspace(0, 1, 100_001)[:-1], torch.tensor([20.0])))
    four_bits, eight_bits = MseRange(4, signed=False), MseRange(8, signed=False)
    four_bits.update(values)
    eight_bits.update(values)
    # rounding costs 1e5 * step^2 / 12, clipping (20 - top code)^2
    # 4 bits: clip 1 costs 33 + 363, clip 2 costs 130 + 329, clip 32 rounds all the others to 0 or 2
    assert four_bits.result() == 1
    # 8 bits: clip 32 costs 130, clip 16 costs 33 + 16, clip 8 costs 8 + 145
    assert eight_bits.result() == 16


# --- entropy ------------------------------------------------------------------------------------------------


def divergence_by_the_book(counts: list[int], kept: int, levels: int) -> float:
    reference = [float(count) for count in counts[:kept]]
    reference[-1] += sum(counts[kept:])
    quantized = [0.0] * kept
    for level in range(levels):
        members = [j for j in range(kept) if j * levels // kept == level]
        filled = [j for j in members if counts[j] > 0]
        for j in filled:
            quantized[j] = sum(counts[m] for m in members) / len(filled)
    total_p, total_q = sum(reference), sum(quantized)
    filled_in_all = sum(count > 0 for count in counts)
    if sum(counts[kept:]) and sum(count > 0 for count in counts[:kept]) < min(levels, filled_in_all):
        return math.inf
    divergence = 0.0
    for p, q in zip(reference, quantized, strict=True):
        if p > 0:
            if q == 0:
                return math.inf
            divergence += p / total_p * math.log((p / total_p) / (q / total_q))
    return divergence


@settings(max_examples=60, deadline=None)
@given(counts=st.lists(st.integers(0, 9), min_size=16, max_size=64), levels=st.sampled_from([2, 4, 8, 16]))
def test_divergences_equal_the_loops_of_the_source(counts: list[int], levels: int) -> None:
    counts[0] += 1
    found = divergences(np.array(counts, dtype=np.float64), levels)
    expected = [divergence_by_the_book(counts, kept, levels) for kept in range(levels, len(counts) + 1)]
    assert found == pytest.approx(expected, abs=1e-12)


def test_entropy_clips_a_heavy_tail_more_the_fewer_the_levels() -> None:
    normal = torch.special.ndtri(torch.linspace(0, 1, 100_002, dtype=torch.float64)[1:-1])
    squares = normal.relu() ** 2
    ranges = []
    for bits in (4, 8):
        estimator = EntropyRange(bits, signed=False)
        estimator.update(squares)
        ranges.append(estimator.result())
    assert squares.max().item() == pytest.approx(18.19, abs=0.01)
    assert ranges == [7.25, 11.984375]


def test_entropy_keeps_an_even_distribution_whole() -> None:
    for bits, signed in ((8, False), (8, True), (4, False), (4, True)):
        estimator = EntropyRange(bits, signed=signed)
        estimator.update(torch.linspace(0, 3, 100_000))
        assert estimator.result() == pytest.approx(3, rel=1e-3)


def test_entropy_of_fewer_distinct_values_than_levels_keeps_all() -> None:
    # pixels 0..16: the first filled bin alone would match perfectly and clip at 1/16
    estimator = EntropyRange(8, signed=False)
    estimator.update(torch.arange(17.0) / 16)
    assert estimator.result() == 1


def test_entropy_ignores_how_many_zeros_there_are() -> None:
    values = torch.randn(20_000, generator=torch.Generator().manual_seed(5)).relu()
    few, many = EntropyRange(7, signed=False), EntropyRange(7, signed=False)
    few.update(values)
    many.update(torch.cat((values, torch.zeros(500_000))))
    assert few.result() == many.result()


# --- powers of two ------------------------------------------------------------------------------------------


@given(st.integers(-1074, 1023))
def test_a_power_of_two_stays_and_the_next_float_goes_up(exponent: int) -> None:
    y = math.ldexp(1.0, exponent)
    assert power_of_two_ceiling(y) == exponent
    assert power_of_two_ceiling(math.nextafter(y, math.inf)) == exponent + 1


@given(st.floats(min_value=0, exclude_min=True, max_value=1e300), st.booleans())
def test_ceiling_is_the_least_that_covers(y: float, even: bool) -> None:
    exponent = power_of_two_ceiling(y, even)
    step = 2 if even else 1
    assert exponent % step == 0
    assert Fraction(2) ** (exponent - step) < Fraction(y) <= Fraction(2) ** exponent


@pytest.mark.parametrize(
    ("y", "even", "exponent"),
    [(0.0, False, 0), (0.0, True, 0), (1.1, False, 1), (1.1, True, 2), (2.0, True, 2), (0.5, True, 0), (0.2, True, -2)],
)
def test_even_exponents_follow_the_papers_other_reading(y: float, even: bool, exponent: int) -> None:
    assert power_of_two_ceiling(y, even) == exponent


def test_waste_is_the_unused_share() -> None:
    assert waste(0.75, 0) == 0.25
    assert waste(4.0, 2) == 0
    assert waste(0.0, 0) == 1
    assert waste(1.25, 2) == 0.6875


@pytest.mark.parametrize("y", [-1.0, math.nan, math.inf])
def test_impossible_ranges_are_refused(y: float) -> None:
    with pytest.raises(CalibrationError):
        power_of_two_ceiling(y)
    with pytest.raises(CalibrationError):
        waste(y, 3)


def test_waste_of_a_range_that_is_not_covered_is_refused() -> None:
    with pytest.raises(CalibrationError, match="outside"):
        waste(1.5, 0)


# --- the package --------------------------------------------------------------------------------------------


def test_calibration_imports_only_torch_and_numpy() -> None:
    standard = {"__future__", "collections", "decimal", "fractions", "math", "typing"}
    for path in Path(str(calibration.__file__)).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert {name.partition(".")[0] for name in names} <= standard | {"calibration", "numpy", "torch"}
