"""The first word of a verb that needs PyTorch, whose import takes seconds."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engines.run_folder import RunFolder

__all__ = ["has_torch", "run_for_torch", "say_loading"]


def say_loading() -> None:
    """Say on a terminal that PyTorch is being loaded; logs and other programs need no such line."""
    if sys.stderr.isatty():
        print("loading PyTorch ...", file=sys.stderr, flush=True)


def has_torch() -> bool:
    """Whether PyTorch is installed; where it is not, how to get it is said before anything else."""
    return importlib.util.find_spec("torch") is not None


def run_for_torch(path: Path) -> RunFolder:
    """The run that a verb with PyTorch reads: refused where there is none, before that is loaded.

    Args:
        path: of its folder.

    Raises:
        InputError: no run here, or a damaged manifest.
    """
    from engines.run_folder import RunFolder

    run = RunFolder(path)
    if has_torch():
        run.manifest()
    say_loading()
    return run
