"""What every refusal looks like: two lines on stderr, an exit code, and nothing left behind."""

from __future__ import annotations

from pathlib import Path

from click.testing import Result

from engines.error_ids import ERROR_IDS

__all__ = ["contents", "refusal"]


def refusal(result: Result, code: int = 2) -> str:
    """The error and its remedy, once the exit code and the form are right; a traceback has failed the test already."""
    assert result.exit_code == code, result.output
    error, note = result.stderr.strip().splitlines()[-2:]
    assert error.startswith("Error: ")
    error, _, name = error.removesuffix("]").rpartition(" [")
    assert error.endswith(".")
    assert name in ERROR_IDS
    assert note.startswith("Note: ")
    assert sum(line.startswith("Error: ") for line in result.stderr.splitlines()) == 1
    return f"{error}\n{note}"


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by its path in it."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}
