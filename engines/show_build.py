"""What `build` and `doctor` print."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from rich.console import Console
from rich.table import Table
from rich.text import Text

from engines.build import BuildEvent, BuildResult, build_engines, build_onnx_file, exit_code
from engines.doctor import as_json as checks_as_json
from engines.doctor import diagnose
from engines.engine_manifest import EngineManifest
from engines.errors import InputError
from engines.host import RuntimeName
from engines.profile import parse_profile
from engines.run_folder import RunFolder

__all__ = ["build", "doctor"]


def build(
    source: Path,
    runtimes: Sequence[str],
    sms: Sequence[int],
    batch: str,
    output: Path | None,
    *,
    force: bool,
    as_json: bool,
) -> int:
    """Build, print a table or JSON, and return the exit code.

    Args:
        source: a run folder, or an ONNX file.
        runtimes: see `build_engines`.
        sms: see `build_engines`.
        batch: MIN:OPT:MAX.
        output: where engines of an ONNX file go; `FILE.engines` beside it if None.
        force: build again what is there.
        as_json: machine output.
    """
    names = cast(Sequence[RuntimeName], runtimes)
    profile, version = parse_profile(batch), _version()
    if source.suffix == ".onnx" and not source.exists():
        raise InputError(f"{source} does not exist.", "check the path; `faq-deploy export RUN` writes RUN/model.onnx.")
    if source.is_file():
        folder = output or source.with_suffix(".engines")
        if folder.exists() and not folder.is_dir():
            raise InputError(f"{folder} is a file.", "name a folder with -o.")
        results = build_onnx_file(source, folder, names, sms, profile, version=version, on_event=_progress, force=force)
    elif output is not None:
        raise InputError("-o goes with an ONNX file; a run folder keeps its engines itself.", "leave out -o.")
    else:
        folder = source / "engines"
        results = build_engines(
            RunFolder(source), names, sms, profile, version=version, on_event=_progress, force=force
        )
    code = exit_code(results)
    if as_json:
        print(json.dumps({"exit_code": code, "engines": [_as_dict(r) for r in results]}, indent=2))
    else:
        _print(results, folder)
    return code


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
    Console().print(table)


def _progress(event: BuildEvent) -> None:
    if event.phase == "start":
        print(f"building {event.name} ...", file=sys.stderr, flush=True)


def _print(results: Sequence[BuildResult], folder: Path) -> None:
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
    console = Console()
    console.print(table)
    lines = [f"Note: {note}" for note in _merged([r.manifest for r in results if r.manifest is not None])]
    for result in results:
        if result.manifest is None:
            lines += [f"{result.name}: {result.reason}", f"Note: {result.remedy}"]
    if any(r.manifest for r in results):
        lines.append(f"Engines are in {folder}")
    for line in lines:
        console.print(line, soft_wrap=True, markup=False, highlight=False)


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


def _version() -> str:
    from importlib.metadata import version

    return version("faq-deploy")
