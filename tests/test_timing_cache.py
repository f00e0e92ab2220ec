"""Kernel timings are shared by builds on one GPU, and never the reason why a build fails or hangs."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from engines import timing_cache
from engines.errors import WriteError
from engines.host import Gpu
from engines.timing_cache import cache_folder, shared_timings, timings_file

GPU = Gpu("NVIDIA GeForce RTX 4090 / D", 89, 24 << 30)
HOLD = "import fcntl, sys, time; f = open(sys.argv[1], 'a'); fcntl.flock(f, fcntl.LOCK_EX); print('held', flush=True); "


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return timings_file(GPU, "10.13.3.9")


@pytest.fixture
def held(file: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process with the lock, for as long as it lives."""
    file.parent.mkdir(parents=True)
    command = [sys.executable, "-c", HOLD + "time.sleep(60)", str(file.with_suffix(".lock"))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def _ignore(text: str) -> None:
    raise AssertionError(f"nothing holds the lock, and yet: {text}")


def _fail(file: Path) -> None:
    with shared_timings(file, _ignore) as timings:
        timings.result = b"half of them"
        raise ZeroDivisionError


def test_every_gpu_and_version_has_its_own_file(file: Path, tmp_path: Path) -> None:
    assert file == tmp_path / "faq-deploy/timing/NVIDIA-GeForce-RTX-4090-D-sm89-tensorrt-10.13.3.9.cache"
    assert timings_file(GPU, "10.14.1.48") != file
    assert timings_file(Gpu("NVIDIA L4", 89, 24 << 30), "10.13.3.9") != file


def test_cache_folder_is_below_home_unless_xdg_says_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for ignored in ("", "relative/folder"):
        monkeypatch.setenv("XDG_CACHE_HOME", ignored)
        assert cache_folder() == tmp_path / ".cache/faq-deploy/timing"


def test_timings_of_one_build_reach_the_next(file: Path) -> None:
    with shared_timings(file, _ignore) as first:
        assert first.data == b""
        first.result = b"kernels"
    with shared_timings(file, _ignore) as second:
        assert (second.data, second.notes) == (b"kernels", [])
    assert sorted(path.name for path in file.parent.iterdir()) == [file.name, file.with_suffix(".lock").name]


def test_failed_build_changes_nothing_and_gives_the_lock_back(file: Path) -> None:
    with shared_timings(file, _ignore) as timings:
        timings.result = b"kernels"
    with pytest.raises(ZeroDivisionError):
        _fail(file)
    assert file.read_bytes() == b"kernels"
    with file.with_suffix(".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises where it is still held


def test_unchanged_timings_are_not_written_again(file: Path) -> None:
    with shared_timings(file, _ignore) as timings:
        timings.result = b"kernels"
    before = file.stat().st_ino
    with shared_timings(file, _ignore) as timings:
        timings.result = timings.data
    assert file.stat().st_ino == before  # an atomic write would have made another file


@pytest.mark.usefixtures("held")
def test_lock_of_another_process_is_waited_for_once_told_and_not_forever(file: Path) -> None:
    file.write_bytes(b"kernels")
    told: list[str] = []
    started = time.monotonic()
    with shared_timings(file, told.append, patience=0.3) as timings:
        assert 0.3 <= time.monotonic() - started < 5
        assert timings.data == b""
        timings.result = b"of a build without the lock"
    assert file.read_bytes() == b"kernels"
    assert [text.partition(str(file))[0] for text in told] == ["another build holds the timing cache "]
    (note,) = timings.notes
    assert "was not used (another build held it for 0 seconds)" in note


def test_lock_that_comes_free_is_taken(file: Path, held: subprocess.Popen[str]) -> None:
    told: list[str] = []

    def release(text: str) -> None:
        told.append(text)
        held.kill()

    with shared_timings(file, release, patience=30) as timings:
        timings.result = b"kernels"
    assert (len(told), timings.notes, file.read_bytes()) == (1, [], b"kernels")


def test_folder_that_can_not_be_made_is_a_note(tmp_path: Path) -> None:
    (tmp_path / "faq-deploy").write_bytes(b"a file")
    with shared_timings(tmp_path / "faq-deploy/timing/gpu.cache", _ignore) as timings:
        timings.result = b"kernels"
    assert timings.notes == [
        f"The timing cache {tmp_path}/faq-deploy/timing/gpu.cache was not used (Not a directory): building took longer "
        "than it needs to."
    ]


def test_file_system_without_locks_is_a_note(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(descriptor: int, operation: int) -> None:
        raise OSError(37, os.strerror(37))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with shared_timings(file, _ignore) as timings:
        timings.result = b"kernels"
    assert ["No locks available" in note for note in timings.notes] == [True]
    assert not file.exists()


def test_full_disk_is_a_note(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, data: bytes) -> None:
        raise WriteError(f"{path} could not be written: No space left on device.", "free some disk space.")

    monkeypatch.setattr(timing_cache, "write_atomic", full)
    with shared_timings(file, _ignore) as timings:
        timings.result = b"kernels"
    assert ["No space left on device" in note for note in timings.notes] == [True]
