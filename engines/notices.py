"""Warnings for people: one line on stderr, without a source line."""

from __future__ import annotations

import sys
import warnings
from typing import TextIO

__all__ = ["show_warnings", "warn"]

_shown: set[str] = set()


def warn(text: str) -> None:
    """Print a warning on stderr, each text once."""
    if text not in _shown:
        _shown.add(text)
        print(f"warning: {text}", file=sys.stderr)


def show_warnings() -> None:
    """From here on, our warnings print as a line; those of other packages stay silent."""
    warnings.showwarning = _show


def _show(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    ours = category.__module__.partition(".")[0] in {"engines", "faq_deploy", "calibration"}
    if ours:
        warn(str(message))
