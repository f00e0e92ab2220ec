"""Ctrl-C, SIGTERM and SIGKILL of the installed program: a run is absent, or can be resumed to the very same weights."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.e2e.conftest import Call
from tests.e2e.photos import colour_folder, quantize_photos, write_nets
from tests.e2e.refusals import contents, refusal

pytestmark = [pytest.mark.xdist_group("digits"), pytest.mark.filterwarnings("always::UserWarning")]

_STEPS = 85  # an epoch of 1,348 images at 16; metrics.jsonl grows every 20 steps
_PATIENCE = 240  # seconds; on a busy machine the program alone may take 30 to start


def start(*arguments: object) -> subprocess.Popen[str]:
    """The installed program, in a process of its own."""
    found = shutil.which("faq-deploy", path=str(Path(sys.executable).parent))
    assert found is not None, "faq-deploy is not installed in this environment"
    return subprocess.Popen(
        [found, *map(str, arguments)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=os.environ
    )


def stop_when(program: subprocess.Popen[str], ready: Callable[[], bool], number: signal.Signals) -> str:
    """Send a signal as soon as `ready`; returns what the program said afterwards."""
    deadline = time.monotonic() + _PATIENCE
    while not ready():
        assert program.poll() is None, program.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.005)
    program.send_signal(number)
    return program.communicate(timeout=_PATIENCE)[1]


def says(program: subprocess.Popen[str], text: str) -> Callable[[], bool]:
    """Whether the next line of its stderr starts with `text`."""
    assert program.stderr is not None
    stream = program.stderr
    return lambda: stream.readline().startswith(text)


def steps_in(run: Path) -> int:
    file = run / "metrics.jsonl"
    return file.read_text().count('"kind": "step"') if file.is_file() else 0


def assert_same_weights(file: Path, other: Path) -> None:
    """Bit for bit, with all that is stored beside them."""
    found, wanted = (torch.load(f, weights_only=True) for f in (file, other))
    state, same = found.pop("state", found), wanted.pop("state", wanted)
    assert state.keys() == same.keys()
    for name, value in same.items():
        assert torch.equal(state[name], value), name
    if found is not state:
        assert found == wanted


@pytest.fixture(scope="module")
def command(float_weights: Path) -> tuple[object, ...]:
    """Two epochs of digits in small batches."""
    model = ("quantize", "builtin:digits-resnet", "--weights", float_weights, "--data", "digits")
    return (*model, "--recipe", "digits-8bit", "--epochs", 2, "--batch-size", 16, "--device", "cpu")


@pytest.fixture(scope="module")
def whole(call: Call, command: tuple[object, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nobody interrupts."""
    run = tmp_path_factory.mktemp("whole") / "run"
    assert call(*command, "-o", run).exit_code == 0
    return run


def test_killed_in_the_middle_of_an_epoch_it_resumes_to_the_same_weights(
    call: Call, command: tuple[object, ...], whole: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    program = start(*command, "-o", run)
    stop_when(program, lambda: steps_in(run) > _STEPS, signal.SIGKILL)
    assert program.returncode == -signal.SIGKILL
    assert _STEPS < steps_in(run) < 2 * _STEPS
    assert not (run / "quantized.pt").exists()
    assert "already holds a run" in refusal(call(*command, "-o", run))
    message = refusal(call("export", run))
    assert f"faq-deploy quantize --resume -o {run}" in message
    result = call("quantize", "--resume", "-o", run)
    assert result.exit_code == 0, result.output
    assert_same_weights(run / "quantized.pt", whole / "quantized.pt")
    assert steps_in(run) == 2 * _STEPS
    assert not [name for name in contents(run) if name.endswith(".tmp")]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_in_training_it_says_so_and_resumes_to_the_same_weights(
    call: Call, command: tuple[object, ...], whole: Path, tmp_path: Path, number: signal.Signals
) -> None:
    run = tmp_path / "run"
    program = start(*command, "-o", run)
    said = stop_when(program, lambda: steps_in(run) > 0, number)
    assert program.returncode == 130, said
    assert "Traceback" not in said
    assert f"of {2 * _STEPS}." in said
    assert f"faq-deploy quantize --resume -o {run}" in said
    assert 0 < steps_in(run) < 2 * _STEPS
    result = call(*command, "--resume", "-o", run)  # the same command as before
    assert result.exit_code == 0, result.output
    assert_same_weights(run / "quantized.pt", whole / "quantized.pt")
    assert call("export", run).exit_code == 0


def test_float_training_that_is_killed_resumes_to_the_same_weights(call: Call, tmp_path: Path) -> None:
    model = ("train", "builtin:digits-resnet", "--data", "digits", "--recipe", "digits-float", "--device", "cpu")
    train = (*model, "--epochs", 2, "--batch-size", 16, "-o")
    assert call(*train, tmp_path / "whole").exit_code == 0
    run = tmp_path / "run"
    program = start(*train, run)
    stop_when(program, lambda: steps_in(run) > _STEPS, signal.SIGKILL)
    assert not (run / "float.pth").exists()
    assert call(*train, run, "--resume").exit_code == 0
    assert_same_weights(run / "float.pth", tmp_path / "whole" / "float.pth")


def test_finished_run_has_nothing_to_resume(call: Call, whole: Path) -> None:
    before = contents(whole)
    times = {file: file.stat().st_mtime_ns for file in whole.rglob("*")}
    result = call("quantize", "--resume", "-o", whole)
    assert result.exit_code == 0, result.output
    assert "nothing to do: all 2 epochs" in result.stderr
    assert contents(whole) == before
    assert {file: file.stat().st_mtime_ns for file in whole.rglob("*")} == times


def test_resuming_with_another_learning_rate_is_refused_and_with_more_epochs_is_not(
    call: Call, command: tuple[object, ...], whole: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    message = refusal(call("quantize", "--resume", "--lr", 0.5, "-o", run))
    assert f"{run} was begun in another way (training.lr: 0.0003 became 0.5)" in message
    assert contents(run) == contents(whole)
    assert call("quantize", "--resume", "--epochs", 3, "-o", run).exit_code == 0
    assert call(*command, "--epochs", 3, "-o", tmp_path / "three").exit_code == 0
    assert_same_weights(run / "quantized.pt", tmp_path / "three" / "quantized.pt")


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A net's file, and images that take seconds to decode; those to validate with are small."""
    folder = tmp_path_factory.mktemp("slow")
    data = colour_folder(folder / "photos", each=11)
    noise = np.random.default_rng(0).integers(0, 256, (3000, 3000, 3), np.uint8)
    Image.fromarray(noise).save(folder / "large.jpg")
    for name in "abc":
        for index in range(8):
            (data / "train" / name / f"large{index}.jpg").hardlink_to(folder / "large.jpg")
    return write_nets(folder), data


def test_ctrl_c_in_calibration_leaves_no_run(call: Call, slow: tuple[Path, Path], tmp_path: Path) -> None:
    (nets, data), run = slow, tmp_path / "run"
    program = start("quantize", f"{nets}:net", "--data", data, "--resize", 0, "--crop", 16, "--epochs", 0, "-o", run)
    said = stop_when(program, says(program, "calibrating on"), signal.SIGINT)
    assert program.returncode == 130, said
    assert said.splitlines()[-2:] == [
        "Error: Stopped. [interrupted]",
        "Note: nothing half-written was left behind; run the command again.",
    ]
    assert not run.exists()
    assert (
        call(
            "quantize", "builtin:digits-resnet", "--weights", "random", "--data", "digits", "--epochs", 0, "-o", run
        ).exit_code
        == 0
    )


@pytest.fixture(scope="module")
def large(call: Call, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of large images: export takes seconds to check them."""
    folder = tmp_path_factory.mktemp("large")
    data, nets = colour_folder(folder / "photos", each=11), write_nets(folder)
    assert quantize_photos(call, f"{nets}:net", data, folder / "run", "--crop", 448).exit_code == 0
    return folder / "run"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_export_that_is_stopped_leaves_no_model(
    call: Call, large: Path, tmp_path: Path, number: signal.Signals
) -> None:
    run = Path(shutil.copytree(large, tmp_path / "run"))
    before = contents(run)
    program = start("export", run, "--check-images", 32)
    said = stop_when(program, says(program, "comparing 32 images with the reference"), number)
    assert program.returncode == (130 if number == signal.SIGINT else -number), said
    assert not (run / "model.onnx").exists()
    if number == signal.SIGINT:
        assert contents(run) == before
    assert call("export", run, "--check-images", 1).exit_code == 0
    assert contents(run).keys() == {*before, "model.onnx"}  # what the killed one left is gone
