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


@pytest.fixture
def groups(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[list[str]]:
    """The groups of tools that a run measures; a group that has torch.ao ends for want of memory."""
    found: list[list[str]] = []

    def rows(net: str, tools: list[speed.Tool], *_: object) -> list[dict[str, str]]:
        found.append([tool.subject for tool in tools])
        if "torch.ao" in found[-1]:
            raise SystemExit("torch.ao ended.")
        return [{"net": net, "tool": tool.name} for tool in tools]

    monkeypatch.setattr(speed, "_rows", rows)
    monkeypatch.setattr(speed, "_environment", lambda folder, tool: tmp_path)
    return found


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["speed.py", "--environments", "no", *arguments])
    speed.main()


def test_each_group_of_tools_has_a_float_net_of_its_own(
    groups: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    subjects = ("ours", "ours-paper", "modelopt", "torchao", "brevitas")
    chosen = [word for subject in subjects for word in ("--tool", subject)]
    run(monkeypatch, "--net", "vgg11", "--together", "2", *chosen)
    assert groups == [["float", "ours", "ours-paper"], ["float", "modelopt", "torchao"], ["float", "brevitas"]]


def test_what_was_measured_before_a_tool_ended_is_kept(
    groups: list[list[str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "found.json"
    with pytest.raises(SystemExit, match=r"torch\.ao ended"):
        run(monkeypatch, "--net", "vgg11", "--together", "4", "--json", str(file))
    tools = [row["tool"] for row in json.loads(file.read_text())["rows"]]
    assert tools == [tool.name for tool in speed.TOOLS[:5]]


def test_no_tools_at_a_time_are_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run(monkeypatch, "--together", "0")
    assert "--together takes 1 or more" in capsys.readouterr().err


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
