"""Exact numbers: every float32 held, sums exact, one rounding, half to even."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.fixed_tensor import (
    FixedTensor,
    Refused,
    add,
    divided,
    from_floats,
    on_one_grid,
    round_half_even,
    rounded_to_float32,
    to_float32,
)

CODES = st.integers(-(2**40), 2**40)


def fixed(code: int, exponent: int, divisor: int = 1) -> FixedTensor:
    tensor = FixedTensor(np.array([code], np.int64), np.array(exponent, np.int64))
    return divided(tensor, divisor)


def exact(tensor: FixedTensor) -> list[Fraction]:
    exponents = np.broadcast_to(tensor.exponent, tensor.codes.shape).reshape(-1).tolist()
    return [
        Fraction(code) * Fraction(2) ** exponent / tensor.divisor
        for code, exponent in zip(tensor.codes.reshape(-1).tolist(), exponents, strict=True)
    ]


@given(code=CODES, exponent=st.integers(-40, 10), target=st.integers(-20, 20), divisor=st.integers(1, 64))
def test_rounding_is_half_to_even_of_the_exact_quotient(code: int, exponent: int, target: int, divisor: int) -> None:
    tensor = fixed(code, exponent, divisor)
    (value,) = exact(tensor)
    assert value == Fraction(code) * Fraction(2) ** exponent / divisor
    try:
        rounded = round_half_even(tensor, np.array(target, np.int64)).tolist()
    except Refused:
        assert exponent - target > 15  # the code would have had more than 60 bits
    else:
        assert rounded == [round(value / Fraction(2) ** target)]  # Python rounds a Fraction half to even


@pytest.mark.parametrize(
    ("halves", "divisor", "expected"),
    [
        ([-5, -3, -1, 1, 3, 5], 2, [-2, -2, 0, 0, 2, 2]),
        ([3, 9, 15, -3, -9, 4, 2], 6, [0, 2, 2, 0, -2, 1, 0]),
        ([24, 25, 73, 74, -25], 49, [0, 1, 1, 2, -1]),
    ],
)
def test_ties_go_to_the_even_code(halves: list[int], divisor: int, expected: list[int]) -> None:
    tensor = divided(FixedTensor(np.array(halves, np.int64), np.zeros((), np.int64)), divisor)
    assert round_half_even(tensor, np.zeros((), np.int64)).tolist() == expected


@given(code=st.integers(-(2**60), 2**60), shift=st.integers(0, 400))
def test_steps_far_apart_round_to_zero_not_to_garbage(code: int, shift: int) -> None:
    expected = round(Fraction(code, 2**shift))
    assert round_half_even(fixed(code, -shift), np.zeros((), np.int64)).tolist() == [expected]


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1))
def test_every_float32_is_held_exactly(values: list[float]) -> None:
    array = np.array(values, np.float32)
    tensor = from_floats(array)
    assert exact(tensor) == [Fraction(value) for value in array.tolist()]
    assert np.array_equal(to_float32(tensor), array)


@given(code=st.integers(-(2**53), 2**53), divisor=st.integers(1, 2**20))
def test_outputs_are_rounded_once(code: int, divisor: int) -> None:
    nearest = to_float32(fixed(code, 0, divisor))
    value = Fraction(code, divisor)
    distance = abs(Fraction(float(nearest[0])) - value)
    for neighbour in (np.nextafter(nearest, np.float32(np.inf)), np.nextafter(nearest, np.float32(-np.inf))):
        assert distance <= abs(Fraction(float(neighbour[0])) - value)


@given(a=CODES, b=CODES, e_a=st.integers(-9, 9), e_b=st.integers(-9, 9), n_a=st.integers(1, 9), n_b=st.integers(1, 9))
def test_sums_are_exact(a: int, b: int, e_a: int, e_b: int, n_a: int, n_b: int) -> None:
    left, right = fixed(a, e_a, n_a), fixed(b, e_b, n_b)
    assert exact(add(left, right)) == [exact(left)[0] + exact(right)[0]]


def test_a_dead_channel_on_a_tiny_grid_does_not_push_the_other_side_out() -> None:
    exponents = np.array([-100, 0], np.int64).reshape(1, 2)
    dead = FixedTensor(np.array([[0, 3]], np.int64), exponents)
    other = FixedTensor(np.array([[100, 100]], np.int64), np.zeros((), np.int64))
    assert exact(add(dead, other)) == [100, 103]


def test_grids_too_far_apart_are_refused() -> None:
    with pytest.raises(Refused, match="60 bits"):
        add(fixed(1, -100), fixed(1, 0))


@given(code=st.integers(-(2**60), 2**60), exponent=st.integers(-40, 40))
def test_results_of_more_than_24_bits_become_the_nearest_float32(code: int, exponent: int) -> None:
    rounded = rounded_to_float32(fixed(code, exponent))
    expected = Fraction(float(np.float32(code))) * Fraction(2) ** exponent
    assert exact(rounded) == [expected]
    assert Fraction(float(to_float32(rounded)[0])) == expected  # also where the code itself has more than 53 bits


def test_quotients_are_not_rounded_before_they_are_read() -> None:
    third = fixed(2**30 + 1, 0, 3)
    assert exact(rounded_to_float32(third)) == exact(third)


def test_outputs_of_more_than_53_bits_are_refused() -> None:
    with pytest.raises(Refused, match="53 bits"):
        to_float32(fixed(2**55 + 1, 0))


def test_exponents_of_lower_rank_belong_to_the_last_axes() -> None:
    tensor = FixedTensor(np.ones((2, 2, 3), np.int64), np.array([[0], [1]], np.int64))
    kept = on_one_grid(tensor, axis=1)
    assert kept.exponent.shape == (1, 2, 1)
    assert on_one_grid(tensor).codes[0].tolist() == [[1, 1, 1], [2, 2, 2]]
    assert on_one_grid(tensor, axis=0).codes[0].tolist() == [[1, 1, 1], [2, 2, 2]]
