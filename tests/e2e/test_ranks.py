"""`--devices 2` through the installed program: one run, one voice, and an end that all processes share."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
import torch

from tests.e2e.conftest import Call, Program
from tests.e2e.test_interruption import start, steps_in, stop_when

pytestmark = pytest.mark.xdist_group("digits")


def command(float_weights: Path, run: Path, *more: object) -> tuple[object, ...]:
    model = ("quantize", "builtin:digits-resnet", "--weights", float_weights, "--data", "digits", "-o", run)
    return (*model, "--recipe", "digits-8bit", "--device", "cpu", "--devices", 2, *more)


def processes_of(program: int) -> list[int]:
    """Ids of the processes that a program has started."""
    text = Path(f"/proc/{program}/task/{program}/children").read_text()
    return [int(word) for word in text.split()]


def test_two_processes_make_one_run_that_one_can_go_on_with(
    program: Program, call: Call, float_weights: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    wanted = command(float_weights, run, "--epochs", 1, "--json")
    done = program(*wanted)
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)  # one document, not two
    assert (facts["epochs"], facts["steps"]) == (1, len((run / "metrics.jsonl").read_text().splitlines()) - 1)
    assert done.stderr.count("fine-tuning on 1348 images") == 1
    assert (
        facts["calibrated_top1"]
        == json.loads((run / "manifest.json").read_text())["steps"]["calibrate"]["facts"]["top1"]
    )
    again = program(*wanted)
    assert again.returncode == 2
    assert again.stderr.count("Error: ") == 1
    assert f"{run} already holds a run." in again.stderr
    more = call("quantize", "--resume", "-o", run, "--epochs", 2, "--device", "cpu", "--json")
    assert more.exit_code == 0, more.output
    assert json.loads(more.stdout)["steps"] == 2 * facts["steps"]


@pytest.mark.slow
def test_a_killed_process_and_ctrl_c_leave_a_run_that_goes_on(
    program: Program, float_weights: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    first = start(*command(float_weights, run, "--epochs", 20, "--batch-size", 16))

    def kill_second() -> bool:
        if steps_in(run) < 40:
            return False
        os.kill(processes_of(first.pid)[1], signal.SIGKILL)
        return True

    said = stop_when(first, kill_second, signal.SIGCONT)  # a signal that does nothing
    assert first.returncode == 3
    assert said.count("Error: ") == 1
    assert "Error: Process 1 of 2 was killed (SIGKILL), so the others were stopped." in said
    assert "Traceback" not in said
    before = steps_in(run)
    second = start("quantize", "--resume", "-o", run, "--device", "cpu", "--devices", 2)
    said = stop_when(second, lambda: steps_in(run) > before + 40, signal.SIGINT)
    assert second.returncode == 130
    assert said.count("Error: ") == 1
    assert "Error: Training was stopped after step " in said
    state = torch.load(run / "checkpoint.pt", weights_only=True)
    assert state["global_step"] == steps_in(run)
    assert program("quantize", "--resume", "-o", run, "--device", "cpu", "--epochs", state["epoch"] + 1).returncode == 0
