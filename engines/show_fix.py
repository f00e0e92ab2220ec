"""What `lint --fix` prints: what was repaired and proved, what was taken back, and what is left."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Final

from engines.lint_fix import Fixed, fix_file
from engines.lint_sarif import sarif
from engines.show_lint import Format, print_findings
from engines.stdout import to_stdout

__all__ = ["fix"]

_SHOWN: Final = 3


def fix(path: Path, output: Path, target: str | None, form: Format = "text") -> int:
    """Repair a file, print what became of it, and return the exit code.

    Args:
        path: the file.
        output: the repaired one.
        target: as for `lint`.
        form: as for `lint`; "sarif" is about the repaired file.

    Returns:
        0 if the repaired file has no error, 1 if it has.

    Raises:
        InputError: as `fix_file`.
    """
    fixed = fix_file(path, output, target)
    code = 1 if any(finding.level == "error" for finding in fixed.left) else 0
    if form == "json":
        print(json.dumps(_facts(path, output, fixed, code), indent=2))
    elif form == "sarif":
        print(json.dumps(sarif(output, fixed.target, fixed.left), indent=2))
    else:
        _print(output, fixed)
    return code


def _facts(path: Path, output: Path, fixed: Fixed, code: int) -> dict[str, object]:
    return {
        "exit_code": code,
        "file": str(path),
        "fixed_file": str(output),
        "target": fixed.target,
        "repaired": {rule: list(nodes) for rule, nodes in fixed.repaired.items()},
        "taken_back": dict(fixed.refused),
        "findings": [{**asdict(finding), "page": finding.page} for finding in fixed.left],
    }


def _print(output: Path, fixed: Fixed) -> None:
    lines = [f"repaired {rule}: {_named(nodes)}" for rule, nodes in fixed.repaired.items()]
    lines += [f"taken back {rule}: {why}" for rule, why in fixed.refused.items()]
    if fixed.repaired:
        lines.append(f"Wrote {output}: every output is bitwise the same in onnxruntime, on random input.")
    else:
        lines.append(f"Wrote {output}: there was nothing to repair without changing values.")
    for line in lines:
        to_stdout(line)
    print_findings(output, fixed.target, fixed.left)


def _named(nodes: Sequence[str]) -> str:
    more = f" and {len(nodes) - _SHOWN} more" if len(nodes) > _SHOWN else ""
    return f"{', '.join(nodes[:_SHOWN])}{more}"
