"""Exponents: exact on powers of two, and the smallest that covers a value to half a step."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.power_of_two import exponent_of, fitting_exponent


@given(st.integers(-126, 127))
def test_exponent_of_a_power_of_two_is_exact(exponent: int) -> None:
    assert exponent_of(2.0**exponent) == exponent


@pytest.mark.parametrize("step", [0.0, -0.5, 0.3, 3.0, math.inf, math.nan, 2.0**-127, 2.0**128])
def test_other_numbers_have_none(step: float) -> None:
    assert exponent_of(step) is None


@given(st.floats(1e-30, 1e30), st.sampled_from([7, 127, 255]))
def test_next_exponent_covers_the_value_and_the_one_below_does_not(top: float, codes: int) -> None:
    exponent = fitting_exponent(top, codes)
    assert (codes + 0.5) * 2.0**exponent >= top * (1 - 1e-12)
    assert (codes + 0.5) * 2.0 ** (exponent - 1) < top * (1 + 1e-12)


def test_what_a_grid_of_a_power_of_two_holds_keeps_its_exponent() -> None:
    assert [fitting_exponent(127 * 2.0**n, 127) for n in (-9, 0, 3)] == [-9, 0, 3]
    assert fitting_exponent(127.5, 127) == 0  # rounds to 127, no further than any other value moves
    assert fitting_exponent(127.6, 127) == 1
