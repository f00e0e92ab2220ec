"""One writer at a time in a folder: the kernel lets go of the lock when its process ends, however it ends."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from engines.errors import InputError, WriteError
from engines.json_text import read_json

__all__ = ["LOCK", "FolderInUse", "Holder", "locked", "writing"]

LOCK: Final = ".faq-deploy.lock"  # there while a verb writes; what a killed one left holds nobody up

_HELD: Final = (errno.EACCES, errno.EAGAIN)  # how flock says that another process holds the lock
_NO_LOCKS: Final = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)  # some network file systems
_MOST_BYTES: Final = 4096  # of the words in a lock; ours have under 200


class FolderInUse(InputError):
    """Another process writes in the folder (exit code 2)."""


@dataclass(frozen=True)
class Holder:
    """Who holds a lock: the verb, the process number, the machine, and since when (ISO 8601, local time)."""

    verb: str
    pid: int
    host: str
    since: str

    def __str__(self) -> str:
        where = "" if self.host == socket.gethostname() else f" on {self.host}"
        return f"`faq-deploy {self.verb}` (process {self.pid}{where}, since {self.since.replace('T', ' ')[:19]})"


@contextlib.contextmanager
def locked(folder: Path, verb: str, *, make: bool = False) -> Iterator[None]:
    """Be the only one of our processes that writes in a folder, for as long as the block lasts.

    Args:
        folder: that is written to. Where it is absent and is not to be made, nothing is locked: the verb will say so.
        verb: such as "export"; what others are told.
        make: make the folder if it is absent; it goes again where nothing was put into it.

    Raises:
        FolderInUse: another process, or another part of this one, writes there.
        WriteError: the folder can't be written.
    """
    if not make and not folder.is_dir():
        yield
        return
    absent = [path for path in (folder, *folder.parents) if not path.exists()] if make else []
    try:
        descriptor = _acquired(folder, make=make)
    except OSError as error:
        raise WriteError(
            f"{folder} could not be written: {error.strerror or error}.", "choose a folder that can be written."
        ) from error
    _OPEN.add(descriptor)
    try:
        _say_who(descriptor, verb)
        yield
    finally:
        with contextlib.suppress(OSError):
            (folder / LOCK).unlink()  # before it is let go of: who waits at the old file sees that it is gone
        _OPEN.discard(descriptor)
        os.close(descriptor)
        with contextlib.suppress(OSError):  # it holds something now
            for made in absent:
                made.rmdir()


def writing(folder: Path) -> Holder | None:
    """Who writes in a folder now; None where nobody does, or where the file system can't tell."""
    try:
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return _holder(descriptor) if error.errno in _HELD else None
    finally:
        os.close(descriptor)
    return None


def _acquired(folder: Path, *, make: bool) -> int:
    """An open lock file, locked."""
    while True:
        if make:
            folder.mkdir(parents=True, exist_ok=True)
        try:
            # a link in the file's place would have us write to wherever it leads
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            descriptor = os.open(folder / LOCK, flags, 0o666)
        except FileNotFoundError:
            if make:  # whoever made it took it away just now
                continue
            raise
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _HELD:
                holder = _holder(descriptor)
                os.close(descriptor)
                raise _in_use(folder, holder) from None
            if error.errno not in _NO_LOCKS:
                os.close(descriptor)
                raise
            return descriptor  # going on without is what every tool does there
        if _is_there(descriptor, folder / LOCK):
            return descriptor
        os.close(descriptor)  # its holder removed it between our two calls


def _is_there(descriptor: int, file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), file.lstat())
    except FileNotFoundError:
        return False


def _say_who(descriptor: int, verb: str) -> None:
    since = datetime.now().astimezone().isoformat(timespec="seconds")
    words = json.dumps(asdict(Holder(verb, os.getpid(), socket.gethostname(), since)))
    with contextlib.suppress(OSError):  # a full disk: the lock holds without words
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, words.encode(), 0)


def _holder(descriptor: int) -> Holder | None:
    try:
        holder = Holder(**read_json(os.pread(descriptor, _MOST_BYTES, 0)))
        return holder if isinstance(holder.since, str) and isinstance(holder.host, str) else None
    except (OSError, ValueError, TypeError):  # it is just being written, or was not written by us
        return None


def _in_use(folder: Path, holder: Holder | None) -> FolderInUse:
    return FolderInUse(
        f"{folder} is being written by {holder if holder is not None else 'another faq-deploy'}.",
        "wait until it is done, stop it, or name another folder.",
    )


_OPEN: Final[set[int]] = set()


def _close_in_child() -> None:
    """A forked child shares its parent's locks: one that outlives a killed parent would go on holding them."""
    for descriptor in _OPEN:
        with contextlib.suppress(OSError):
            os.close(descriptor)
    _OPEN.clear()


os.register_at_fork(after_in_child=_close_in_child)
