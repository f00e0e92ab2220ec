"""The folder that a new run goes into: looked at before anything starts, cleared when there is something to put in."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from engines.engine_manifest import MANIFEST
from engines.errors import InputError
from engines.folder_lock import LOCK
from engines.run_folder import RunFolder

__all__ = ["check_output", "clear_output", "remove_leftovers"]

# the manifest is last here and goes first: a half-cleared folder is not a run
_FILES: Final = (
    "recipe.toml",
    "float.pt",
    "corrected.pt",
    "quantized.pt",
    "samples.npz",
    "metrics.jsonl",
    "checkpoint.pt",
    "model.onnx",
    "report.json",
    "report.html",
    "predictions.csv",
    *(f"analysis/{name}.{kind}" for name in ("noise", "similarity", "exponents") for kind in ("json", "svg")),
    "manifest.json",
)


def check_output(folder: Path, *, force: bool) -> RunFolder:
    """The run folder to write to, before the work starts whose result goes there. Nothing is changed.

    Args:
        folder: need not exist.
        force: whether an earlier run in it may be replaced.

    Raises:
        InputError: it holds a run that may not be replaced, or other files and no run, is a file itself, or can't be
            written.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file.", "name a folder with -o.")
    parent = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not parent.is_dir():
        raise InputError(f"{folder} can't be made, because {parent} is a file.", "name another folder with -o.")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise InputError(f"{folder} can't be written: no permission.", "name another folder with -o.")
    present = [name for name in _FILES if (folder / name).exists()]
    whole = "manifest.json" in present  # nothing can be resumed without it
    foreign = _foreign(folder) if folder.is_dir() and not _is_run(folder) else []
    if foreign:
        raise InputError(
            f"{folder} is no run and holds other files ({foreign[0]}{', ...' if len(foreign) > 1 else ''}).",
            "name a new or an empty folder with -o.",
        )
    if present and not force:
        raise InputError(
            f"{folder} already holds {'a run' if whole else f'{present[0]}, but no whole run'}.",
            f"pass {'--resume to go on with it, ' if whole else ''}--force to replace it, or another -o.",
        )
    return RunFolder(folder)


def _is_run(folder: Path) -> bool:
    """Whether its manifest.json is one of ours, and whole: other programs have such files too."""
    try:
        RunFolder(folder).manifest()
    except InputError:
        return False
    return True


def _foreign(folder: Path) -> list[str]:
    """What lies in a folder besides what a run may hold, sorted."""
    names = sorted(path.name for path in folder.iterdir())
    ours = {*_FILES, "float.pth", "engines", "analysis", LOCK}
    return [name for name in names if name not in ours and not (name.startswith(".") and name.endswith(".tmp"))]


def clear_output(run: RunFolder, *, also: Sequence[str] = ()) -> None:
    """Remove what an earlier run left: its files and its engines.

    Other files stay, those in `engines/` and `analysis/` too.

    Args:
        run: the folder; it need not exist.
        also: further files to remove.
    """
    for name in (*reversed(_FILES), *also):
        (run / name).unlink(missing_ok=True)
    engines = run / "engines"
    for record in engines.glob(f"*/{MANIFEST}"):
        shutil.rmtree(record.parent)
    for folder in (engines, run / "analysis"):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def remove_leftovers(run: RunFolder) -> None:
    """Delete the temporary files of a command that was killed while it wrote to the folder."""
    for name in _FILES:
        for leftover in (run / name).parent.glob(f".{Path(name).name}.*.tmp"):
            leftover.unlink(missing_ok=True)
