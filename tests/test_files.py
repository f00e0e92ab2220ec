"""Files that are whole or absent, and what becomes of the remains of a writer that was killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from engines.errors import WriteError
from engines.files import atomic_path, scratch_beside, scratch_folder, write_atomic

_WRITER = """
import sys, time
from pathlib import Path
from engines.files import atomic_path, scratch_folder
with atomic_path(Path(sys.argv[1])) as file, scratch_folder() as folder:
    file.write_text("half")
    (folder / "big").write_text("half")
    print("writing", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A temporary folder of the system for this test alone."""
    folder = tmp_path / "system"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def writer(path: Path) -> subprocess.Popen[str]:
    """A process in the middle of writing `path`, with a scratch folder."""
    program = subprocess.Popen([sys.executable, "-c", _WRITER, str(path)], stdout=subprocess.PIPE, text=True)
    assert program.stdout is not None
    assert program.stdout.readline() == "writing\n"
    return program


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_a_killed_writer_left_goes_with_the_next_write(tmp_path: Path, scratch: Path) -> None:
    path = tmp_path / "out" / "model.onnx"
    program = writer(path)
    program.kill()
    program.wait()
    assert len(names(path.parent)) == len(names(scratch)) == 1
    write_atomic(path, "whole")
    assert names(path.parent) == ["model.onnx"]
    with scratch_folder() as folder:
        assert names(scratch) == [folder.name]
    assert names(scratch) == []


def test_what_a_living_writer_has_stays(tmp_path: Path, scratch: Path) -> None:
    path = tmp_path / "out" / "model.onnx"
    program = writer(path)
    (temporary,) = names(path.parent)
    write_atomic(path, "whole")
    with scratch_folder():
        assert len(names(scratch)) == 2
    assert names(path.parent) == [temporary, "model.onnx"]
    program.send_signal(signal.SIGINT)
    program.wait()
    assert names(path.parent) == ["model.onnx"]
    assert path.read_text() == "whole"


@pytest.mark.parametrize(
    "name", [".model.onnx.tmp", ".model.onnx.12345678.bak", ".model.onnx_data.12345678.tmp", "x.tmp"]
)
def test_files_that_only_look_like_remains_stay(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    write_atomic(tmp_path / "model.onnx", "whole")
    assert (tmp_path / name).read_text() == "mine"


def test_a_link_in_the_place_of_remains_is_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("mine")
    (tmp_path / ".model.onnx.12345678.tmp").symlink_to(target)
    write_atomic(tmp_path / "model.onnx", "whole")
    assert target.read_text() == "mine"


def test_a_failed_write_leaves_the_file_before_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    write_atomic(path, "first")
    with pytest.raises(WriteError, match="No such file"), atomic_path(path) as temporary:
        temporary.write_text((tmp_path / "missing").read_text())
    assert path.read_text() == "first"
    assert names(tmp_path) == ["model.onnx"]


def test_handles_are_closed(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        write_atomic(tmp_path / "model.onnx", "whole")
        with scratch_folder():
            pass
    assert len(os.listdir("/proc/self/fd")) == before


def test_scratch_beside_a_file_is_hidden_and_goes(tmp_path: Path) -> None:
    (tmp_path / ".model.abcdefgh").mkdir()  # of a writer that was killed
    with scratch_beside(tmp_path / "model") as folder:
        assert folder.name.startswith(".model.")
        assert names(tmp_path) == [folder.name]
    assert names(tmp_path) == []


def test_no_room_for_a_scratch_folder_is_a_sentence(scratch: Path) -> None:
    scratch.rmdir()
    with (
        pytest.raises(WriteError, match="A temporary folder could not be made: No such file or directory"),
        scratch_folder(),
    ):
        raise AssertionError
