"""Rows and the floor of classes."""

from __future__ import annotations

import numpy as np
import pytest

from faq_deploy.class_rows import class_gate, class_rows
from faq_deploy.predictions import Predictions


def predictions(lost: int, images: int = 1000) -> Predictions:
    """`dog` loses so many of its images, `cat` none; nobody has a picture of `cow`."""
    labels = np.repeat([0, 2], images)
    after = labels.copy()
    after[images : images + lost] = 0
    names = [str(index) for index in range(len(labels))]
    answers = {"PyTorch float": labels, "PyTorch quantized": after, "reference": after[:5]}
    return Predictions(names, ("cat", "cow", "dog"), labels, answers)


def test_a_class_without_images_keeps_its_row() -> None:
    rows = {row.name: (row.images, row.right) for row in class_rows(predictions(3, images=10))}
    assert rows == {
        "cat": (10, {"PyTorch float": 10, "PyTorch quantized": 10}),  # the reference ran only some of the images
        "cow": (0, {"PyTorch float": 0, "PyTorch quantized": 0}),
        "dog": (10, {"PyTorch float": 10, "PyTorch quantized": 7}),
    }


@pytest.mark.parametrize(
    ("lost", "images", "limit", "outcome"),
    [
        (20, 1000, 5.0, "passed"),
        (20, 1000, 2.0, "undecided"),
        (20, 1000, 1.9, "failed"),
        (0, 10, 5.0, "undecided"),  # ten images leave 23 points open
        (0, 10, 24.0, "passed"),
    ],
)
def test_no_class_may_lose_more_than_the_limit(lost: int, images: int, limit: float, outcome: str) -> None:
    found = predictions(lost, images)
    gate = class_gate(found, "PyTorch float", "PyTorch quantized", limit, allow_undecided=False)
    assert gate is not None
    assert (gate.outcome, gate.passed) == (outcome, outcome == "passed")
    assert gate.value == 100 * lost / images
    if lost:
        assert f"dog ({lost} of its {images} images lost, 0 gained)" in gate.detail
    allowed = class_gate(found, "PyTorch float", "PyTorch quantized", limit, allow_undecided=True)
    assert allowed is not None and allowed.passed == (outcome != "failed")


def test_a_stage_that_did_not_run_has_no_gate() -> None:
    assert class_gate(predictions(1), "PyTorch float", "engine", 1.0, allow_undecided=True) is None
