"""Comparing runtimes: where codes diverge first, what logits differ by, and one rule for ties."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.errors import InputError
from engines.parity import (
    Divergence,
    LogitParity,
    Parity,
    accuracy,
    agreement,
    compare_codes,
    compare_logits,
    logit_bits,
    tied_images,
    top1,
    topk,
)

TIED = np.array([[0, 5, 1, 5, 2, 3, 4, 5], [9, 1, 2, 3, 4, 5, 6, 7]], np.float32)


def codes() -> dict[str, npt.NDArray[np.int64]]:
    return {
        "a.codes": np.arange(24, dtype=np.int64).reshape(2, 3, 2, 2),
        "b.codes": np.arange(8, dtype=np.int64).reshape(2, 4),
        "logits": np.zeros((2, 3), np.int64),
    }


def test_equal_codes_are_counted_and_equal() -> None:
    parity = compare_codes(codes(), codes(), ["a.codes", "b.codes"])
    assert parity == Parity(compared=32, differing=0, first=None)
    assert parity.equal


def test_the_first_divergence_is_the_first_in_graph_order_with_its_worst_channel() -> None:
    moved = codes()
    moved["b.codes"][1, 3] += 100
    moved["a.codes"][0, 2, 1, 1] -= 7
    moved["a.codes"][1, 1, 0, 0] += 2
    parity = compare_codes(codes(), moved, ["a.codes", "b.codes"])
    assert parity == Parity(32, 3, Divergence("a.codes", count=2, largest=7, channel=2))
    assert not parity.equal
    assert compare_codes(codes(), moved, ["b.codes", "a.codes"]).first == Divergence("b.codes", 1, 100, 3)


def test_logit_bits_are_left_to_compare_logits() -> None:
    moved = codes()
    moved["logits"] += 1
    assert compare_codes(codes(), moved, ["a.codes", "b.codes", "logits"]).equal


def test_a_tensor_without_channels_has_no_channel() -> None:
    left, right = {"a": np.array([1, 2], np.int64)}, {"a": np.array([1, 5], np.int64)}
    assert compare_codes(left, right, ["a"]).first == Divergence("a", 1, 3, None)


def test_missing_tensors_and_other_shapes_are_refused_by_name() -> None:
    with pytest.raises(InputError, match=r"c\.codes is missing"):
        compare_codes(codes(), codes(), ["c.codes"])
    short = codes()
    short["b.codes"] = short["b.codes"][:1]
    with pytest.raises(InputError, match=r"b\.codes has shape \(2, 4\) in one run and \(1, 4\)"):
        compare_codes(codes(), short, ["b.codes"])


def test_logits_differ_by_value_and_flip_by_the_tie_rule() -> None:
    other = TIED.copy()
    other[0, 1] = np.nextafter(np.float32(5), np.float32(0))
    step = 5.0 - float(other[0, 1])
    assert compare_logits(TIED, other) == LogitParity(images=2, differing=1, largest_difference=step, flips=1)
    assert compare_logits(TIED, TIED.copy()).equal
    assert agreement(TIED, other) == 50.0


def test_the_sign_of_zero_and_equal_infinities_are_no_difference() -> None:
    left, right = np.array([[0.0, -np.inf, 1]], np.float32), np.array([[-0.0, -np.inf, 1]], np.float32)
    assert compare_logits(left, right) == LogitParity(1, 0, 0.0, 0)
    assert np.array_equal(logit_bits(left), logit_bits(right))
    assert logit_bits(np.array([[1.0, -2.0]], np.float32)).tolist() == [[0x3F800000, 0xC0000000 - 2**32]]


def test_nan_wins_nothing_and_names_the_image() -> None:
    bad = TIED.copy()
    bad[1, 4] = np.nan
    calls = (lambda: top1(bad), lambda: topk(bad, 5), lambda: compare_logits(TIED, bad), lambda: tied_images(bad))
    for call in calls:
        with pytest.raises(InputError, match="image 1 has NaN"):
            call()


def test_ties_go_to_the_lowest_class() -> None:
    assert top1(TIED).tolist() == [1, 0]
    best = topk(TIED, 5)
    assert best is not None
    assert best.tolist() == [[1, 3, 7, 6, 5], [0, 7, 6, 5, 4]]
    assert tied_images(TIED) == 1
    for label, expected in ((1, 50.0), (3, 0.0), (7, 0.0)):
        assert accuracy(TIED, np.array([label, 2])) == expected


def test_a_tie_across_the_fifth_place_keeps_the_lower_class() -> None:
    flat = np.zeros((1, 9), np.float32)
    assert accuracy(flat, np.array([4]), k=5) == 100.0
    assert accuracy(flat, np.array([5]), k=5) == 0.0


@pytest.mark.parametrize(("classes", "expected"), [(1, None), (2, None), (4, None), (5, None), (6, 100.0)])
def test_top5_says_nothing_where_any_answer_would_be_right(classes: int, expected: float | None) -> None:
    assert accuracy(np.zeros((3, classes), np.float32), np.zeros(3, np.int64), k=5) == expected


def test_no_images_have_no_accuracy_and_no_agreement() -> None:
    empty, labels = np.zeros((0, 10), np.float32), np.zeros(0, np.int64)
    assert accuracy(empty, labels) is None
    assert agreement(empty, empty) is None
    assert compare_logits(empty, empty) == LogitParity(0, 0, 0.0, 0)
    assert tied_images(empty) == 0


def test_labels_must_be_one_per_image() -> None:
    with pytest.raises(InputError, match="labels for 2 images"):
        accuracy(TIED, np.zeros(3, np.int64))


@given(st.lists(st.lists(st.integers(-3, 3), min_size=7, max_size=7), min_size=1, max_size=6), st.integers(1, 6))
def test_topk_is_the_stable_sort_and_begins_with_top1(rows: list[list[int]], k: int) -> None:
    best = topk(np.array(rows, np.float32), k)
    assert best is not None
    assert best.tolist() == [[i for _, i in sorted((-value, i) for i, value in enumerate(row))][:k] for row in rows]
    assert top1(np.array(rows, np.float32)).tolist() == best[:, 0].tolist()
