"""What a run must keep, and the verdict with its exit code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from faq_deploy.limits import Limits
from faq_deploy.predictions import Predictions
from faq_deploy.report_model import Gate, Stage, Verdict
from faq_deploy.statistics import Pairs, drop_interval, smallest_visible_drop

__all__ = ["TOP1", "judge", "what_images_show"]

TOP1: Final = "top-1"


def judge(
    stages: Sequence[Stage], limits: Limits, certain: Sequence[Gate] = (), predictions: Predictions | None = None
) -> tuple[list[Gate], Verdict]:
    """Gates and verdict of an evaluation.

    Args:
        stages: float first, then quantized, then what was built from it.
        limits: see `Limits`.
        certain: gates that were judged elsewhere.
        predictions: of all stages; where there are none, a drop against PyTorch float has no interval.

    Returns:
        Every gate, and exit code 0 (all kept), 1 (one broken) or 3 (all kept, but no engine was built or a wanted one
        was skipped).
    """
    quantized = next(s for s in stages if s.kind == "quantized")
    floating = next((s for s in stages if s.kind == "float"), None)
    gates: list[Gate] = list(certain)
    for stage in stages:
        if stage.kind in {"float", "quantized"} or stage.skipped is not None:
            continue
        if stage.images == quantized.images:  # one that saw fewer images has another top-1 for that reason alone
            if limits.drop_against == "float" and floating is not None:
                pairs = None if predictions is None else predictions.pairs(floating.name, stage.name)
                drop = Drop(_points(floating, stage), pairs, certain=False)
            else:
                pairs = _pairs(stage.images, stage.lost, stage.gained)
                drop = Drop(_points(quantized, stage), pairs, certain=stage.max_logit_difference == 0)
            said = f"points of top-1 against PyTorch {limits.drop_against}"
            gates.append(_drop_gate(f"accuracy drop: {stage.name}", drop, limits.max_drop, limits, said))
        gates += _against_quantized(stage, limits)
    if limits.max_float_drop is not None and floating is not None:
        said = "points of top-1, PyTorch float minus PyTorch quantized"
        # what float gained against quantized is what quantization lost
        pairs = _pairs(floating.images, floating.gained, floating.lost)
        drop = Drop(_points(floating, quantized), pairs, certain=False)
        gates.append(_drop_gate("drop of quantization", drop, limits.max_float_drop, limits, said))
    if limits.min_top1 is not None:
        gates.append(_floor_gate(quantized, limits.min_top1, limits))
    return gates, _verdict(gates, stages, limits)


def what_images_show(quantized: Stage) -> str:
    """What the number of images allows to say, in one sentence.

    Args:
        quantized: PyTorch quantized's row.
    """
    if quantized.top1_interval is None:
        return "So few images show nothing."
    low, high = quantized.top1_interval
    least = smallest_visible_drop(quantized.images)
    unseen = "no drop could have been" if least is None else f"a drop under {least:.2g} points could not have been"
    return (
        f"{quantized.images:,} images: top-1 on all such lies between {low:.2f} % and {high:.2f} % (95 %); {unseen} "
        "told from chance."
    )


def _against_quantized(stage: Stage, limits: Limits) -> list[Gate]:
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
    return gates


def _floor_gate(quantized: Stage, limit: float, limits: Limits) -> Gate:
    """A limit on top-1: undecided where top-1 keeps it and its interval does not."""
    kept = quantized.top1 is not None and quantized.top1 >= limit - 1e-9
    interval = quantized.top1_interval
    undecided = kept and interval is not None and interval[0] < limit - 1e-9
    detail = "percent of PyTorch quantized, at least"
    if undecided and interval is not None:
        detail += (
            f"; undecided: on {quantized.images:,} images top-1 lies between {interval[0]:.2f} and {interval[1]:.2f} % "
            "(95 %)"
        )
    return Gate(
        name=TOP1,
        limit=limit,
        value=quantized.top1,
        passed=kept and (not undecided or limits.allow_undecided),
        interval=interval,
        undecided=undecided,
        detail=detail,
        at_least=True,
    )


@dataclass(frozen=True)
class Drop:
    """What a stage loses against another.

    Attributes:
        points: of top-1 on the images that were run.
        pairs: the two stages image by image; None where they were not compared so.
        certain: every logit is the same, so that no other images could show more.
    """

    points: float | None
    pairs: Pairs | None
    certain: bool


def _drop_gate(name: str, drop: Drop, limit: float, limits: Limits, detail: str) -> Gate:
    """A limit on a drop: undecided where the drop keeps it and its interval does not."""
    kept = drop.points is not None and drop.points <= limit + 1e-9
    interval = None if drop.certain or drop.pairs is None else drop_interval(drop.pairs)
    undecided = kept and interval is not None and interval.high > limit + 1e-9
    if undecided and interval is not None and drop.pairs is not None:
        detail += (
            f"; undecided: on {drop.pairs.images:,} images the drop lies between {interval.low:.2f} and "
            f"{interval.high:.2f} points (95 %)"
        )
    return Gate(
        name=name,
        limit=limit,
        value=drop.points,
        passed=kept and (not undecided or limits.allow_undecided),
        interval=interval,
        undecided=undecided,
        detail=detail,
    )


def _pairs(images: int, lost: int | None, gained: int | None) -> Pairs | None:
    return None if lost is None or gained is None else Pairs(images, lost, gained, lost + gained)


def _points(before: Stage, after: Stage) -> float | None:
    if before.top1 is None or after.top1 is None:
        return None
    return before.top1 - after.top1


def _verdict(gates: Sequence[Gate], stages: Sequence[Stage], limits: Limits) -> Verdict:
    skipped = [s for s in stages if s.skipped is not None]
    no_engine = all(s.kind != "engine" for s in stages)
    broken = [g for g in gates if not g.passed]
    sentences = [f"{g.name} is {_number(g.value)}, the limit is {_number(g.limit)} ({g.detail})." for g in broken]
    if broken and all(g.undecided for g in broken):
        sentences.append("More images would decide it; --allow-undecided passes it as it is.")
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
    open_ones = sum(g.undecided for g in gates)
    said = f"All {len(gates)} gates passed" + (f", {open_ones} of them undecided." if open_ones else ".")
    return Verdict(passed=True, exit_code=0, sentences=[said, *sentences])


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:g}"
