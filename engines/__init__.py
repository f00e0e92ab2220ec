"""Runtimes, preprocessing and parity, for boxes without torch (this package never imports it).

`engines.load(path)` is what scripts need; see docs/api.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engines.open_engine import load
    from engines.runner import Runner

__all__ = ["Runner", "load"]

if not TYPE_CHECKING:  # hidden from mypy, which would otherwise accept any name

    def __getattr__(name: str) -> object:
        """Look a name up when it is first asked for: the command line imports this package, and needs no runtime."""
        homes = {"load": "engines.open_engine", "Runner": "engines.runner"}
        if name not in homes:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        return getattr(import_module(homes[name]), name)
