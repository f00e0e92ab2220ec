"""Two commands that write in one run folder: the second is refused by name; readers are not held up."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from engines.folder_lock import LOCK, locked, writing
from tests.e2e.conftest import Call, Program
from tests.e2e.photos import colour_folder, write_nets
from tests.e2e.refusals import contents, refusal

pytestmark = pytest.mark.xdist_group("digits")

_HOLDER = """
import sys, time
from pathlib import Path
from engines.folder_lock import locked
with locked(Path(sys.argv[1]), "build"):
    print("locked", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def busy(run_copy: Path) -> Iterator[tuple[Path, int]]:
    """A run that another process is building in, and that process's number."""
    program = subprocess.Popen([sys.executable, "-c", _HOLDER, str(run_copy)], stdout=subprocess.PIPE, text=True)
    assert program.stdout is not None
    assert program.stdout.readline() == "locked\n"
    yield run_copy, program.pid
    program.kill()
    program.wait()
    assert writing(run_copy) is None


def test_each_writing_verb_names_the_other_and_changes_nothing(call: Call, busy: tuple[Path, int]) -> None:
    run, pid = busy
    before = contents(run)
    verbs: list[tuple[object, ...]] = [
        ("export", run),
        ("build", run),
        ("eval", run),
        ("analyze", "similarity", run),
        ("analyze", "exponents", run),
        ("analyze", "noise", run),
        ("quantize", "--resume", "-o", run),
        ("quantize", "builtin:digits-resnet", "--data", "digits", "--force", "-o", run),
        ("train", "builtin:digits-resnet", "--data", "digits", "--force", "-o", run),
    ]
    for verb in verbs:
        message = refusal(call(*verb))
        assert f"Error: {run} is being written by `faq-deploy build` (process {pid}, since 2" in message, verb
        assert "Note: wait until it is done" in message
    assert contents(run) == before


def test_reading_verbs_go_on(call: Call, busy: tuple[Path, int], tmp_path: Path) -> None:
    run, _ = busy
    assert call("lint", run / "model.onnx").exit_code == 0
    assert call("bundle", run, "-o", tmp_path / "run.tgz").exit_code == 0
    assert (tmp_path / "run.tgz").is_file()


def test_two_builds_at_once_leave_one_whole_engine(program: Program, run_copy: Path) -> None:
    with locked(run_copy, "export"):
        done = program("build", run_copy, "--force")
        assert done.returncode == 2
        assert f"{run_copy} is being written by `faq-deploy export`" in done.stderr
    assert program("build", run_copy, "--force").returncode == 0
    assert not (run_copy / LOCK).exists()


def test_engines_of_a_file_have_a_lock_of_their_own(call: Call, run_copy: Path, tmp_path: Path) -> None:
    model, engines = run_copy / "model.onnx", tmp_path / "engines"
    with locked(engines, "verify", make=True):
        assert f"{engines} is being written by `faq-deploy verify`" in refusal(call("build", model, "-o", engines))
    assert call("build", model, "-o", engines).exit_code == 0
    with locked(engines, "verify", make=True):  # nothing to build: a reader
        result = call("build", model, "-o", engines)
        assert result.exit_code == 0
        assert "kept" in result.stdout


def test_a_new_folder_is_taken_from_the_start_and_goes_where_nothing_comes_of_it(call: Call, tmp_path: Path) -> None:
    photos, nets = colour_folder(tmp_path / "photos"), write_nets(tmp_path)
    run = tmp_path / "runs" / "new"
    command = ("quantize", f"{nets}:net", "--data", photos, "-o", run)
    with locked(run, "train", make=True):
        assert f"{run} is being written by `faq-deploy train`" in refusal(call(*command))
    assert not run.parent.exists()
    assert "no luck today" in refusal(call("quantize", f"{nets}:fails", "--data", photos, "-o", run))
    assert not run.parent.exists()
