"""The engines of a run as stages of an evaluation: those that are wanted are opened, the others are named."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from engines import engine_manifest
from engines.engine_manifest import EngineManifest
from engines.errors import CannotRunHere, FaqError, InputError
from engines.files import sha256_of
from engines.host import this_host
from engines.open_engine import open_engine
from engines.profile import DEFAULT_PROFILE
from engines.run_folder import RunFolder
from engines.runner import Runner
from faq_deploy.report_model import Engine
from faq_deploy.stages import Tally

__all__ = ["engine_stages"]


def engine_stages(run: RunFolder, onnx_path: Path, wanted: Sequence[str] | None) -> tuple[list[Tally], list[Engine]]:
    """Open the wanted engines of a run.

    Args:
        run: after `export`.
        onnx_path: its model.onnx.
        wanted: names under `engines/`; None takes all that were built.

    Returns:
        One stage an engine that is wanted, whether or not it can run here, and one row an engine that was built.

    Raises:
        InputError: a wanted engine was not built, was changed, or was built from another file.
    """
    built = [name.removeprefix("build/") for name in run.manifest().steps if name.startswith("build/")]
    missing = [name for name in wanted or () if name not in built]
    if missing:
        there = f"built are {', '.join(built)}; " if built else ""
        raise InputError(
            f"{run.path} has no engine {missing[0]}.", f"{there}build more with `faq-deploy build {run.path}`."
        )
    onnx_sha256 = sha256_of(onnx_path)
    tallies: list[Tally] = []
    rows: list[Engine] = []
    with ExitStack() as opened:  # closed where a later engine is refused
        for name in built:
            folder = run / "engines" / name
            if wanted is not None and name not in wanted:
                rows.append(_not_asked_for(name, folder, onnx_sha256))
                continue
            manifest = engine_manifest.check(folder, onnx_sha256)
            runner, skipped = _open(folder, onnx_sha256)
            if runner is not None:
                opened.callback(runner.close)
            sizes = _sizes(manifest)
            tallies.append(Tally(f"engine {name}", "engine", runner, batches=sizes, skipped=skipped))
            rows.append(_row(name, manifest, skipped))
        opened.pop_all()
    return tallies, rows


def _open(folder: Path, onnx_sha256: str) -> tuple[Runner | None, str | None]:
    try:
        return open_engine(folder, onnx_sha256), None
    except CannotRunHere as error:
        return None, error.what


def _sizes(manifest: EngineManifest) -> tuple[int, ...]:
    """The best and the largest batch of an engine's profile; onnxruntime takes any."""
    for _, best, largest in manifest.profile.values():
        return (best[0], largest[0])
    return (DEFAULT_PROFILE.best, DEFAULT_PROFILE.largest)


def _row(name: str, manifest: EngineManifest, skipped: str | None) -> Engine:
    return Engine(
        name=name,
        runtime=manifest.runtime,
        sm=None if manifest.sm is None else str(manifest.sm),
        bytes=manifest.bytes,
        seconds=manifest.seconds,
        status="ran" if skipped is None else "skipped",
        note=skipped or " ".join(manifest.notes),
        plan=manifest.plan,
    )


def _not_asked_for(name: str, folder: Path, onnx_sha256: str) -> Engine:
    """The row of an engine that --engine left out; that it can't run here, or is damaged, is for the eye alone."""
    try:
        manifest = engine_manifest.check(folder, onnx_sha256)
    except InputError as error:
        return Engine(name=name, status="not asked for", note=error.what)
    try:
        engine_manifest.check_host(folder, manifest, this_host())
        note = "It may run here."
    except FaqError as error:
        note = f"It can't run here: {error.what}"
    return _row(name, manifest, note).model_copy(update={"status": "not asked for"})
