"""One writer at a time in a folder: who is told what, and that no dead process is in anyone's way."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from engines.errors import WriteError
from engines.folder_lock import LOCK, FolderInUse, locked, writing

_HOLDER = """
import os, sys, time
from pathlib import Path
from engines.folder_lock import locked
with locked(Path(sys.argv[1]), "export"):
    # a data loading process that outlives its parent says it itself: only then has it let go of the parent's lock
    if sys.argv[2:] != ["fork"] or os.fork() == 0:
        print("locked", flush=True)
    time.sleep(600)
"""


def holder(folder: Path, *more: str) -> subprocess.Popen[str]:
    """Another process that holds the lock of a folder."""
    program = subprocess.Popen(
        [sys.executable, "-c", _HOLDER, str(folder), *more], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert program.stdout is not None
    assert program.stdout.readline() == "locked\n"
    return program


def test_the_second_writer_is_told_who_the_first_is_and_since_when(tmp_path: Path) -> None:
    program = holder(tmp_path)
    with pytest.raises(FolderInUse) as caught, locked(tmp_path, "build"):
        raise AssertionError
    year = time.strftime("%Y")
    assert caught.value.what.startswith(
        f"{tmp_path} is being written by `faq-deploy export` (process {program.pid}, since {year}-"
    )
    assert caught.value.exit_code == 2
    assert (found := writing(tmp_path)) is not None
    assert (found.verb, found.pid) == ("export", program.pid)
    program.send_signal(signal.SIGINT)
    program.wait()
    assert writing(tmp_path) is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("how", [(), ("fork",)])
def test_the_lock_of_a_killed_process_holds_nobody_up(tmp_path: Path, how: tuple[str, ...]) -> None:
    program = holder(tmp_path, *how)
    program.kill()
    program.wait()
    try:
        assert (tmp_path / LOCK).exists()
        with locked(tmp_path, "build"):
            assert json.loads((tmp_path / LOCK).read_text())["verb"] == "build"
        assert list(tmp_path.iterdir()) == []
    finally:
        if how:
            os.killpg(program.pid, signal.SIGKILL)


def test_two_threads_are_two_writers(tmp_path: Path) -> None:
    told: list[FolderInUse] = []

    def second() -> None:
        try:
            with locked(tmp_path, "eval"):
                pass
        except FolderInUse as error:
            told.append(error)

    with locked(tmp_path, "build"):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
    assert len(told) == 1
    assert f"process {os.getpid()}" in told[0].what


def _count_up(folder: Path, times: int) -> None:
    done = 0
    while done < times:
        try:
            with locked(folder, "build", make=True):
                file = folder.parent / "count"
                file.write_text(str(int(file.read_text()) + 1))
                done += 1
        except FolderInUse:
            time.sleep(0.001)


def test_many_writers_that_make_and_remove_the_folder_never_overlap(tmp_path: Path) -> None:
    (tmp_path / "count").write_text("0")
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_count_up, args=(tmp_path / "run", 50)) for _ in range(4)]
    for process in writers:
        process.start()
    for process in writers:
        process.join()
    assert [process.exitcode for process in writers] == [0] * 4
    assert (tmp_path / "count").read_text() == "200"
    assert not (tmp_path / "run" / LOCK).exists()


def test_folders_that_were_made_in_vain_go_again(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), locked(tmp_path / "a" / "b", "quantize", make=True):
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with locked(tmp_path / "a" / "b", "quantize", make=True):
        (tmp_path / "a" / "b" / "file").write_text("x")
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["file"]


def test_a_folder_that_is_not_there_is_left_to_the_verb(tmp_path: Path) -> None:
    with locked(tmp_path / "none", "export"):
        assert not (tmp_path / "none").exists()


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    try:
        with pytest.raises(WriteError, match="could not be written: Permission denied"), locked(tmp_path, "export"):
            raise AssertionError
    finally:
        tmp_path.chmod(0o755)


@pytest.mark.parametrize("words", ["", "{}", "[]", '{"verb": 1, "pid": 2, "host": 3, "since": 4}', "\xff", "[" * 4096])
def test_a_lock_without_words_is_a_lock_all_the_same(tmp_path: Path, words: str) -> None:
    program = holder(tmp_path)
    (tmp_path / LOCK).write_bytes(words.encode("latin1"))
    with pytest.raises(FolderInUse, match="is being written by another faq-deploy"), locked(tmp_path, "build"):
        raise AssertionError
    program.kill()
    program.wait()


def test_a_link_in_the_place_of_the_lock_is_refused(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / LOCK).symlink_to(target)
    with pytest.raises(WriteError), locked(tmp_path / "run", "export"):
        raise AssertionError
    assert target.read_text() == "mine"
