"""Files that are either whole or absent: written under a temporary name, then renamed.

A temporary file or folder is locked for as long as its process works on it. A lock ends with its process, so that
whoever writes the same file next can tell what a killed writer left, and removes it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from engines.errors import WriteError

__all__ = ["atomic_path", "scratch_beside", "scratch_folder", "sha256_of", "write_atomic"]

_SCRATCH: Final = "faq-deploy-scratch-"


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it there when the block ends well.

    What writers of the same file left that were killed is removed.

    Args:
        path: the final file. Its folder is made if absent.

    Yields:
        A path in the same folder, to be written by the caller.

    Raises:
        WriteError: the folder can't be written, or the disk is full; nothing is left behind.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(path)
        handle, temporary = _new_file(path)
    except OSError as error:
        raise _cannot_write(path, error) from error
    try:
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except OSError as error:
        raise _cannot_write(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)
        os.close(handle)


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """Yield a folder among the system's temporary ones ($TMPDIR) that goes when the block ends.

    Those of processes that were killed go, too.

    Raises:
        WriteError: there is no room for it, or no permission.
    """
    with contextlib.ExitStack() as kept:
        try:
            folder = kept.enter_context(_folder(Path(tempfile.gettempdir()), _SCRATCH))
        except OSError as error:
            raise WriteError(
                f"A temporary folder could not be made: {error.strerror or error}.",
                "free some disk space, or set TMPDIR.",
            ) from error
        yield folder


@contextlib.contextmanager
def scratch_beside(path: Path) -> Iterator[Path]:
    """Like `scratch_folder`, a hidden one on the disk of `path`, so that what is in it can be renamed to that.

    Raises:
        OSError: the folder that `path` lies in can't be written, or the disk is full.
    """
    with _folder(path.parent, f".{path.name}.") as folder:
        yield folder


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write bytes or UTF-8 text so that `path` holds all of it or is unchanged.

    Raises:
        WriteError: the folder can't be written, or the disk is full.
    """
    with atomic_path(path) as temporary:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)


def sha256_of(path: Path, progress: Callable[[int], None] | None = None) -> str:
    """Hexadecimal sha256 of a file's bytes, read in pieces of 1 MiB."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while piece := stream.read(1 << 20):
            digest.update(piece)
            if progress is not None:
                progress(len(piece))
    return digest.hexdigest()


def _new_file(path: Path) -> tuple[int, Path]:
    """A locked temporary file beside `path`, and its handle."""
    while True:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        if _lock(handle) and os.path.exists(name):
            return handle, Path(name)
        os.close(handle)  # another writer took it for abandoned, between our two calls


@contextlib.contextmanager
def _folder(within: Path, prefix: str) -> Iterator[Path]:
    _remove_abandoned_folders(within, prefix)
    handle, folder = _new_folder(within, prefix)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(handle)


def _new_folder(within: Path, prefix: str) -> tuple[int, Path]:
    while True:
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=within))
        with contextlib.suppress(FileNotFoundError):
            handle = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
            if _lock(handle) and folder.exists():
                return handle, folder
            os.close(handle)


def _remove_abandoned(path: Path) -> None:
    """Remove temporary files of `path` that no process works on."""
    for file in _named_like_ours(path.parent, f".{path.name}.", ".tmp"):
        with contextlib.suppress(OSError), _opened(file, os.O_RDWR) as handle:
            if _lock(handle, sure=True):
                file.unlink(missing_ok=True)


def _remove_abandoned_folders(within: Path, prefix: str) -> None:
    for folder in _named_like_ours(within, prefix, ""):
        with contextlib.suppress(OSError), _opened(folder, os.O_RDONLY | os.O_DIRECTORY) as handle:
            if os.fstat(handle).st_uid == os.getuid() and _lock(handle, sure=True):
                shutil.rmtree(folder, ignore_errors=True)


def _named_like_ours(folder: Path, prefix: str, suffix: str) -> list[Path]:
    """What is named as `tempfile` does: eight small letters, digits or underscores in the middle."""
    pattern = re.compile(re.escape(prefix) + "[a-z0-9_]{8}" + re.escape(suffix))
    with os.scandir(folder) as entries:
        return [Path(entry.path) for entry in entries if pattern.fullmatch(entry.name)]


@contextlib.contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    handle = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        yield handle
    finally:
        os.close(handle)


def _lock(handle: int, *, sure: bool = False) -> bool:
    """Whether nobody else holds a lock on it; on a file system without locks, whatever is the safe answer."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return not sure and error.errno not in (errno.EACCES, errno.EAGAIN)
    return True


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _cannot_write(path: Path, error: OSError) -> WriteError:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return WriteError(
        f"{path} could not be written: {error.strerror or error}.",
        "free some disk space, or choose another disk." if full else "choose a folder that can be written.",
    )
