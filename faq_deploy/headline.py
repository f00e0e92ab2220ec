"""One sentence for the head of a report."""

from __future__ import annotations

from collections.abc import Iterable

from faq_deploy.report_model import Report

__all__ = ["headline"]


def headline(report: Report) -> str:
    """Say in one sentence whether the integers are the same in all that ran, claiming no more than was compared."""
    compared = [stage for stage in report.stages if stage.codes_compared]
    total = sum(stage.codes_compared or 0 for stage in compared)
    differing = sum(stage.differing_codes or 0 for stage in compared)
    drifting = [s.name for s in report.stages if s.kind != "float" and s.max_logit_difference not in (None, 0.0)]
    if not compared:
        return "No integer codes were compared."
    if differing:
        names = _names(stage.name for stage in compared if stage.differing_codes)
        return f"Not the same integers: {differing:,} of {total:,} codes differ, in {names}."
    if drifting:
        return f"The same integers inside, other logits: 0 of {total:,} codes differ, logits do in {_names(drifting)}."
    others = [stage for stage in report.stages if stage.kind not in ("float", "quantized")]
    left_out = [s for s in others if not s.codes_compared and s.max_logit_difference is None]
    not_asked_for = sum(engine.status == "not asked for" for engine in report.engines)
    exceptions = []
    if left_out:
        exceptions.append(f"{len(left_out)} of {len(others)} stages could not be compared")
    if not_asked_for:
        exceptions.append(f"{not_asked_for} built engine{'s were' if not_asked_for > 1 else ' was'} not asked for")
    if all(stage.kind != "engine" for stage in report.stages):
        exceptions.append("no engine was built")
    if exceptions:
        return f"The same integers in all that ran here: 0 of {total:,} codes differ; {', '.join(exceptions)}."
    return f"The same integers everywhere: 0 of {total:,} codes differ."


def _names(names: Iterable[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last
