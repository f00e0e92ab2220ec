"""Are the classes in another order than the logits? The assignment of answers to labels that fits best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from engines.image_files import is_number
from engines.swaps import is_gain

__all__ = ["ClassOrder", "other_class_order"]

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class ClassOrder:
    """A permutation of the classes that restores top-1.

    Attributes:
        says: the fault, in words.
        images: on how many images it was measured; none of them served to find it.
        before, after: top-1 in percent without and with it.
        place: place[i] is the class whose images the net calls i.
    """

    says: str
    images: int
    before: float
    after: float
    place: tuple[int, ...]


def other_class_order(answers: IntArray, labels: IntArray, classes: Sequence[str]) -> ClassOrder | None:
    """Find the order on every other image, and measure it on the rest, since some order always fits by luck.

    Args:
        answers: class indices that the net gave, shape (N,).
        labels: class indices of the images, shape (N,).
        classes: their names.

    Returns:
        The order, if it gains more than luck can; None where it is the given one, or gains nothing.
    """
    from scipy.optimize import linear_sum_assignment

    # within a class every other image: a set may be sorted by class
    order = np.argsort(labels, kind="stable")
    learn, judge = order[::2], order[1::2]
    confusion = np.zeros((len(classes), len(classes)))
    np.add.at(confusion, (answers[learn], labels[learn]), 1)
    # classes that tell nothing stay where they are
    _, place = linear_sum_assignment(confusion + 0.5 * np.eye(len(classes)), maximize=True)
    before, after = answers[judge] == labels[judge], place[answers[judge]] == labels[judge]
    if not len(judge) or not is_gain(before, after):
        return None
    says = _words(place, classes)
    return ClassOrder(says, len(judge), 100 * float(before.mean()), 100 * float(after.mean()), tuple(map(int, place)))


def _words(place: IntArray, classes: Sequence[str]) -> str:
    moved = [index for index in range(len(classes)) if place[index] != index]
    some = ", ".join(f"{classes[place[index]]} is called {classes[index]}" for index in moved[:3])
    more = ", ..." if len(moved) > 3 else ""
    if all(map(is_number, classes)):
        numeric, lexical = sorted(classes, key=float), sorted(classes)
        given = list(classes)
        other, name = (numeric, "numeric") if given == lexical else (lexical, "lexical")
        if given in (numeric, lexical) and [given.index(name) for name in other] == [int(index) for index in place]:
            return f"the net's classes are in {name} order, and the folders were taken in the other ({some}{more})"
    return f"the classes are in another order: {len(moved)} of {len(classes)} ({some}{more})"
