"""What a run must keep, and the verdict with its exit code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from faq_deploy.report_model import Gate, Stage, Verdict

__all__ = ["TOP1", "Limits", "judge"]

TOP1: Final = "top-1"


@dataclass(frozen=True)
class Limits:
    """The gates of `eval`.

    Attributes:
        max_drop: points of top-1 that a stage may lose against PyTorch quantized.
        max_flips: images whose top-1 may differ from PyTorch quantized.
        max_float_drop: points that PyTorch quantized may lose against PyTorch float; None for no such gate.
        min_top1: percent that PyTorch quantized must reach; None for no such gate.
        allow_skip: whether engines may be left out: none was built, or one can't run here.
    """

    max_drop: float = 0.1
    max_flips: int = 0
    max_float_drop: float | None = None
    min_top1: float | None = None
    allow_skip: bool = False


def judge(stages: Sequence[Stage], limits: Limits, certain: Sequence[Gate] = ()) -> tuple[list[Gate], Verdict]:
    """Gates and verdict of an evaluation.

    Args:
        stages: float first, then quantized, then what was built from it.
        limits: see `Limits`.
        certain: gates that were judged elsewhere, on what needs no statistics.

    Returns:
        Every gate, and exit code 0 (all kept), 1 (one broken) or 3 (all kept, but no engine was built or a wanted one
        was skipped).
    """
    quantized = next(s for s in stages if s.kind == "quantized")
    gates: list[Gate] = list(certain)
    for stage in stages:
        if stage.kind in {"float", "quantized"} or stage.skipped is not None:
            continue
        gates += _against_quantized(stage, quantized, limits)
    floating = next((s for s in stages if s.kind == "float"), None)
    if limits.max_float_drop is not None and floating is not None:
        drop = _points(floating, quantized)
        gates.append(
            Gate(
                name="drop of quantization",
                limit=limits.max_float_drop,
                value=drop,
                passed=drop is not None and drop <= limits.max_float_drop + 1e-9,
                detail="points of top-1, PyTorch float minus PyTorch quantized",
            )
        )
    if limits.min_top1 is not None:
        gates.append(
            Gate(
                name=TOP1,
                limit=limits.min_top1,
                value=quantized.top1,
                passed=quantized.top1 is not None and quantized.top1 >= limits.min_top1 - 1e-9,
                detail="percent of PyTorch quantized, at least",
            )
        )
    return gates, _verdict(gates, stages, limits)


def _against_quantized(stage: Stage, quantized: Stage, limits: Limits) -> list[Gate]:
    drop = _points(quantized, stage)
    same_images = stage.images == quantized.images
    gates = [
        Gate(
            name=f"flips: {stage.name}",
            limit=limits.max_flips,
            value=stage.flips,
            passed=stage.flips is not None and stage.flips <= limits.max_flips,
            detail="images whose top-1 differs from PyTorch quantized",
        )
    ]
    if stage.batch_dependent_logits is not None:
        gates.append(
            Gate(
                name=f"batch invariance: {stage.name}",
                limit=0,
                value=stage.batch_dependent_logits,
                passed=stage.batch_dependent_logits == 0,
                detail="logits of an image that depend on the batch it comes in",
            )
        )
    if same_images:  # a stage that saw fewer images has another top-1 for that reason alone
        gates.insert(
            0,
            Gate(
                name=f"accuracy drop: {stage.name}",
                limit=limits.max_drop,
                value=drop,
                passed=drop is not None and drop <= limits.max_drop + 1e-9,
                detail="points of top-1 against PyTorch quantized",
            ),
        )
    return gates


def _points(before: Stage, after: Stage) -> float | None:
    if before.top1 is None or after.top1 is None:
        return None
    return before.top1 - after.top1


def _verdict(gates: Sequence[Gate], stages: Sequence[Stage], limits: Limits) -> Verdict:
    skipped = [s for s in stages if s.skipped is not None]
    no_engine = all(s.kind != "engine" for s in stages)
    broken = [g for g in gates if not g.passed]
    sentences = [f"{g.name} is {_number(g.value)}, the limit is {_number(g.limit)} ({g.detail})." for g in broken]
    sentences += [f"{s.name} was skipped: {s.skipped}" for s in skipped]
    if no_engine:
        sentences.append("No engine was built, so none was judged.")
    if broken:
        return Verdict(passed=False, exit_code=1, sentences=sentences)
    if no_engine and not limits.allow_skip:
        sentences.append("Build one with `faq-deploy build`, or pass --allow-skip to judge the net without an engine.")
        return Verdict(passed=False, exit_code=3, sentences=sentences)
    if skipped and not limits.allow_skip:
        sentences.append("A skipped engine is not a passed one: run this where it can run, or pass --allow-skip.")
        return Verdict(passed=False, exit_code=3, sentences=sentences)
    return Verdict(passed=True, exit_code=0, sentences=[f"All {len(gates)} gates passed.", *sentences])


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:g}"
