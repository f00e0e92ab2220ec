"""Intervals and tests against other arithmetic, and by their own definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from faq_deploy.statistics import (
    Pairs,
    drop_interval,
    independent_drop,
    mcnemar,
    pairs_of,
    smallest_visible_drop,
    wilson,
)


def pairs(images: int, lost: int, gained: int) -> Pairs:
    return Pairs(images=images, lost=lost, gained=gained, flips=lost + gained)


@given(st.integers(1, 2000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_interval_is_its_closed_form(found: tuple[int, int]) -> None:
    right, images = found
    z, p = 1.959963984540054, right / images
    middle = (p + z * z / (2 * images)) / (1 + z * z / images)
    half = z / (1 + z * z / images) * math.sqrt(p * (1 - p) / images + z * z / (4 * images * images))
    low, high = wilson(right, images)
    assert low == pytest.approx(100 * max(middle - half, 0), abs=1e-9)
    assert high == pytest.approx(100 * min(middle + half, 1), abs=1e-9)
    assert 0 <= low <= 100 * p + 1e-9 and 100 * p - 1e-9 <= high <= 100


@given(st.integers(0, 40), st.integers(0, 40))
def test_mcnemar_is_the_sum_of_both_tails(lost: int, gained: int) -> None:
    count = lost + gained
    tail = sum(math.comb(count, k) for k in range(min(lost, gained) + 1)) / 2**count
    assert mcnemar(pairs(1000, lost, gained)) == pytest.approx(min(1.0, 2 * tail))


def test_pairs_count_what_was_lost_and_gained() -> None:
    labels, before, after = np.array([0, 1, 2, 3, 4]), np.array([0, 1, 0, 0, 1]), np.array([0, 2, 2, 0, 2])
    found = pairs_of(labels, before, after)
    assert found == Pairs(images=5, lost=1, gained=1, flips=3)  # the last one is wrong both times, and flips
    assert found.drop == 0.0
    assert pairs(200, 3, 1).drop == 1.0


def test_a_thousand_images_can_show_a_drop_of_six() -> None:
    assert smallest_visible_drop(1000) == pytest.approx(0.6)  # 2 x 2^-6 = 0.031
    assert smallest_visible_drop(5) is None
    assert smallest_visible_drop(1000, confidence=0.99) == pytest.approx(0.8)


@given(st.integers(10, 400), st.integers(0, 12), st.sampled_from([0.9, 0.95, 0.99]))
def test_smallest_visible_drop_is_the_first_that_the_test_calls_real(images: int, gained: int, level: float) -> None:
    found = smallest_visible_drop(images, gained, level)
    if found is None:
        assert images < 2 * gained + 8 or mcnemar(pairs(images, images - gained, gained)) >= 1 - level
        return
    lost = round(found * images / 100) + gained
    assert mcnemar(pairs(images, lost, gained)) < 1 - level
    assert mcnemar(pairs(images, lost - 1, gained)) >= 1 - level


def test_interval_of_a_drop_is_wide_where_nothing_flipped_and_shrinks_with_images() -> None:
    low, high = drop_interval(pairs(449, 0, 0))
    assert low == -high
    assert high == pytest.approx(100 * 1.95996 * math.sqrt(2) / 451, rel=1e-4)
    assert drop_interval(pairs(44_900, 0, 0))[1] < high / 50
    assert drop_interval(pairs(3, 3, 0))[1] <= 100


@pytest.mark.parametrize(("lost", "gained"), [(0.02, 0.02), (0.05, 0.02), (0.01, 0.0), (0.1, 0.05)])
def test_interval_of_a_drop_holds_the_truth_as_often_as_it_says(lost: float, gained: float) -> None:
    images, draws = 500, 4000
    counts = np.random.default_rng(0).multinomial(images, [lost, gained, 1 - lost - gained], draws)
    intervals = [drop_interval(pairs(images, int(a), int(b))) for a, b, _ in counts]
    truth = 100 * (lost - gained)
    covered = np.mean([low <= truth <= high for low, high in intervals])
    assert 0.94 <= covered <= 0.99


@pytest.mark.parametrize(("before", "after"), [(0.9, 0.9), (0.7, 0.68), (0.99, 0.97)])
def test_interval_between_two_samples_holds_the_truth_as_often_as_it_says(before: float, after: float) -> None:
    images, draws = 400, 2000
    rng = np.random.default_rng(1)
    first, second = rng.binomial(images, before, draws), rng.binomial(images, after, draws)
    around = {count: wilson(int(count), images) for count in {*first.tolist(), *second.tolist()}}
    intervals = [
        independent_drop(100 * a / images, 100 * b / images, around[a], around[b])
        for a, b in zip(first.tolist(), second.tolist(), strict=True)
    ]
    truth = 100 * (before - after)
    assert 0.93 <= np.mean([low <= truth <= high for low, high in intervals]) <= 0.98
