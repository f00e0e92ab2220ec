"""Loading processes in tight places: little shared memory, few open files, one of them killed."""

from __future__ import annotations

import errno
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import cli
from engines.errors import CannotRunHere
from engines.images import ArrayImages
from engines.preprocess import Preprocessing
from faq_deploy.augment import TrainingData, training_batches

pytestmark = pytest.mark.xdist_group("workers")

_PATIENCE = 240  # seconds; on a busy machine the program alone may take 30 to start
_LARGE_BATCHES = """\
import numpy as np
from engines.images import ArrayImages
from engines.preprocess import Preprocessing
from faq_deploy.augment import TrainingData, training_batches
pixels = np.zeros((256, 224, 224, 3), np.uint8)
data = TrainingData(ArrayImages(pixels, np.zeros(256, np.int64), ["a"], Preprocessing(crop=224)), "cifar", 0)
for _ in range(2):
    print(sum(len(labels) for _, labels in training_batches(data, np.arange(256), 64, workers=4)))
"""


def limited(limit: str, *command: object) -> subprocess.Popen[str]:
    """A program of this environment under a limit that the shell sets first."""
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    shell = ["sh", "-c", f'{limit} && exec "$@"', "limited", *map(str, command)]
    return subprocess.Popen(
        shell, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, cwd=Path(__file__).parents[1]
    )


def train(folder: Path, workers: int) -> tuple[object, ...]:
    """Two epochs of 85 steps; metrics.jsonl grows every 20."""
    verb = ("faq-deploy", "train", "builtin:digits-resnet", "--data", "digits", "--recipe", "digits-float")
    options = ("--epochs", 2, "--batch-size", 16, "--device", "cpu", "--workers", workers)
    return (*verb, *options, "-o", folder)


def test_four_workers_do_with_128_open_files(tmp_path: Path) -> None:
    program = limited("ulimit -n 128", *train(tmp_path / "run", 4))
    _, said = program.communicate(timeout=_PATIENCE)
    assert program.returncode == 0, said
    assert (tmp_path / "run" / "float.pth").is_file()


@pytest.mark.skipif(
    shutil.which("unshare") is None
    or subprocess.run(["unshare", "-m", "true"], check=False, capture_output=True).returncode != 0,
    reason="this user may not mount a /dev/shm of its own",
)
@pytest.mark.parametrize(("size", "loads"), [("1m", True), ("64k", False)])
def test_batches_of_ten_megabytes_need_no_shared_memory(size: str, loads: bool) -> None:
    small = f"mount -t tmpfs -o size={size} none /dev/shm"
    command = ("unshare", "-m", "sh", "-c", f'{small} && exec "$@"', "small", sys.executable, "-c", _LARGE_BATCHES)
    program = limited("true", *command)
    loaded, said = program.communicate(timeout=_PATIENCE)
    if loads:
        assert (program.returncode, loaded.split()) == (0, ["256", "256"]), said
    else:  # the processes' semaphores lie there, a page each
        assert "4 data loading processes could not be started: shared memory (/dev/shm) is full." in said
        assert "Note: pass fewer --workers, or --workers 0." in said


@pytest.mark.filterwarnings("ignore:This DataLoader will create 8 worker processes")
def test_too_few_open_files_are_one_sentence() -> None:
    pixels = np.zeros((64, 8, 8, 3), np.uint8)
    data = TrainingData(ArrayImages(pixels, np.zeros(64, np.int64), ["a"], Preprocessing()), "none", 0)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = set(map(int, os.listdir("/proc/self/fd")))
    free = [number for number in range(len(taken) + 6) if number not in taken]
    resource.setrlimit(resource.RLIMIT_NOFILE, (free[5], before[1]))  # at most five more
    try:
        with pytest.raises(CannotRunHere, match="8 data loading processes could not be started") as caught:
            next(training_batches(data, np.arange(64), 4, workers=8))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert os.strerror(errno.EMFILE) in caught.value.what
    assert "--workers 0" in caught.value.remedy


def steps_in(run: Path) -> int:
    file = run / "metrics.jsonl"
    return file.read_text().count('"kind": "step"') if file.is_file() else 0


def children(process: int) -> list[int]:
    try:
        return [int(pid) for pid in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
    except FileNotFoundError:
        return []


def test_a_killed_worker_ends_training_with_a_sentence_and_it_resumes(tmp_path: Path) -> None:
    run, epoch = tmp_path / "run", 85
    program = limited("true", *train(run, 2))
    deadline = time.monotonic() + _PATIENCE
    workers: list[int] = []
    while steps_in(run) <= epoch or not (workers := children(program.pid)):
        assert program.poll() is None, program.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.kill(workers[-1], signal.SIGKILL)
    _, said = program.communicate(timeout=_PATIENCE)
    assert program.returncode == 3, said
    assert re.search(r"Error: A data loading process died, most often for want of memory\.", said)
    assert "Note: pass fewer --workers, or --workers 0." in said
    assert "Traceback" not in said
    done = steps_in(run)
    assert not (run / "float.pth").exists()
    again = CliRunner().invoke(cli.main, [*map(str, train(run, 0)[1:]), "--resume"])
    assert again.exit_code == 0, again.output
    assert epoch < done < 2 * epoch == steps_in(run)
