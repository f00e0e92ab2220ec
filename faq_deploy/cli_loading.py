"""The first word of a verb that needs PyTorch, whose import takes seconds."""

from __future__ import annotations

import sys

__all__ = ["say_loading"]


def say_loading() -> None:
    """Say on a terminal that PyTorch is being loaded; logs and other programs need no such line."""
    if sys.stderr.isatty():
        print("loading PyTorch ...", file=sys.stderr, flush=True)
