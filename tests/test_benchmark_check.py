"""The guard of the documented ratios: what it lets pass, and what it stops."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import check
from benchmarks.check import CHECKS, KEPT, Check, verdicts
from benchmarks.common import Row

STEP = Check("step.py", (), "net", "by float", ("fold",))
SPEED = Check("speed.py", (), "file", "by fp32", ("ours",), larger_is_better=True)


def row(name: str, column: str, ratio: float, noise: float, key: str = "net") -> list[Row]:
    return [{key: name, column: ratio, "+-, %": noise}, {key: "other", column: 9.0, "+-, %": 0.0}]


@pytest.mark.parametrize(
    ("ratio", "noise", "holds"),
    [(1.0, 0.0, True), (1.149, 0.0, True), (1.16, 0.0, False), (1.16, 10.0, True), (1.21, 10.0, False), (0.1, 0, True)],
)
def test_a_ratio_may_be_worse_by_its_noise(ratio: float, noise: float, holds: bool) -> None:
    (verdict,) = verdicts(STEP, row("fold", "by float", ratio, noise), {"fold": 1.0})
    assert verdict.holds == holds


@pytest.mark.parametrize(("ratio", "holds"), [(3.0, True), (2.56, True), (2.54, False), (9.0, True)])
def test_a_speed_may_be_lower_by_its_noise(ratio: float, holds: bool) -> None:
    (verdict,) = verdicts(SPEED, row("ours", "by fp32", ratio, 1.0, "file"), {"ours": 3.0})
    assert verdict.holds == holds


def test_a_row_that_is_gone_is_no_pass() -> None:
    with pytest.raises(KeyError):
        verdicts(STEP, row("new name", "by float", 1.0, 0.0), {"fold": 1.0})


def test_goals_are_the_limits_on_another_processor() -> None:
    rows: list[Row] = [{"net": "fold", "by float": 1.1, "wanted": "<= 1.15"}]
    (verdict,) = verdicts(STEP, rows, None)
    assert (verdict.kept, verdict.limit, verdict.holds) == (None, 1.15, True)


def test_something_is_kept_for_every_row() -> None:
    for kept in json.loads(KEPT.read_text()).values():
        assert {c.script: set(c.rows) for c in CHECKS} == {script: set(rows) for script, rows in kept.items()}


def test_the_command_fails_where_a_ratio_got_worse(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    first = CHECKS[0]
    monkeypatch.setattr(check, "CHECKS", (first,))
    monkeypatch.setattr(check, "KEPT", tmp_path / "check.json")
    for factor, arguments, code in ((1.0, ["--write"], 0), (1.0, [], 0), (1.5, [], 1)):
        rows: list[Row] = [{"net": name, "by float": factor, "+-, %": 0.0} for name in first.rows]
        monkeypatch.setattr(check, "_measured", lambda _, rows=rows: rows)
        assert check.main(arguments) == code
    assert capsys.readouterr().out.count("WORSE") == 1 + len(first.rows)  # said, measured again, said


def test_what_fails_is_measured_once_more(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    first = CHECKS[0]
    tables = iter([1.0, 1.5, 1.1, 1.5, 1.5, 1.0])
    monkeypatch.setattr(check, "CHECKS", (first,))
    monkeypatch.setattr(check, "KEPT", tmp_path / "check.json")

    def measured(_: Check) -> list[Row]:
        factor = next(tables)
        return [{"net": name, "by float": factor, "+-, %": 0.0} for name in first.rows]

    monkeypatch.setattr(check, "_measured", measured)
    assert [check.main(["--write"]), check.main([]), check.main([])] == [0, 0, 1]
    assert list(tables) == [1.0]
