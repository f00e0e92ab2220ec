"""A run compared with an earlier report, such as the last release's: may it be that much worse, slower or larger?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from engines.errors import InputError
from faq_deploy.comparison import comparison_of, model_name
from faq_deploy.engine_gates import engine_stage
from faq_deploy.limits import Limits
from faq_deploy.predictions import Predictions
from faq_deploy.report_model import Engine, Gate, Report, Stage
from faq_deploy.report_parts import Baseline
from faq_deploy.statistics import Interval, independent_drop, pairs_of
from faq_deploy.stored_report import StoredReport, read_report

__all__ = ["REGRESSION", "Candidate", "against_baseline", "read_baseline"]

REGRESSION = "regression"

_CLOSE = 1e-9


@dataclass(frozen=True)
class Candidate:
    """The run that is compared with a baseline.

    Attributes:
        quantized: PyTorch quantized's row.
        stages: all rows.
        engines: all that were built.
        predictions: of all stages.
        images_sha256: of its images.
        onnx_sha256: of its model.onnx.
    """

    quantized: Stage
    stages: list[Stage]
    engines: list[Engine]
    predictions: Predictions
    images_sha256: str
    onnx_sha256: str


def read_baseline(place: Path, model: str, classes: tuple[str, ...]) -> StoredReport:
    """A report to compare with.

    Args:
        place: a report.json, or a run folder.
        model: of the run that is compared.
        classes: of that run.

    Raises:
        InputError: it can't be read, or is of another model or other classes.
    """
    found = read_report(place)
    report = found.report
    remedy = "name a report of the same model, or look at both with `faq-deploy compare`."
    if model_name(report.model) != model_name(model):
        raise InputError(f"The baseline {found.path} is of {report.model}, and this run is of {model}.", remedy)
    if [row.name for row in report.classes] != list(classes):
        raise InputError(f"The baseline {found.path} has other classes than this run.", remedy)
    if _quantized(report) is None:
        raise InputError(f"The baseline {found.path} has no stage PyTorch quantized.", remedy)
    return found


def against_baseline(baseline: StoredReport, run: Candidate, limits: Limits) -> tuple[Baseline, list[Gate]]:
    """Compare a run with its baseline.

    Args:
        baseline: see `read_baseline`.
        run: what was measured now.
        limits: see `Limits`.

    Returns:
        What the report says of the baseline, and the gates on it.
    """
    report = baseline.report
    row = _quantized(report)
    assert row is not None and row.top1 is not None and run.quantized.top1 is not None
    same_images = bool(report.images_sha256) and report.images_sha256 == run.images_sha256
    same_network = bool(report.onnx_sha256) and report.onnx_sha256 == run.onnx_sha256
    comparison = None
    if same_images and baseline.predictions is not None:
        answers = baseline.predictions.answers.get(row.name), run.predictions.answers[run.quantized.name]
        if answers[0] is not None and len(answers[0]) == len(answers[1]):
            pairs = pairs_of(run.predictions.labels, answers[0], answers[1])
            certain = same_network and pairs.flips == 0
            comparison = comparison_of(f"baseline {report.run}", run.quantized.name, pairs, certain=certain)
    facts = Baseline(
        run=report.run,
        created=report.created,
        faq_deploy=report.faq_deploy,
        top1=row.top1,
        images=row.images,
        same_images=same_images,
        same_network=same_network,
        comparison=comparison,
    )
    gates = [_regression(facts, row, run.quantized, limits)]
    if limits.max_bytes_growth is not None:
        gates += _growth("bytes growth", _bytes(report, run), limits.max_bytes_growth, "size of its file")
    if limits.max_latency_growth is not None:
        gates += _growth("latency growth", _latencies(report, run), limits.max_latency_growth, "time for an image")
    return facts, gates


def _quantized(report: Report) -> Stage | None:
    return next((s for s in report.stages if s.kind == "quantized" and s.top1 is not None), None)


def _regression(facts: Baseline, before: Stage, after: Stage, limits: Limits) -> Gate:
    """Undecided where top-1 keeps the limit and the interval of its drop does not."""
    assert before.top1 is not None and after.top1 is not None
    found, limit = facts.comparison, limits.max_regression
    drop, interval = before.top1 - after.top1, None
    detail = f"points of top-1, PyTorch quantized against {facts.run}'s {before.top1:.2f} %"
    if found is not None:
        drop = found.drop
        interval = None if found.certain else Interval(found.low, found.high)
        detail += f": {found.lost} images lost, {found.gained} gained"
    elif before.top1_interval is not None and after.top1_interval is not None:
        around = Interval(*before.top1_interval), Interval(*after.top1_interval)
        interval = independent_drop(before.top1, after.top1, *around)
        detail += ", not image by image: " + ("no answers lie beside it" if facts.same_images else "on other images")
    kept = drop <= limit + _CLOSE
    undecided = kept and interval is not None and interval.high > limit + _CLOSE
    if undecided and interval is not None:
        detail += f"; undecided: the drop lies between {interval.low:.2f} and {interval.high:.2f} points (95 %)"
    return Gate(
        name=REGRESSION,
        limit=limit,
        value=round(drop, 2),
        passed=kept and (not undecided or limits.allow_undecided),
        interval=interval,
        undecided=undecided,
        detail=detail,
    )


def _bytes(report: Report, run: Candidate) -> Iterator[tuple[str, float | None, float | None]]:
    before = {engine.name: engine for engine in report.engines}
    for engine in run.engines:
        if engine.name in before and engine.status != "not asked for":
            yield engine.name, before[engine.name].bytes, engine.bytes


def _latencies(report: Report, run: Candidate) -> Iterator[tuple[str, float | None, float | None]]:
    before = {engine.name: engine_stage(engine, report.stages) for engine in report.engines}
    for engine in run.engines:
        earlier, now = before.get(engine.name), engine_stage(engine, run.stages)
        if earlier is not None and now is not None:
            yield engine.name, earlier.latency_ms, now.latency_ms


def _growth(
    name: str, pairs: Iterator[tuple[str, float | None, float | None]], limit: float, what: str
) -> Iterator[Gate]:
    """One gate an engine that both have; one that fails where they have none in common: nothing was measured."""
    common = False
    for engine, before, after in pairs:
        common = True
        value = round(after / before, 4) if before and after is not None else None
        detail = f"{what} over the baseline's"
        if before is not None and after is not None:
            detail += f", {after:,.6g} to {before:,.6g}"
        kept = value is not None and value <= limit
        yield Gate(name=f"{name}: {engine}", limit=limit, value=value, passed=kept, detail=detail)
    if not common:
        detail = f"{what} over the baseline's, but no engine ran in both"
        yield Gate(name=f"{name}: engines", limit=limit, value=None, passed=False, detail=detail)
