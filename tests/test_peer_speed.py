"""Peers' benchmark: a tool's process answers commands, and what a tool can't do is a cell of the table."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.peers import speed, speed_worker


def process(*answers: object) -> speed._Process:
    """A tool that gives these answers, whatever it is asked."""
    lines = "".join(json.dumps(answer) + "\n" for answer in answers)
    program = subprocess.Popen(
        [sys.executable, "-c", f"print({lines!r}, end='')"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    return speed._Process(speed.TOOLS[4], program)


def test_what_a_tool_refuses_is_kept_and_shown() -> None:
    tool, base = process({"error": "UnsupportedOperatorError: no"}), process()
    assert tool.answer("export net.onnx") == {}
    tool.steps, base.steps, base.memory = [2.0, 2.0], [1.0, 2.0], 10.0
    row = speed._row("resnet18", tool, base, {})
    assert row["failed"] == "export: UnsupportedOperatorError: no"
    assert (row["step by float"], row["version"]) == (1.5, "0.47.0")
    assert row["memory by float"] is row["export, s"] is row["onnxruntime by fp32"] is None


def test_a_process_that_ends_is_named() -> None:
    tool = process()
    with pytest.raises(SystemExit, match=r"NVIDIA ModelOpt ended with exit code 0 at `step`\."):
        tool.answer("step")


def test_tools_of_this_environment_get_none_of_their_own(tmp_path: Path) -> None:
    assert speed._environment(tmp_path, speed.TOOLS[0]) == Path(sys.executable)
    assert not list(tmp_path.iterdir())


def test_a_worker_trains_calibrates_and_exports(tmp_path: Path) -> None:
    worker = speed_worker._Worker("ours", "mobilenet_v2", 32, 4)
    file = tmp_path / "net.onnx"
    assert speed_worker._answer(worker, ["calibrate"])["seconds"]
    assert speed_worker._answer(worker, ["step"])["seconds"]
    found = speed_worker._answer(worker, ["export", str(file)])
    assert found["bytes"] == file.stat().st_size > 3_000_000  # 3.5 million weights of a byte
    failed = speed_worker._answer(worker, ["export", str(tmp_path)])
    assert str(tmp_path) in str(failed["error"])
    with pytest.raises(ValueError, match="dance"):
        speed_worker._answer(worker, ["dance"])
