"""Verdicts and exit codes."""

from __future__ import annotations

from typing import Literal

import pytest

from faq_deploy.gate import judge, what_images_show
from faq_deploy.limits import Limits
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


def counted(kind: Kind, top1: float, lost: int, gained: int, images: int = 1000, difference: float = 0.1) -> Stage:
    """A stage that was compared with PyTorch quantized image by image."""
    found = {"lost": lost, "gained": gained, "flips": lost + gained, "max_logit_difference": difference}
    return stage(kind, top1, images=images).model_copy(update=found)


@pytest.mark.parametrize(
    ("lost", "gained", "limit", "undecided"),
    [
        (0, 0, 0.1, True),  # 1,000 images without a flip leave a third of a point open
        (0, 0, 0.3, False),
        (5, 5, 0.5, True),
        (5, 5, 1.0, False),
        (60, 50, 2.0, True),
    ],
)
def test_a_drop_that_so_few_images_leave_open_is_undecided(
    lost: int, gained: int, limit: float, undecided: bool
) -> None:
    engine = counted("engine", 89.5 - (lost - gained) / 10, lost, gained)
    limits = {"max_drop": limit, "max_flips": 1000}
    gates, verdict = judge([FLOAT, QUANTIZED, engine], Limits(**limits))  # type: ignore[arg-type]
    assert gates[0].undecided is undecided and gates[0].passed is not undecided
    assert verdict.exit_code == (1 if undecided else 0)
    assert gates[0].interval is not None and (gates[0].interval[1] > limit) is undecided
    gates, verdict = judge([FLOAT, QUANTIZED, engine], Limits(**limits, allow_undecided=True))  # type: ignore[arg-type]
    assert verdict.exit_code == 0 and gates[0].undecided is undecided
    wanted = "All 2 gates passed, 1 of them undecided." if undecided else "All 2 gates passed."
    assert verdict.sentences[0] == wanted


def test_equal_logits_are_certain_however_few_the_images() -> None:
    gates, verdict = judge([FLOAT, QUANTIZED, counted("engine", 89.5, 0, 0, images=1000, difference=0.0)], Limits())
    assert verdict.exit_code == 0
    assert (gates[0].interval, gates[0].undecided) == (None, False)


def test_an_undecided_gate_says_its_interval_and_the_ways_out() -> None:
    _, verdict = judge([FLOAT, QUANTIZED, counted("engine", 89.5, 0, 0)], Limits())
    assert verdict.sentences == [
        "accuracy drop: engine is 0, the limit is 0.1 (points of top-1 against PyTorch quantized; undecided: on 1,000 "
        "images the drop lies between -0.28 and 0.28 points (95 %)).",
        "More images would decide it; --allow-undecided passes it as it is.",
    ]


def test_a_drop_over_its_limit_is_broken_and_not_undecided() -> None:
    gates, verdict = judge([FLOAT, QUANTIZED, counted("engine", 88.5, 10, 0)], Limits(max_flips=99))
    assert (gates[0].passed, gates[0].undecided, verdict.exit_code) == (False, False, 1)
    assert (
        judge([FLOAT, QUANTIZED, counted("engine", 88.5, 10, 0)], Limits(max_flips=99, allow_undecided=True))[
            1
        ].exit_code
        == 1
    )


def test_the_drop_of_quantization_counts_what_float_has_right() -> None:
    """Float gains 30 images on quantized and loses 25: quantization loses half a point, somewhere from -1 to 2."""
    floating = counted("float", 90.0, 25, 30)
    gates, _ = judge([floating, QUANTIZED, ENGINE], Limits(max_float_drop=0.5))
    (gate,) = (g for g in gates if g.name == "drop of quantization")
    assert gate.value == 0.5 and gate.undecided
    assert gate.interval is not None and gate.interval[0] < -0.9 and gate.interval[1] > 1.9
    gates, _ = judge([floating, QUANTIZED, ENGINE], Limits(max_float_drop=2.5))
    assert all(g.passed for g in gates)


def test_what_images_show_is_said_in_numbers() -> None:
    row = QUANTIZED.model_copy(update={"top1_interval": (87.43, 91.25)})
    assert what_images_show(row) == (
        "1,000 images: top-1 on all such lies between 87.43 % and 91.25 % (95 %); a drop under 0.6 points could not "
        "have been told from chance."
    )
