"""Whether ratios that the documentation states still hold: each is measured again and compared with the one kept.

python benchmarks/check.py
python benchmarks/check.py --write

A ratio may be worse than the one in results/check.json by 15 %, or by twice what the rounds of its measurement differ
if that is more: a noisy machine asks for less. What fails is measured once more. Ratios depend on the processor: where
none are kept for this one, the goals that the benchmark itself states are the limits. It takes two minutes of CPU time.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # else benchmarks/calibration.py hides the package

from benchmarks.common import Cell, Row
from engines.files import write_atomic
from engines.ort import cpu_features

__all__ = ["CHECKS", "KEPT", "Check", "Verdict", "main", "verdicts"]

KEPT: Final = Path(__file__).parent / "results" / "check.json"

_ALWAYS: Final = 0.15  # of a ratio: what two quiet runs may differ by


@dataclass(frozen=True)
class Check:
    """One benchmark, in small.

    Attributes:
        script: its file.
        arguments: that keep it short, and on one core where it can.
        name: column that names a row.
        ratio: column of the ratio.
        rows: those that are compared.
        larger_is_better: such as images a second.
        vnni: only CPUs with 8-bit dot products have such a ratio.
    """

    script: str
    arguments: tuple[str, ...]
    name: str
    ratio: str
    rows: tuple[str, ...]
    larger_is_better: bool = False
    vnni: bool = False


CHECKS: Final = (
    Check(
        "training_step.py",
        ("--one-core", "--batch", "16", "--rounds", "4"),
        "net",
        "by float",
        ("fold, 8 bits", "fold, 4 bits", "batch norm as in the paper, 8 bits"),
    ),
    Check(
        "calibration.py",
        ("--one-core", "--size", "128", "--batch", "16", "--batches", "2", "--rounds", "3"),
        "case",
        "by float forward",
        ("calibrate, percentile",),
    ),
    Check("rewrite_scaling.py", ("--rounds", "1"), "stage", "times", ("all",)),
    Check(
        "inference.py",
        ("--size", "128", "--batch", "16", "--images", "32", "--rounds", "3", "--threads", "1"),
        "file",
        "by fp32",
        ("ours, target onnxruntime",),
        larger_is_better=True,
        vnni=True,
    ),
)


@dataclass(frozen=True)
class Verdict:
    """A ratio against the one kept, or against the benchmark's goal.

    Attributes:
        what: script and row.
        kept: the ratio in the file; None where there is none for this processor.
        found: now.
        limit: the worst that is allowed.
        holds: whether `found` keeps it.
    """

    what: str
    kept: float | None
    found: float
    limit: float
    holds: bool


def verdicts(check: Check, rows: Sequence[Row], kept: Mapping[str, float] | None) -> list[Verdict]:
    """Compare one benchmark's rows.

    Args:
        check: the benchmark.
        rows: as `publish` writes them.
        kept: ratio by row; None for the benchmark's own goals.

    Raises:
        KeyError: the benchmark has no such row any more, or nothing is kept for it.
    """
    by_name = {row[check.name]: row for row in rows}
    found = []
    for name in check.rows:
        row = by_name[name]
        now, before = _number(row[check.ratio]), None if kept is None else kept[name]
        limit = _goal(row) if before is None else _limit(before, row, larger_is_better=check.larger_is_better)
        holds = now >= limit if check.larger_is_better else now <= limit
        found.append(Verdict(f"{check.script}: {name}", before, now, limit, holds))
    return found


def _limit(before: float, row: Row, *, larger_is_better: bool) -> float:
    allowed = max(_ALWAYS, 2 * _number(row.get("+-, %", 0.0)) / 100)
    return before * (1 - allowed) if larger_is_better else before * (1 + allowed)


def _goal(row: Row) -> float:
    """Of a cell such as "<= 1.15"."""
    return float(str(row["wanted"]).split()[1])


def _number(cell: Cell) -> float:
    assert isinstance(cell, int | float)
    return float(cell)


def _measured(check: Check) -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "table.json"
        script = str(Path(__file__).parent / check.script)
        done = subprocess.run(
            [sys.executable, script, *check.arguments, "--json", str(table)],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise SystemExit(f"{check.script} failed:\n{done.stdout}{done.stderr}")
        rows: list[Row] = json.loads(table.read_text())["rows"]
        return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and compare; 1 where a ratio got worse."""
    parser = argparse.ArgumentParser(description="Ratios of the benchmarks against those kept.", allow_abbrev=False)
    parser.add_argument("--write", action="store_true", help="keep what is measured now, for this processor")
    wanted = parser.parse_args(arguments)
    kept: dict[str, dict[str, dict[str, float]]] = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    cpu = cpu_features()
    if wanted.write:
        kept[cpu.model] = {}
    mine, found = kept.get(cpu.model), list[Verdict]()
    for check in CHECKS:
        if check.vnni and cpu.vnni != "yes":
            print(f"{check.script}: not run, this CPU has no VNNI")
            continue
        rows = _measured(check)
        if wanted.write:
            kept[cpu.model][check.script] = {
                str(row[check.name]): _number(row[check.ratio]) for row in rows if row[check.name] in check.rows
            }
        before = None if mine is None else mine[check.script]
        judged = verdicts(check, rows, before)
        if not (wanted.write or all(verdict.holds for verdict in judged)):
            print(f"{check.script}: measured again, since {_sentence(min(judged, key=lambda v: v.holds))}")
            again = verdicts(check, _measured(check), before)
            judged = [max(pair, key=lambda v: v.holds) for pair in zip(judged, again, strict=True)]
        found += judged
        for verdict in judged:
            print(_sentence(verdict))
    if wanted.write:
        write_atomic(KEPT, json.dumps(kept, indent=1) + "\n")
    return 0 if all(verdict.holds for verdict in found) else 1


def _sentence(verdict: Verdict) -> str:
    before = "none" if verdict.kept is None else f"{verdict.kept:.3f}"
    word = "holds" if verdict.holds else "WORSE"
    return f"{verdict.what}: {verdict.found:.3f}, kept {before}, limit {verdict.limit:.3f}: {word}"


if __name__ == "__main__":
    sys.exit(main())
