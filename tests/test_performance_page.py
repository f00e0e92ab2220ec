"""docs/performance.md: what the committed results give, and what it says of those that are missing."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from benchmarks.performance_page import PAGE, PLOTS, RESULTS, page


def test_the_committed_page_is_what_the_committed_results_give() -> None:
    assert PAGE.read_text("utf-8") == page(RESULTS)


def test_every_time_says_of_what_and_every_mark_what_it_means() -> None:
    """A column of times names a batch, an image or a step, or stands under words that do."""
    text = PAGE.read_text("utf-8")
    assert "A `+` behind a commit says that files of the working tree differed from it" in text
    rooflines = next(line for line in text.splitlines() if line.startswith("| network | MACs an image, G |"))
    gpus = [cell.strip() for cell in rooflines.strip("|").split("|")][5:]
    assert len(gpus) == 5 and all(cell.endswith(", ms a batch of 1 / 32") for cell in gpus)
    heads = [line for line in text.splitlines() if re.search(r"\bms\b", line) and line.startswith("| ")]
    assert heads and all(re.search(r"ms an? (batch|image)", head) for head in heads)


def test_a_batch_of_the_roofline_is_the_whole_batch() -> None:
    found = json.loads((RESULTS / "rooflines.json").read_text())["resnet18"]
    assert found["T4, int8, 32"] > 10 * found["T4, int8, 1"]


def test_what_was_not_run_says_so(tmp_path: Path) -> None:
    assert page(tmp_path).count("Not run.") == 10
    assert page(tmp_path).endswith("\n\nNot run.\n")


@pytest.mark.parametrize("wrapped", [False, True])
def test_rows_beside_other_tools_become_a_table(tmp_path: Path, wrapped: bool) -> None:
    rows = [{"tool": "ours", "s": 1.25}, {"tool": "theirs", "s": None}]
    machine = {"cpu": "a CPU", "cores": 2, "load": 0.5, "commit": "abc1234"}
    record = {"title": "Steps", "machine": machine, "rows": rows} if wrapped else rows
    (tmp_path / "peers.json").write_text(json.dumps(record))
    table = "| tool | s |\n| --- | --- |\n| ours | 1.25 |\n| theirs |  |\n"
    assert f"\n\n{table}" in page(tmp_path)
    assert ("Steps; a CPU, 2 cores, load before 0.5, commit abc1234:" in page(tmp_path)) == wrapped


def test_depth_is_plotted_beside_a_linear_line() -> None:
    rows = [{"convolutions": n, "nodes": 3 * n, "rewrite, s": 0.1 * n, "lint, s": 0.01 * n} for n in (1, 10, 100)]
    drawn = PLOTS["scaling-depth"](rows)
    assert drawn.startswith("<svg ")
    assert all(f">{word}<" in drawn for word in ("rewrite", "lint", "linear", "nodes", "100", "CPU seconds"))


@pytest.mark.parametrize("name", sorted(PLOTS))
def test_committed_plots_are_shown_and_load_nothing(name: str) -> None:
    text = (PAGE.parent / "plots" / f"{name}.svg").read_text("utf-8")
    assert f"(plots/{name}.svg)" in PAGE.read_text("utf-8")
    assert "prefers-color-scheme: dark" in text
    assert "http" not in text.replace("http://www.w3.org/", "")


def test_growth_is_linear_and_memory_flat() -> None:
    """The committed figures, from the second size to the largest: half above linear at most, 64 MiB at most."""
    depth = json.loads((RESULTS / "scaling-depth.json").read_text())["rows"]
    images = json.loads((RESULTS / "scaling-images.json").read_text())["rows"]
    for rows, by in ((depth, "nodes"), (images, "images")):
        linear = rows[-1][by] / rows[1][by]
        for figure in (column for column in rows[0] if column.endswith(", s")):
            assert rows[-1][figure] <= 1.5 * linear * rows[1][figure], figure
    assert images[-1]["peak, MiB"] - images[0]["peak, MiB"] <= 64
