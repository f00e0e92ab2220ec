"""The command line of `eval FILE.onnx`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from rich.table import Table

from engines.errors import InputError
from engines.stdout import to_stdout
from faq_deploy.before_torch import require_onnx
from faq_deploy.file_eval import FileReport, evaluate_file
from faq_deploy.file_report_page import write_file_page
from faq_deploy.limits import limits_from
from faq_deploy.metrics import named_metric
from faq_deploy.models import load_model
from faq_deploy.show import say
from faq_deploy.user_code import failures_named, named_in_file

__all__ = ["evaluate"]

_OF_A_FILE: Final = frozenset(
    {"samples", "float_model", "metric", "max_metric_drop", "code_images", "reference_images", "batch_size"}
    | {"on_bad_image", "html"}
)
_REMEDY: Final = "correct the samples' file; it must run by itself."


def evaluate(path: Path, options: Mapping[str, Any], *, as_json: bool) -> int:
    """Judge an ONNX file on samples of the user's, print the figures, and return the exit code.

    Args:
        path: the file.
        options: of the command line, by name.
        as_json: machine output.

    Raises:
        InputError: an option that goes with a run, no samples, or what can't be read.
    """
    require_onnx(path)
    for name, value in options.items():
        if name not in _OF_A_FILE and value not in (None, ()) and value is not False:
            raise InputError(f"--{name.replace('_', '-')} goes with a run, not with {path}.", "leave it out.")
    if options["samples"] is None:
        raise InputError(
            f"{path} is a file, and which images to run is not said.",
            "pass --samples FILE.py:FUNCTION, or name a run's folder.",
        )
    metric = None if options["metric"] is None else named_metric(options["metric"])
    limit = limits_from({"max_metric_drop": options["max_metric_drop"]}, "the command line").max_metric_drop
    if limit is not None and metric is None:
        raise InputError("--max-metric-drop has no metric to judge.", "name one: --metric mean-iou, say.")
    model = options["float_model"]
    if model is not None and metric is None:
        raise InputError("--float-model has no metric to be measured by.", "name one: --metric mean-iou, say.")
    report = evaluate_file(
        path,
        _samples(options["samples"]),
        metric=metric,
        max_metric_drop=limit,
        float_model=None if model is None else load_model(model, None).module,
        code_images=min(options["code_images"], options["reference_images"]),
        on_stage=say,
    )
    html = options["html"]
    if html is not None:
        write_file_page(report, html)
    if as_json:
        gates = [gate.model_dump() for gate in report.gates]
        print(json.dumps({**asdict(report), "gates": gates, "exit_code": report.exit_code}, indent=2))
    else:
        _print(report)
        if html is not None:
            print(f"Report: {html}")
    return report.exit_code


def _samples(spec: str) -> Iterator[object]:
    found, file = named_in_file(spec, "samples", _REMEDY)
    with failures_named(file, "the samples", _REMEDY):
        batches = found()
        if not isinstance(batches, Iterable):
            raise InputError(
                f"{spec} returned a {type(batches).__name__}, not batches.", "yield batches of (images, targets)."
            )
        yield from batches


def _print(report: FileReport) -> None:
    table = Table(box=None, pad_edge=False)
    names = ["stage", "images", *([report.metric] if report.metric else []), "codes that differ", "values that differ"]
    for name in names:
        table.add_column(name, justify="left" if name == "stage" else "right", overflow="fold")
    for stage in report.stages:
        values = sum(output.compared for output in stage.outputs)
        table.add_row(
            stage.name,
            f"{stage.images:,}",
            *([("" if stage.metric is None else f"{stage.metric:.6g}")] if report.metric else []),
            f"{stage.differing_codes:,} of {stage.codes_compared:,}" if stage.codes_compared else "",
            f"{stage.differing_values:,} of {values:,}" if values else "",
        )
    to_stdout(table)
    broken = [gate for gate in report.gates if not gate.passed]
    word = "NOT PASSED (exit code 1)." if broken else f"PASSED. All {len(report.gates)} gates passed."
    said = [f"{gate.name} is {gate.value:g}, the limit is {gate.limit:g} ({gate.detail})." for gate in broken]
    for sentence in (" ".join([word, *said]), *report.notes):
        to_stdout(sentence)
