"""What the torch verbs print, and how their command line becomes options."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from engines.engine_commands import build_words
from engines.host import this_host
from engines.run_folder import RunFolder
from engines.stdout import to_stdout
from faq_deploy.certificate import proof_sentence
from faq_deploy.finetune import FinetuneResult
from faq_deploy.headline import headline
from faq_deploy.onnx_export import ExportResult
from faq_deploy.progress import TrainingReporter, training_reporter
from faq_deploy.quantize import QuantizeResult
from faq_deploy.report_model import Report, Stage

__all__ = [
    "evaluated",
    "exported",
    "image_progress",
    "quantized",
    "reporter",
    "say",
    "trained",
]


def say(text: str) -> None:
    """A line of progress, on stderr."""
    print(f"{text} ...", file=sys.stderr, flush=True)


def reporter() -> TrainingReporter:
    """A bar on a terminal, lines elsewhere; both on stderr."""
    return training_reporter()


def quantized(run: Path, result: QuantizeResult, warnings: Sequence[str], *, as_json: bool) -> None:
    """Print what `quantize` did."""
    if as_json:
        facts = {
            "run": str(run),
            "float_top1": result.float_top1,
            "calibrated_top1": result.calibrated_top1,
            "top1": result.final_top1,
            "kept": result.kept,
            "epoch": result.epoch,
            "epochs": result.training.epochs_done,
            "steps": result.training.steps,
            "seconds": result.training.seconds,
            "warnings": list(warnings),
        }
        print(json.dumps(facts, indent=2))
        return
    _warn(warnings)
    table = Table(box=None, pad_edge=False)
    table.add_column("PyTorch, validation images")
    table.add_column("top-1", justify="right")
    table.add_row("float", f"{result.float_top1:.2f} %")
    table.add_row("quantized, calibrated", f"{result.calibrated_top1:.2f} %")
    if result.training.epochs_done:
        if result.epoch:
            table.add_row(f"quantized, fine-tuned ({result.kept} epoch: {result.epoch})", f"{result.final_top1:.2f} %")
        else:
            table.add_row("quantized, fine-tuned (last epoch, not kept)", f"{result.training.last_top1:.2f} %")
    to_stdout(table)
    to_stdout(f"Next: faq-deploy export {shlex.quote(str(run))}")


def trained(path: Path, result: FinetuneResult, *, as_json: bool) -> None:
    """Print what `train` did."""
    if as_json:
        print(json.dumps({"weights": str(path), "top1": result.best_top1, "epoch": result.best_epoch}, indent=2))
        return
    to_stdout(f"float top-1 {result.best_top1:.2f} % (epoch {result.best_epoch} of {result.epochs_done}): {path}")
    to_stdout(f"Next: faq-deploy quantize MODEL --weights {shlex.quote(str(path))} --data DIR -o RUN")


def exported(result: ExportResult, *, as_json: bool) -> None:
    """Print what `export` wrote and proved."""
    if as_json:
        facts = {
            "file": str(result.path),
            "bytes": result.bytes,
            "agreement": [dataclasses.asdict(a) for a in result.agreements],
            "proven_sums": sum(b.proven for b in result.bounds),
            "sums": len(result.bounds),
            "certificate": {b.name: b.as_dict() for b in result.bounds},
            "warnings": result.warnings,
            "notes": result.notes,
        }
        print(json.dumps(facts, indent=2))
        return
    table = Table(box=None, pad_edge=False)
    for column in ("against PyTorch quantized", "images", "codes that differ", "flips", "largest logit difference"):
        table.add_column(column, justify="left" if column.startswith("against") else "right")
    for a in result.agreements:
        codes = f"{a.differing:,} of {a.codes_compared:,}"
        table.add_row(a.runtime, str(a.images), codes, str(a.flips), f"{a.largest_difference:g}")
    to_stdout(table)
    to_stdout(f"{proof_sentence(result.bounds)}.")
    _warn(result.warnings)
    for sentence in result.notes:
        to_stdout(sentence)
    to_stdout(f"{result.path}: {result.bytes / 1e6:.3g} MB")
    run = RunFolder(result.path.parent)
    target = run.manifest().steps["export"].facts.get("target")
    to_stdout(f"Next: {shlex.join(build_words(str(run.path), target, this_host()))}")


def evaluated(run: Path, report: Report, *, as_json: bool) -> None:
    """Print the stages and the verdict."""
    if as_json:
        print(report.model_dump_json(indent=2, by_alias=True))
        return
    if report.blame is not None and not report.verdict.passed:
        for sentence in report.blame.sentences:
            to_stdout(sentence)
    table = Table(box=None, pad_edge=False)
    metric = [report.metric] if report.metric else []
    names = ("stage", "images", "top-1", "top-5", "flips", "codes that differ", "logit difference", "images/s")
    for name in (*names[:4], *metric, *names[4:]):
        table.add_column(name, justify="left" if name == "stage" else "right", overflow="fold")
    for stage in report.stages:
        cells = _cells(stage, report.images)
        value = "" if stage.metric is None or stage.images != report.images else f"{stage.metric:.6g}"
        table.add_row(*cells[:4], *[value] * len(metric), *cells[4:])
    for engine in report.engines:
        if engine.status == "not asked for":
            table.add_row(f"engine {engine.name}", engine.status, *[""] * (6 + len(metric)))
    to_stdout(f"{report.data}; preprocessing: {report.preprocessing}")
    to_stdout(table)
    _warn([*report.warnings, *(report.blame.sentences[:2] if report.blame and report.verdict.passed else ())])
    to_stdout(headline(report))
    word = "PASSED" if report.verdict.passed else f"NOT PASSED (exit code {report.verdict.exit_code})"
    first, *others = [f"{word}.", *report.verdict.sentences]
    to_stdout(" ".join([first, *others[:1]]))
    for sentence in others[1:]:
        to_stdout(f"  {sentence}")
    to_stdout(f"Report: {run / 'report.html'}")


@contextlib.contextmanager
def image_progress() -> Iterator[Callable[[int, int], None]]:
    """A bar over images on stderr, while it is a terminal."""
    console = Console(stderr=True)
    columns = (TextColumn("evaluating"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("eval", total=None)
        yield lambda done, total: progress.update(task, advance=done, total=total)


def _cells(stage: Stage, images: int) -> list[str]:
    """A row of the table; no accuracy where only some of the images were run, which are not a fair sample."""
    if stage.skipped is not None:
        return [stage.name, "skipped", *[""] * 6]
    first = stage.kind in {"float", "quantized"}
    codes = "" if stage.differing_codes is None else f"{stage.differing_codes:,} of {stage.codes_compared:,}"
    return [
        stage.name,
        f"{stage.images:,}",
        f"{stage.top1:.2f} %" if stage.images == images else "",
        "" if stage.top5 is None or stage.images != images else f"{stage.top5:.2f} %",
        "" if stage.kind == "quantized" else str(stage.flips),
        codes,
        "" if first else f"{stage.max_logit_difference:g}",
        "" if stage.images_per_second is None else f"{stage.images_per_second:,.0f}",
    ]


def _warn(sentences: Sequence[str]) -> None:
    for sentence in sentences:
        print(f"warning: {sentence}", file=sys.stderr)
