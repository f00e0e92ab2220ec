"""A run against an earlier report: image by image where it can be, and refused where it is of something else."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from engines.errors import InputError
from faq_deploy.baseline import Candidate, against_baseline, read_baseline
from faq_deploy.comparison import model_name
from faq_deploy.limits import Limits
from faq_deploy.predictions import Predictions
from faq_deploy.report import write_json
from faq_deploy.report_model import Engine, Gate, Report, Stage
from faq_deploy.report_parts import ClassRow
from faq_deploy.statistics import wilson
from faq_deploy.stored_report import StoredReport
from tests.test_report import report

IMAGES = 1000
LABELS = np.zeros(IMAGES, np.int64)


def answers(wrong: int, start: int = 0) -> Predictions:
    found = LABELS.copy()
    found[start : start + wrong] = 1
    names = [str(index) for index in range(IMAGES)]
    return Predictions(names, ("a", "b"), LABELS, {"PyTorch quantized": found})


def quantized(wrong: int) -> Stage:
    right = IMAGES - wrong
    interval = wilson(right, IMAGES)
    return Stage(
        name="PyTorch quantized",
        kind="quantized",
        images=IMAGES,
        top1=right / 10,
        top1_interval=(interval.low, interval.high),
    )


def engine(milliseconds: float) -> Stage:
    return Stage(name="engine e", kind="engine", images=IMAGES, top1=90.0, latency_ms=milliseconds)


def stored(wrong: int = 100, *, predictions: bool = True, **changes: object) -> StoredReport:
    facts: dict[str, object] = {
        "stages": [quantized(wrong), engine(2.0)],
        "engines": [Engine(name="e", status="ran", bytes=1000)],
        "images_sha256": "same",
        "onnx_sha256": "old",
        "classes": [ClassRow(name=name, images=1, right={}) for name in ("a", "b")],
    }
    return StoredReport(Path("old/report.json"), report(**facts | changes), answers(wrong) if predictions else None)


def candidate(wrong: int = 100, start: int = 0, **changes: object) -> Candidate:
    plain = Candidate(
        quantized(wrong),
        [quantized(wrong), engine(3.0)],
        [Engine(name="e", status="ran", bytes=1500)],
        answers(wrong, start),
        "same",
        "new",
    )
    return dataclasses.replace(plain, **changes)  # type: ignore[arg-type]


def gate_of(baseline: StoredReport, run: Candidate, **limits: object) -> Gate:
    return against_baseline(baseline, run, Limits.model_validate(limits))[1][0]


@pytest.mark.parametrize(
    ("wrong", "limit", "outcome"),
    [
        (100, 0.5, "passed"),
        (100, 0.2, "undecided"),
        (110, 0.5, "failed"),
        (110, 1.1, "undecided"),
        (110, 2.0, "passed"),
    ],
)
def test_regression_is_judged_image_by_image(wrong: int, limit: float, outcome: str) -> None:
    gate = gate_of(stored(), candidate(wrong), max_regression=limit)
    assert (gate.name, gate.outcome, gate.value) == ("regression", outcome, (wrong - 100) / 10)
    assert f"{wrong - 100} images lost, 0 gained" in gate.detail
    allowed = gate_of(stored(), candidate(wrong), max_regression=limit, allow_undecided=True)
    assert allowed.passed == (outcome != "failed")


def test_the_same_network_with_the_same_answers_is_certain() -> None:
    facts, (gate,) = against_baseline(stored(), candidate(onnx_sha256="old"), Limits(max_regression=0))
    assert (gate.passed, gate.undecided, gate.interval) == (True, False, None)
    assert (facts.same_images, facts.same_network) == (True, True)
    assert facts.comparison is not None and facts.comparison.certain and facts.comparison.flips == 0


def test_without_the_same_images_two_samples_are_compared_and_that_takes_more_of_them() -> None:
    for baseline in (stored(images_sha256="other"), stored(predictions=False)):
        facts, (gate,) = against_baseline(baseline, candidate(), Limits(max_regression=1.5))
        assert facts.comparison is None
        assert gate.outcome == "undecided" and gate.interval is not None
        # two samples of 1,000 at 90 %: 1.96 x sqrt(2 x 0.9 x 0.1 / 1000)
        assert gate.interval[1] == pytest.approx(2.63, abs=0.1)
        assert "not image by image" in gate.detail
    assert gate_of(stored(images_sha256="other"), candidate(), max_regression=3).outcome == "passed"


@pytest.mark.parametrize(("limit", "kept"), [(1.5, True), (1.4, False)])
def test_growth_of_bytes_and_latency_is_limited(limit: float, kept: bool) -> None:
    limits = Limits(max_bytes_growth=limit, max_latency_growth=limit)
    _, gates = against_baseline(stored(), candidate(), limits)
    assert [(g.name, g.value, g.passed) for g in gates[1:]] == [
        ("bytes growth: e", 1.5, kept),
        ("latency growth: e", 1.5, kept),
    ]


def test_growth_of_no_common_engine_never_passes() -> None:
    _, gates = against_baseline(stored(engines=[]), candidate(), Limits(max_bytes_growth=99, max_latency_growth=99))
    assert [(g.value, g.passed) for g in gates[1:]] == [(None, False), (None, False)]


def test_a_baseline_of_another_model_or_other_classes_is_refused(tmp_path: Path) -> None:
    write_json(stored(predictions=False).report, tmp_path / "report.json")
    model = "torchvision:resnet18"
    assert read_baseline(tmp_path, model, ("a", "b")).report.model == model
    with pytest.raises(InputError, match="is of torchvision:resnet18, and this run is of torchvision:resnet34"):
        read_baseline(tmp_path, "torchvision:resnet34", ("a", "b"))
    with pytest.raises(InputError, match="has other classes than this run"):
        read_baseline(tmp_path, model, ("b", "a"))
    without: Report = stored(predictions=False, stages=[engine(1.0)]).report
    write_json(without, tmp_path / "report.json")
    with pytest.raises(InputError, match="has no stage PyTorch quantized"):
        read_baseline(tmp_path, model, ("a", "b"))


def test_a_users_file_is_the_same_model_wherever_it_lies() -> None:
    assert model_name("/a/nets.py:build") == model_name("../nets.py:build") == "nets.py:build"
    assert model_name("timm:a/b") == "timm:a/b"
