"""Another order of the classes: found on half of the images, measured on the rest, and never by luck."""

from __future__ import annotations

import numpy as np
import pytest

from faq_deploy.class_order import other_class_order

NAMES = ("ant", "bee", "cat", "dog")


def answers_of(place: list[int], labels: np.ndarray, right: float, seed: int = 0) -> np.ndarray:
    """A net that calls class place[i] by i, in a share of cases; else anything."""
    rng = np.random.default_rng(seed)
    called = np.argsort(place)[labels]
    return np.where(rng.random(len(labels)) < right, called, rng.integers(len(place), size=len(labels)))


@pytest.mark.parametrize("place", [[1, 0, 2, 3], [1, 2, 3, 0], [3, 2, 1, 0]])
def test_permutation_is_found(place: list[int]) -> None:
    labels = np.repeat(np.arange(4), 50)
    found = other_class_order(answers_of(place, labels, 0.8), labels, NAMES)
    assert found is not None
    assert found.place == tuple(place)
    assert found.images == 100 and found.after > 75 and found.before < 70
    moved = [i for i in range(4) if place[i] != i]
    assert found.says.startswith(f"the classes are in another order: {len(moved)} of 4 (")
    assert f"{NAMES[place[moved[0]]]} is called {NAMES[moved[0]]}" in found.says


def test_given_order_and_guesses_have_none() -> None:
    labels = np.repeat(np.arange(4), 50)
    assert other_class_order(answers_of([0, 1, 2, 3], labels, 0.8), labels, NAMES) is None
    for seed in range(20):
        assert other_class_order(answers_of([0, 1, 2, 3], labels, 0.0, seed), labels, NAMES) is None


def test_numeric_against_lexical_order_is_called_by_its_name() -> None:
    """Case C08: folders 0 to 11 in lexical order, and a net whose output i means folder i."""
    names = tuple(sorted(map(str, range(12))))
    labels = np.repeat(np.arange(12), 10)
    answers = np.array([int(names[label]) for label in labels])
    found = other_class_order(answers, labels, names)
    assert found is not None
    assert found.says.startswith("the net's classes are in numeric order, and the folders were taken in the other (")
    assert (round(found.before, 1), found.after) == (16.7, 100.0)
