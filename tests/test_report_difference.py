"""Two reports side by side."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from faq_deploy.predictions import Predictions
from faq_deploy.report_difference import Difference, GridChange, Row, difference, sentences
from faq_deploy.report_model import Engine, Layer, Stage
from faq_deploy.statistics import wilson
from faq_deploy.stored_report import StoredReport
from tests.test_report import RELU, report

LABELS = np.zeros(200, np.int64)


def stored(name: str, wrong: int, *, predictions: bool = True, **changes: object) -> StoredReport:
    found = LABELS.copy()
    found[:wrong] = 1
    low, high = wilson(200 - wrong, 200)
    quantized = Stage(
        name="PyTorch quantized", kind="quantized", images=200, top1=100 - wrong / 2, latency_ms=float(wrong)
    ).model_copy(update={"top1_interval": (low, high)})
    some = Stage(name="reference", kind="reference", images=20, top1=50.0)
    facts: dict[str, object] = {
        "run": name,
        "stages": [quantized, some],
        "images_sha256": "same",
        "onnx_sha256": name,
        "layers": [RELU, RELU.model_copy(update={"name": "relu2", "exponent_min": -wrong, "exponent_max": -4})],
        "engines": [Engine(name="e", status="ran", bytes=100 * wrong)],
        "recipe": {"bits": 8, "training.lr": wrong},
    }
    answers = Predictions([], ("a", "b"), LABELS, {"PyTorch quantized": found}) if predictions else None
    return StoredReport(Path(name), report(**facts | changes), answers)


def told(found: Difference) -> str:
    return "\n".join(sentences(found))


def test_figures_stand_side_by_side() -> None:
    found = difference(stored("a", 4), stored("b", 10))
    assert found.top1 == [Row("PyTorch quantized", 98.0, 95.0)]  # the reference ran too few
    assert found.latency_ms == [Row("PyTorch quantized", 4.0, 10.0), Row("reference", None, None)]
    assert found.bytes == [Row("e", 400, 1000)]
    assert found.recipe == [("training.lr", 4, 10)]
    assert found.grids == [GridChange("relu2", "activation", "7 unsigned bits, l -4", "7 unsigned bits, l -10 to -4")]
    assert found.tensors == 2
    assert told(found) == (
        "The same 200 images: 6 that a has right are lost in b, 0 are gained, 6 are answered otherwise (exact McNemar "
        "test: p = 0.0312).\n"
        "b loses 3.00 points of top-1 against a; the true drop lies between 0.26 and 5.68 (95 %).\n"
        "1 of 2 tensors have another grid."
    )


def test_one_network_is_certain() -> None:
    found = difference(stored("a", 4), stored("a", 4))
    assert found.same_network and found.comparison is not None and found.comparison.certain
    assert told(found).startswith("Both are of the same model.onnx.\nThe same 200 images: 0 ")
    assert found.grids == [] and found.recipe == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"images_sha256": "other"}, "The images are not the same"),
        ({"predictions": False}, "predictions.csv does not lie beside both reports"),
    ],
)
def test_without_the_same_answers_two_samples_are_compared(changes: dict[str, object], said: str) -> None:
    found = difference(stored("a", 4), stored("b", 10, **changes))  # type: ignore[arg-type]
    assert found.comparison is None and found.drop == 3.0
    assert said in told(found)
    assert found.interval is not None and found.interval.low < 0 < found.interval.high


def test_two_models_are_compared_by_their_figures_only() -> None:
    other = Layer(name="x", kind="weight", bits=4, signed=True, exponent_min=-3, exponent_max=-1)
    found = difference(stored("a", 4), stored("b", 10, model="timm:x", layers=[other]))
    assert not found.same_model
    assert told(found).startswith("These are two models")
    assert "another grid" not in told(found)
    assert found.grids[-1] == GridChange("x", "weight", "", "4 bits, l -3 to -1")
