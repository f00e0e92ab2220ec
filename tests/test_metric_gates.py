"""The gates on a metric, by hand."""

from __future__ import annotations

from typing import Literal

import pytest

from faq_deploy.metric_gates import metric_gates
from faq_deploy.report_model import Stage

Kind = Literal["float", "quantized", "reference", "engine"]


def stage(kind: Kind, metric: float | None, images: int = 100) -> Stage:
    return Stage(name=kind, kind=kind, images=images, top1=50.0, metric=metric)


def test_quantization_and_each_stage_may_lose_so_much() -> None:
    stages = [stage("float", 0.9), stage("quantized", 0.85), stage("reference", 0.1, 8), stage("engine", 0.84)]
    gates = list(metric_gates(stages, "f1", 0.05))
    assert [(gate.name, gate.value, gate.passed) for gate in gates] == [
        ("drop of f1 by quantization", 0.05, True),
        ("drop of f1: engine", 0.01, True),
    ]
    assert [gate.passed for gate in metric_gates(stages, "f1", 0.03)] == [False, True]
    assert not list(metric_gates(stages, "f1", None))


def test_a_gain_is_no_drop_and_what_was_not_measured_fails() -> None:
    gates = list(metric_gates([stage("float", 0.5), stage("quantized", 0.6), stage("engine", None)], "f1", 0.0))
    assert [(gate.value, gate.passed) for gate in gates] == [(pytest.approx(-0.1), True), (None, False)]
