"""What `compare` prints."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Final

from rich.table import Table

from engines.stdout import to_stdout
from faq_deploy.report_difference import Difference, Row, difference, sentences
from faq_deploy.stored_report import read_report

__all__ = ["compare"]

_MOST_ROWS: Final = 20


def compare(first: Path, second: Path, *, as_json: bool) -> None:
    """Print two evaluations side by side.

    Args:
        first: a run folder or a report.json.
        second: the other.
        as_json: for programs.

    Raises:
        InputError: one of them can't be read.
    """
    found = difference(read_report(first), read_report(second))
    if as_json:
        facts = asdict(found)
        facts["comparison"] = None if found.comparison is None else found.comparison.model_dump(mode="json")
        print(json.dumps({**facts, "sentences": list(sentences(found))}, indent=2))
        return
    for sentence in sentences(found):
        to_stdout(sentence)
    to_stdout(_figures(found))
    if found.same_model and found.grids:
        table = _table("tensor", "", found.first, found.second)
        for grid in found.grids[:_MOST_ROWS]:
            table.add_row(grid.tensor, grid.kind, grid.first or "none", grid.second or "none")
        to_stdout(table)
        _print_rest(found.grids, "tensors")
    if found.recipe:
        table = _table("recipe", found.first, found.second)
        for key, before, after in found.recipe[:_MOST_ROWS]:
            table.add_row(key, _value(before), _value(after))
        to_stdout(table)
        _print_rest(found.recipe, "keys")


def _figures(found: Difference) -> Table:
    table = _table("", found.first, found.second, "second - first", right=True)
    for row in found.top1:
        table.add_row(f"top-1, {row.name}", *_cells(row, "{:.2f} %", "{:+.2f}"))
    for row in found.latency_ms:
        if row.first is not None or row.second is not None:
            table.add_row(f"ms an image, {row.name}", *_cells(row, "{:.3g}", "{:+.3g}"))
    for row in found.bytes:
        table.add_row(f"bytes, {row.name}", *_cells(row, "{:,.0f}", "{:+,.0f}"))
    return table


def _cells(row: Row, form: str, signed: str) -> list[str]:
    both = row.first is not None and row.second is not None
    change = signed.format(row.second - row.first) if row.first is not None and row.second is not None else ""
    values = ["none" if value is None else form.format(value) for value in (row.first, row.second)]
    return [*values, change if both else ""]


def _value(value: object) -> str:
    return "" if value is None else str(value)


def _table(*names: str, right: bool = False) -> Table:
    table = Table(box=None, pad_edge=False)
    for index, name in enumerate(names):
        table.add_column(name, justify="right" if right and index else "left", overflow="fold")
    return table


def _print_rest(items: Sequence[object], what: str) -> None:
    if len(items) > _MOST_ROWS:
        to_stdout(f"{len(items) - _MOST_ROWS:,} more {what}; --json lists them.")
