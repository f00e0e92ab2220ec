"""Where results go: stdout, on which a pipe or a log keeps each row of a table, path and command in one piece."""

from __future__ import annotations

from typing import Final

from rich.console import Console
from rich.table import Table

__all__ = ["to_stdout"]

_UNBROKEN: Final = 10_000  # columns, more than a row has: a table is as wide as what it holds


def to_stdout(thing: Table | str) -> None:
    """Print a table as wide as the terminal, or a sentence as it is: no markup, no number in colour.

    Args:
        thing: to print; without a terminal no row of it is wrapped.
    """
    console = Console()
    if not console.is_terminal:
        console = Console(width=_UNBROKEN)
    console.print(thing, soft_wrap=isinstance(thing, str), markup=False, highlight=False)
