"""What `bundle`, `verify` and `eval --bundle` print."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, cast, get_args

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from engines.bundle import Bundle, write_bundle
from engines.bundle_eval import BundleReport, Limits, evaluate_bundle
from engines.errors import InputError
from engines.host import RuntimeName, tool_version
from engines.parity import LogitParity
from engines.run_folder import RunFolder
from engines.show_build import chosen_options
from engines.stdout import to_stdout
from engines.triton import write_repository

__all__ = ["bundle", "evaluate", "verify"]

_VERDICTS: Final[Mapping[int, str]] = {
    0: "{run}: this machine computes the same integers.",
    1: "{run}: this machine does not compute what the bundle expects.",
    3: "{run}: a wanted engine could not run on this machine, so nothing is proven about it.",
}

_PASSED: Final[Mapping[int, str]] = {
    0: "All gates passed.",
    1: "A gate was broken.",
    3: "A skipped engine is not a passed one: run this where it can run, or pass --allow-skip.",
}


def bundle(run: Path, output: Path, *, triton: bool, engine: str | None, force: bool, as_json: bool) -> None:
    """Write a bundle, or a model repository for Triton, and say what is in it.

    Args:
        run: the run folder.
        output: the bundle's file, or the repository's folder.
        triton: write a repository.
        engine: with `triton`: the engine to serve.
        force: replace what is there.
        as_json: machine output.

    Raises:
        InputError: as `write_bundle` and `write_repository`.
    """
    if triton:
        folder = write_repository(RunFolder(run), output, engine=engine, force=force)
        said = {"repository": str(output), "model": str(folder)}
        _print([f"Wrote {folder}", f"Serve it with: tritonserver --model-repository={output}"], said, as_json=as_json)
        return
    if engine is not None:
        raise InputError("--engine goes with --triton; a bundle's engine is built on the box.", "leave out --engine.")
    with _progress("expected codes") as progress:
        task = progress.task_ids[0]
        made = write_bundle(
            RunFolder(run),
            output,
            version=tool_version(),
            force=force,
            on_images=lambda count, total: progress.update(task, advance=count, total=total),
        )
    facts = {"bundle": str(output), "bytes": made.bytes, "manifest": made.manifest.model_dump(mode="json")}
    _print(_contents(made), facts, as_json=as_json)


def verify(bundle: Path, output: Path | None, options: Mapping[str, Any], *, as_json: bool) -> int:
    """Verify a bundle, print what was found, and return the exit code.

    Args:
        bundle: the file.
        output: keep the engines in this folder.
        options: the other options of the command line, by name.
        as_json: machine output.

    Returns:
        0 the same integers, 1 something differs, 3 a wanted engine could not run here.

    Raises:
        InputError: the bundle is damaged.
    """
    from engines.verify import verify_bundle
    from engines.verify_text import sentences

    if output is not None and output.exists() and not output.is_dir():
        raise InputError(f"{output} is a file.", "name a folder with -o.")
    runtimes = cast(Sequence[RuntimeName], options["runtimes"])
    found = verify_bundle(bundle, output, runtimes, chosen_options(options), version=tool_version(), say=_say)
    verdict = _VERDICTS[found.exit_code].format(run=found.run)
    facts = {"exit_code": found.exit_code, "verdict": verdict, **asdict(found)}
    _print([*sentences(found), verdict], facts, as_json=as_json)
    return found.exit_code


_WITH_A_RUN: Final = (
    *("gates", "drop_against", "max_class_drop", "max_latency_ratio", "min_int8_share", "max_engine_bytes"),
    *("required_runtimes", "allow_undecided", "baseline", "max_regression", "max_latency_growth", "max_bytes_growth"),
    *("junit", "markdown", "metric", "max_metric_drop"),
)


def _refuse(options: Mapping[str, Any]) -> None:
    """Options of `eval` that a bundle has nothing for."""
    if options["max_float_drop"] is not None:
        raise InputError("--max-float-drop needs the float net, which a bundle does not hold.", "leave it out.")
    if options["max_fall"] is not None:
        raise InputError("--max-fall needs what quantize measured, which a bundle does not hold.", "try --min-top1.")
    for name in ("samples", "float_model", "html"):
        if options[name] is not None:
            raise InputError(f"--{name.replace('_', '-')} goes with an ONNX file.", "leave it out.")
    for name in _WITH_A_RUN:
        if options[name] not in (None, ()) and options[name] is not False:
            option = "require-runtime" if name == "required_runtimes" else name.replace("_", "-")
            raise InputError(f"--{option} goes with a run.", "take --json and the exit code of --bundle.")


def evaluate(run: Path | None, bundle: Path, options: Mapping[str, Any], *, as_json: bool) -> int:
    """Judge a bundle's engine on images, print the figures, and return the exit code.

    Args:
        run: must be None: a run and a bundle are judged one at a time.
        bundle: the file.
        options: the other options of the command line, by name.
        as_json: machine output.

    Returns:
        0 all gates passed, 1 one was broken, 3 an engine could not run here.

    Raises:
        InputError: a damaged bundle, options that go with a run, or bad data.
    """
    if run is not None:
        raise InputError(f"{run} and {bundle} can't be judged at once.", "give a run, or --bundle FILE.")
    _refuse(options)
    engines = tuple(options["engines"])
    unknown = [name for name in engines if name not in get_args(RuntimeName)]
    if unknown:
        raise InputError(
            f"{bundle} has no engine {unknown[0]}: it is built here.",
            f"name a runtime: {', '.join(get_args(RuntimeName))}.",
        )
    data = None if options["data"] is None else Path(options["data"])
    given = {name: options[name] for name in ("max_drop", "max_flips") if options[name] is not None}
    limits = Limits(**given, allow_skip=options["allow_skip"], min_top1=options["min_top1"])
    with _progress("images") as progress:
        task = progress.task_ids[0]
        report = evaluate_bundle(
            bundle,
            data,
            engines,
            limits,
            version=tool_version(),
            batch_size=options["batch_size"],
            code_images=options["code_images"],
            reference_images=options["reference_images"],
            on_bad=options["on_bad_image"],
            on_images=lambda count: progress.advance(task, count),
        )
    _print(_judged(report, data is None), asdict(report), as_json=as_json)
    return report.exit_code


def _judged(report: BundleReport, on_samples: bool) -> list[str]:
    reference = report.reference
    lines = [
        f"{report.images} images of {report.data}",
        f"oracle: top-1 {_percent(report.top1)}",
        f"integer reference: {reference.logits.images} images, {_compared(reference.logits)}, "
        f"{reference.differing:,} of {reference.codes:,} codes differ",
    ]
    for engine in report.engines:
        if engine.parity is None:
            lines.append(f"{engine.name}: skipped: {engine.skipped}")
        else:
            lines.append(f"{engine.name}: top-1 {_percent(engine.top1)}, {_compared(engine.parity)}")
    lines += [f"warning: {text}" for text in report.warnings] + list(report.broken)
    if on_samples:
        lines.append("Judged on the bundle's own samples: pass --data DIR for an accuracy that says something.")
    return [*lines, _PASSED[report.exit_code]]


def _compared(parity: LogitParity) -> str:
    return f"{parity.flips} flips, {parity.differing} logits differ (by up to {parity.largest_difference:g})"


def _contents(made: Bundle) -> list[str]:
    manifest = made.manifest
    sizes = {name: facts.bytes for name, facts in manifest.files.items() if "/" not in name}
    sizes["samples/"] = sum(facts.bytes for name, facts in manifest.files.items() if "/" in name)
    lines = [f"  {name:<44}{size / 1e3:>12,.1f} kB" for name, size in sizes.items()]
    certificate = manifest.certificate
    proven = (
        []
        if certificate is None
        else [
            f"{certificate.proven} of {certificate.sums} sums are proven exact for every image "
            f"(the largest, in {certificate.layer}, reaches {certificate.largest:.2f} x 2^24)."
        ]
    )
    return [
        f"Wrote {made.path}: {made.bytes / 1e6:.3g} MB, {manifest.images} samples with expected codes",
        *lines,
        *proven,
        "The weights and the pictures keep their own licences: see LICENSE-NOTE.txt in it.",
        f"On the box: faq-deploy verify {made.path.name}",
    ]


def _progress(what: str) -> Progress:
    """A bar on stderr, which stays away where that is no terminal."""
    console = Console(stderr=True)
    bar = Progress(
        TextColumn(what), BarColumn(), MofNCompleteColumn(), console=console, disable=not console.is_terminal
    )
    bar.add_task(what, total=None)
    return bar


def _say(text: str) -> None:
    print(f"{text} ...", file=sys.stderr, flush=True)


def _print(lines: Sequence[str], facts: Mapping[str, object], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(facts, indent=2))
        return
    for line in lines:
        to_stdout(line)


def _percent(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.2f} %"
