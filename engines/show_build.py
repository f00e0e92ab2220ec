"""What `build` and `doctor` print."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from rich.table import Table
from rich.text import Text

from engines import show_bench
from engines.bench import Bench, bench, subject
from engines.build import BuildEvent, BuildResult, build_engines, build_onnx_file, exit_code
from engines.build_config import refuse_dla
from engines.build_options import BuildOptions
from engines.doctor import as_json as checks_as_json
from engines.doctor import diagnose
from engines.engine_commands import eval_words
from engines.engine_manifest import EngineManifest
from engines.engine_plan import sentences
from engines.errors import InputError
from engines.host import RuntimeName, this_host, tool_version
from engines.next_command import next_command
from engines.profile import parse_profile
from engines.run_folder import RunFolder
from engines.stdout import to_stdout

__all__ = ["build", "chosen_options", "doctor"]


def build(
    source: Path,
    output: Path | None,
    options: Mapping[str, Any],
    *,
    force: bool,
    as_json: bool,
) -> int:
    """Build, print a table or JSON, and return the exit code.

    Args:
        source: a run folder, or an ONNX file.
        output: where engines of an ONNX file go; `FILE.engines` beside it if None.
        options: the other options of the command line, by name.
        force: build again what is there.
        as_json: machine output.

    Returns:
        0, 1, 2 or 3, as `build.exit_code`.

    Raises:
        InputError: options or a source that make no sense.
    """
    if options.get("dla"):
        raise refuse_dla()
    names, sms = cast(Sequence[RuntimeName], options["runtimes"]), cast(Sequence[int], options["sms"])
    wanted, version = chosen_options(options), tool_version()
    model = source if source.suffix == ".onnx" else source / "model.onnx"
    benched = subject(model, wanted.profile) if options.get("bench") and model.is_file() else None
    if source.suffix == ".onnx" and not source.exists():
        raise InputError(f"{source} does not exist.", "check the path; `faq-deploy export RUN` writes RUN/model.onnx.")
    if source.is_file():
        folder = output or source.with_suffix(".engines")
        if folder.exists() and not folder.is_dir():
            raise InputError(f"{folder} is a file.", "name a folder with -o.")
        results = build_onnx_file(source, folder, names, sms, wanted, version=version, on_event=_progress, force=force)
    elif output is not None:
        raise InputError("-o goes with an ONNX file; a run folder keeps its engines itself.", "leave out -o.")
    else:
        folder = source / "engines"
        results = build_engines(RunFolder(source), names, sms, wanted, version=version, on_event=_progress, force=force)
    code = exit_code(results)
    found = None
    if benched is not None:
        found = bench(benched, results, folder, wanted, this_host(), _say)
    if as_json:
        answer: dict[str, object] = {"exit_code": code, "engines": [_as_dict(r) for r in results]}
        print(json.dumps(answer | ({} if found is None else {"bench": show_bench.as_dict(found)}), indent=2))
    else:
        _print(results, folder, found)
        if source.is_dir() and any(result.manifest for result in results):
            steps = RunFolder(source).manifest().steps
            print(f"Next: {shlex.join(eval_words(str(source), steps, this_host()))}")
    return code


def chosen_options(options: Mapping[str, Any]) -> BuildOptions:
    """The choices of the command line.

    Args:
        options: by name; those that a command lacks keep their defaults.

    Returns:
        The same, parsed.

    Raises:
        InputError: --batch is not MIN:OPT:MAX.
    """
    names = ("hardware", "version_compatible", "fp16_rest", "fp16_baseline", "int4_linear", "rebuilds", "workspace_mib")
    given = {name: options[name] for name in names if name in options}
    return BuildOptions(profile=parse_profile(options["batch"]), **given)


def doctor(*, as_json: bool) -> None:
    """Print what this machine can do."""
    checks = diagnose()
    if as_json:
        print(checks_as_json(checks))
        return
    table = Table(box=None, pad_edge=False)
    for column in ("", "what", "found", "to get it"):
        table.add_column(column, overflow="fold")
    marks = {"ok": "ok", "missing": "--", "limited": "!!"}
    for check in checks:
        table.add_row(*[Text(cell) for cell in (marks[check.status], check.name, check.detail, check.remedy or "")])
    to_stdout(table)
    found = next_command(checks, this_host(), Path.cwd())
    to_stdout(f"\nNext: {found.command}")
    to_stdout(f"  ({found.why})")


def _progress(event: BuildEvent) -> None:
    said = {"start": f"building {event.name}", "wait": f"{event.name}: {event.text}"}
    if event.phase in said:
        _say(said[event.phase])


def _say(text: str) -> None:
    print(f"{text} ...", file=sys.stderr, flush=True)


def _print(results: Sequence[BuildResult], folder: Path, found: Bench | None) -> None:
    table = Table(box=None, pad_edge=False)
    for column in ("engine", "status", "MB", "seconds", "runtime"):
        table.add_column(column, justify="right" if column in {"MB", "seconds"} else "left")
    for result in results:
        made = result.manifest
        if made is None:
            table.add_row(result.name, result.status, "", "", "")
        else:
            version = made.versions.get(made.runtime, "")
            size, seconds = f"{made.bytes / 1e6:.3g}", f"{made.seconds:.2f}"
            table.add_row(result.name, result.status, size, seconds, f"{made.runtime} {version}")
    to_stdout(table)
    lines = [f"Note: {note}" for note in _merged([r.manifest for r in results if r.manifest is not None])]
    lines += _layers(results)
    for result in results:
        if result.manifest is None:
            lines += [f"{result.name}: {result.reason}", f"Note: {result.remedy}"]
    if any(r.manifest for r in results):
        lines.append(f"Engines are in {folder}")
    for line in lines:
        to_stdout(line)
    if found is not None:
        show_bench.show(found)


def _layers(results: Sequence[BuildResult]) -> list[str]:
    """What the engines' layers became, once for all engines whose layers became the same."""
    names: dict[tuple[str, ...], list[str]] = {}
    for result in results:
        if result.manifest is not None and result.manifest.plan is not None:
            names.setdefault(tuple(sentences(result.manifest.plan)), []).append(result.name)
    lines = []
    for said, engines in names.items():
        lines += ["", f"Layers of {', '.join(engines)}", *(f"  {sentence}" for sentence in said)]
    return [*lines, ""] if lines else []


def _merged(manifests: Sequence[EngineManifest]) -> list[str]:
    """The notes of several engines, each text once; those that differ in the GPU architecture alone become one."""
    sms: dict[str, list[str]] = {}
    for made in manifests:
        for note in made.notes:
            found = sms.setdefault(note.replace(f"SM {made.sm} ", "SM {} "), [])
            if made.sm is not None and str(made.sm) not in found:
                found.append(str(made.sm))
    return [pattern.replace("SM {} ", f"SM {_either(found)} ") for pattern, found in sms.items()]


def _either(words: Sequence[str]) -> str:
    *first, last = words or [""]
    return f"{', '.join(first)} or {last}" if first else last


def _as_dict(result: BuildResult) -> dict[str, object]:
    manifest = None if result.manifest is None else result.manifest.model_dump(mode="json")
    return {
        "name": result.name,
        "status": result.status,
        "reason": result.reason,
        "remedy": result.remedy,
        "manifest": manifest,
    }
