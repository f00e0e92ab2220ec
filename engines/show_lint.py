"""What `lint` prints: every place in a QDQ file that an engine would refuse, round otherwise, or run in float."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Final, Literal

from rich.table import Table
from rich.text import Text

from engines.lint import Finding, Level, lint_file
from engines.lint_rules import PAGES
from engines.lint_sarif import sarif
from engines.stdout import to_stdout

__all__ = ["Format", "lint", "print_findings"]

Format = Literal["text", "json", "sarif"]

_SHOWN: Final = 3  # places of one rule in the table; --json has all
_COUNTED: Final[dict[Level, tuple[str, str]]] = {
    "error": ("error", "errors"),
    "warning": ("warning", "warnings"),
    "info": ("remark", "remarks"),
}


def lint(path: Path, target: str | None, form: Format = "text") -> int:
    """Check an ONNX file of any tool, print what was found, and return the exit code.

    Args:
        path: the file.
        target: "tensorrt", "onnxruntime" or "paper"; None takes what the file says, and every engine where it says
            nothing.
        form: "text" for people, with the first places of each rule; "json" and "sarif" have every place.

    Returns:
        0 if there is no error, 1 if there is.

    Raises:
        InputError: the file is missing, is not ONNX, was cut short, or its weights are.
    """
    chosen, found = lint_file(path, target)
    code = 1 if any(finding.level == "error" for finding in found) else 0
    if form == "json":
        counts = {level: sum(finding.level == level for finding in found) for level in _COUNTED}
        result = {"exit_code": code, "file": str(path), "target": chosen, "counts": counts}
        findings = [{**asdict(finding), "page": finding.page} for finding in found]
        print(json.dumps({**result, "findings": findings}, indent=2))
    elif form == "sarif":
        print(json.dumps(sarif(path, chosen, found), indent=2))
    else:
        print_findings(path, chosen, found)
    return code


def print_findings(path: Path, target: str | None, found: Sequence[Finding]) -> None:
    """Print a table with a row for each rule, and the verdict."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 1, 0))
    for column in ("level", "rule", "places"):
        table.add_column(column, justify="right" if column == "places" else "left", no_wrap=True)
    table.add_column("what was found, and what to do", overflow="fold")
    for rule in dict.fromkeys(finding.rule for finding in found):
        group = [finding for finding in found if finding.rule == rule]
        table.add_row(group[0].level, rule, f"{len(group):,}", Text(_text(group)))
    if found:
        to_stdout(table)
        to_stdout(f"Each rule has a page: {PAGES}#RULE")
    to_stdout(_verdict(path, target, found))


def _text(group: Sequence[Finding]) -> str:
    """The first places of one rule; what to do once, where it is the same for all."""
    shown, remedies = group[:_SHOWN], list(dict.fromkeys(finding.remedy for finding in group[:_SHOWN]))
    if len(remedies) == 1:
        lines = [finding.message for finding in shown]
    else:
        lines = [line for finding in shown for line in (finding.message, f"Note: {finding.remedy}")]
    if len(group) > len(shown):
        lines.append(f"and {len(group) - len(shown):,} more; --json lists them.")
    return "\n".join(lines if len(remedies) > 1 else [*lines, f"Note: {remedies[0]}"])


def _verdict(path: Path, target: str | None, found: Sequence[Finding]) -> str:
    checked = "by the rules of every engine" if target is None else f"for target {target}"
    if not found:
        return f"{path}, {checked}: nothing to remark."
    counts = []
    for level, (one, several) in _COUNTED.items():
        count = sum(finding.level == level for finding in found)
        if count:
            counts.append(f"{count:,} {one if count == 1 else several}")
    return f"{path}, {checked}: {', '.join(counts)}."
