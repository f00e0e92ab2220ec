"""What the version matrix asks pip for."""

from __future__ import annotations

from pathlib import Path

import pytest
import tomllib
from packaging.requirements import Requirement
from packaging.version import Version

from tests import matrix
from tests.matrix import CELLS, Cell, lowest

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]


def test_lowest_versions_are_the_floors_of_every_requirement() -> None:
    found = lowest(["torch"])
    lines = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["torch"]]
    wanted = [r for r in map(Requirement, lines) if r.marker is None or r.marker.evaluate()]
    assert found.keys() == {requirement.name for requirement in wanted}
    for requirement in wanted:
        (floor,) = [bound.version for bound in requirement.specifier if bound.operator == ">="]
        assert Version(found[requirement.name]) == Version(floor)


def test_lowest_highest_and_partial_installs_are_among_the_cells() -> None:
    found = {(cell.extras, cell.pins) for cell in CELLS}
    assert found >= {(extras, pins) for extras in ((), ("torch",)) for pins in ("lowest", "pinned", "newest")}
    assert [cell.name for cell in CELLS if cell.without] == ["torch-without-matplotlib", "torch-without-jinja2"]
    assert len({cell.name for cell in CELLS}) == len(CELLS)


def test_a_cell_that_fails_is_named_and_fails_the_command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fails(*_: object) -> matrix.Environment:
        raise RuntimeError("pip: no such version")

    monkeypatch.setattr(matrix, "_made", lambda folder: folder)
    monkeypatch.setattr(matrix, "_installed", fails)
    monkeypatch.setattr(matrix, "CELLS", (Cell("broken", (), "newest", lambda environment, made: None),))
    assert matrix.main([]) == 1
    assert "broken                    FAILED\npip: no such version" in capsys.readouterr().out
