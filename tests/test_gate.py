"""Verdicts and exit codes."""

from __future__ import annotations

from typing import Literal

import pytest

from faq_deploy.gate import Limits, judge
from faq_deploy.report_model import Stage

Kind = Literal["float", "quantized", "reference", "onnxruntime", "engine"]


def stage(kind: Kind, top1: float, flips: int = 0, images: int = 1000, name: str = "") -> Stage:
    return Stage(name=name or kind, kind=kind, images=images, top1=top1, flips=flips, max_logit_difference=0.0)


def skipped(name: str = "engine tensorrt") -> Stage:
    return Stage(name=name, kind="engine", skipped="no NVIDIA GPU here.")


FLOAT, QUANTIZED, ENGINE = stage("float", 90.0), stage("quantized", 89.5), stage("engine", 89.5)


def code(*stages: Stage, **limits: object) -> int:
    return judge([FLOAT, QUANTIZED, *stages], Limits(**limits))[1].exit_code  # type: ignore[arg-type]


def test_equal_engine_passes() -> None:
    gates, verdict = judge([FLOAT, QUANTIZED, stage("engine", 89.5)], Limits())
    assert verdict.exit_code == 0
    assert [g.name for g in gates] == ["accuracy drop: engine", "flips: engine"]


@pytest.mark.parametrize(("top1", "wanted"), [(89.4, 0), (89.39, 1), (91.0, 0)])
def test_drop_at_the_limit_passes_and_over_it_fails(top1: float, wanted: int) -> None:
    assert code(stage("engine", top1)) == wanted


@pytest.mark.parametrize(("flips", "limit", "wanted"), [(0, 0, 0), (1, 0, 1), (1, 1, 0), (3, 2, 1)])
def test_flips_are_limited(flips: int, limit: int, wanted: int) -> None:
    assert code(stage("onnxruntime", 89.5, flips), ENGINE, max_flips=limit) == wanted


def test_skipped_engine_never_passes_unless_allowed() -> None:
    assert code(skipped()) == 3
    assert code(skipped(), allow_skip=True) == 0


def test_run_without_any_engine_never_passes_unless_allowed() -> None:
    reference = stage("reference", 89.5)
    _, verdict = judge([FLOAT, QUANTIZED, reference], Limits())
    assert (verdict.passed, verdict.exit_code) == (False, 3)
    assert verdict.sentences[0] == "No engine was built, so none was judged."
    assert "faq-deploy build" in verdict.sentences[1]
    _, verdict = judge([FLOAT, QUANTIZED, reference], Limits(allow_skip=True))
    assert verdict.exit_code == 0
    assert "No engine was built, so none was judged." in verdict.sentences
    assert code(stage("reference", 89.5, flips=1), allow_skip=True) == 1


def test_broken_gate_outweighs_a_skipped_engine() -> None:
    _, verdict = judge([FLOAT, QUANTIZED, stage("engine", 80.0, 95), skipped()], Limits())
    assert verdict.exit_code == 1
    assert verdict.sentences[0].startswith("accuracy drop: engine is 9.5, the limit is 0.1")


def test_drop_of_quantization_is_a_gate_only_when_asked_for() -> None:
    assert code(stage("engine", 89.5)) == 0
    assert code(stage("engine", 89.5), max_float_drop=0.5) == 0
    assert code(stage("engine", 89.5), max_float_drop=0.4) == 1


def test_stage_with_fewer_images_is_not_judged_by_its_accuracy() -> None:
    gates, verdict = judge([FLOAT, QUANTIZED, stage("reference", 80.0, images=10), ENGINE], Limits())
    assert verdict.passed
    assert [g.name for g in gates] == ["flips: reference", "accuracy drop: engine", "flips: engine"]


def test_engine_whose_logits_depend_on_the_batch_fails() -> None:
    told = stage("engine", 89.5).model_copy(update={"batch_dependent_logits": 0})
    gates, verdict = judge([FLOAT, QUANTIZED, told], Limits())
    assert [g.name for g in gates] == ["accuracy drop: engine", "flips: engine", "batch invariance: engine"]
    assert verdict.exit_code == 0
    _, verdict = judge([FLOAT, QUANTIZED, told.model_copy(update={"batch_dependent_logits": 3})], Limits())
    assert verdict.exit_code == 1
    assert verdict.sentences[0] == (
        "batch invariance: engine is 3, the limit is 0 (logits of an image that depend on the batch it comes in)."
    )
