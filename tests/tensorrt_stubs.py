"""The package `tensorrt-stubs` in a form that parses; it was generated, and a few of its lines are not Python."""

from __future__ import annotations

import ast
import importlib.metadata
import re
from pathlib import Path
from typing import Final

__all__ = ["NEEDED", "NOT_INSTALLED", "classes", "stubs_version", "write_stubs"]

NEEDED: Final = ("tensorrt/__init__.pyi", "tensorrt_bindings/__init__.pyi", "tensorrt_bindings/tensorrt.pyi")
NOT_INSTALLED: Final = "the type stubs are not installed: pip install --no-deps tensorrt-stubs"
_MOST_REPAIRS: Final = 50


def stubs_version() -> str | None:
    """Version of the installed stubs; None where there are none."""
    try:
        return importlib.metadata.version("tensorrt-stubs")
    except importlib.metadata.PackageNotFoundError:
        return None


def write_stubs(folder: Path) -> Path:
    """Copy the installed stubs for mypy's search path, each line that is no Python made one that is."""
    for name in NEEDED:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(_repaired(_text(name)))
    return folder


def classes() -> dict[str, ast.ClassDef]:
    """The classes of the installed stubs by name; those inside of others as "ILogger.Severity"."""
    found: dict[str, ast.ClassDef] = {}

    def add(body: list[ast.stmt], prefix: str) -> None:
        for statement in body:
            if isinstance(statement, ast.ClassDef):
                found[prefix + statement.name] = statement
                add(statement.body, f"{prefix}{statement.name}.")

    add(ast.parse(_repaired(_text(NEEDED[2]))).body, "")
    return found


def _text(name: str) -> str:
    return importlib.metadata.distribution("tensorrt-stubs").read_text(f"../{name}") or ""


def _repaired(text: str) -> str:
    lines = text.splitlines()
    for _ in range(_MOST_REPAIRS):
        try:
            ast.parse("\n".join(lines))
        except SyntaxError as error:
            number = (error.lineno or 1) - 1
            broken = re.match(r"(\s*def \w+)\(", lines[number])
            assert broken is not None, f"line {number + 1} can't be repaired: {lines[number]}"
            lines[number] = f"{broken[1]}(self, *arguments: typing.Any, **settings: typing.Any) -> typing.Any:"
        else:
            return "\n".join(lines) + "\n"
    raise AssertionError("the stubs have too many lines that are no Python")
