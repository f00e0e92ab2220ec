"""Results on stdout: a pipe or a log keeps each row in one piece."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from rich.table import Table

from engines.stdout import to_stdout

ROOT = Path(__file__).parents[1]


def test_without_a_terminal_no_row_is_wrapped(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table(box=None, pad_edge=False)
    cells = [f"column {number} of a wide table" for number in range(12)]
    for cell in cells:
        table.add_column(cell)
    table.add_row(*cells)
    to_stdout(table)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert all(cell in line for cell in cells for line in lines)


def test_sentence_is_printed_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    sentence = "[bold]runs/r18[/bold] 12 " + "long " * 40
    to_stdout(sentence)
    assert capsys.readouterr().out == sentence + "\n"


def test_consoles_of_other_modules_are_on_stderr() -> None:
    files = [file for folder in ("engines", "faq_deploy") for file in (ROOT / folder).rglob("*.py")]
    calls = [
        (file.name, [keyword.arg for keyword in node.keywords])
        for file in files
        for node in ast.walk(ast.parse(file.read_text("utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Console"
    ]
    assert {name for name, words in calls if not {"stderr", "quiet"} & {*words}} == {"stdout.py"}
