"""Kernel timings that builds on one GPU share: a file in the user's cache folder, locked while a build uses it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from engines.errors import WriteError
from engines.files import write_atomic
from engines.host import Gpu
from engines.user_cache import user_cache

__all__ = ["Timings", "cache_folder", "shared_timings", "timings_file"]

_PATIENCE_SECONDS: Final = 120.0
_POLL_SECONDS: Final = 0.1
_HELD: Final = (errno.EACCES, errno.EAGAIN)  # how flock says that another process holds the lock

Tell = Callable[[str], None]


@dataclass
class Timings:
    """What earlier builds measured, and what became of it.

    Args:
        data: as TensorRT serialized it; empty where there is nothing to start from.
        result: what to keep for later builds; None keeps what is there.
        notes: why the cache was not used, a sentence each.
    """

    data: bytes = b""
    result: bytes | None = None
    notes: list[str] = field(default_factory=list)


def cache_folder() -> Path:
    """Where timings are kept: `$XDG_CACHE_HOME/faq-deploy/timing`, by default below `~/.cache`."""
    return user_cache("timing")


def timings_file(gpu: Gpu, version: str) -> Path:
    """The file for a GPU model and a version of TensorRT; timings of another one mean nothing.

    Args:
        gpu: that kernels are timed on.
        version: of TensorRT.

    Returns:
        A path in `cache_folder`.
    """
    name = re.sub(r"[^A-Za-z0-9]+", "-", gpu.name).strip("-")
    return cache_folder() / f"{name}-sm{gpu.sm}-tensorrt-{re.sub(r'[^A-Za-z0-9.]+', '-', version)}.cache"


@contextlib.contextmanager
def shared_timings(file: Path, tell: Tell, *, patience: float = _PATIENCE_SECONDS) -> Iterator[Timings]:
    """Lock a file of timings for the length of a build; two builds that time kernels at once disturb each other.

    A cache only saves time, so nothing here fails: what goes wrong becomes a note.

    Args:
        file: as `timings_file` gives it.
        tell: told, once, when another process holds the lock.
        patience: seconds to wait for that process; then the build goes on without the file.

    Yields:
        What earlier builds measured; set its `result` to keep more.
    """
    timings = Timings()
    with contextlib.ExitStack() as stack:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context(file.with_suffix(".lock").open("a"))
            locked = _lock(lock.fileno(), file, tell, patience)
            if locked and file.is_file():
                timings.data = file.read_bytes()
        except OSError as error:
            timings.notes.append(_unusable(file, error.strerror or str(error)))
            locked = False
        else:
            if not locked:
                timings.notes.append(_unusable(file, f"another build held it for {patience:.0f} seconds"))
        yield timings
        if not locked or timings.result in (None, timings.data):
            return
        try:
            write_atomic(file, timings.result or b"")
        except WriteError as error:
            timings.notes.append(_unusable(file, error.what.rstrip(".")))


def _lock(descriptor: int, file: Path, tell: Tell, patience: float) -> bool:
    """Whether the lock was to be had in time. Closing the file, or the end of the process, gives it back."""
    deadline = time.monotonic() + patience
    waiting = False
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in _HELD:
                raise
        else:
            return True
        if time.monotonic() >= deadline:
            return False
        if not waiting:
            tell(f"another build holds the timing cache {file}: waiting for it, {patience:.0f} seconds at most")
            waiting = True
        time.sleep(_POLL_SECONDS)


def _unusable(file: Path, why: str) -> str:
    return f"The timing cache {file} was not used ({why}): building took longer than it needs to."
