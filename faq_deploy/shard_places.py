"""Where shards lie: files, or objects behind http(s), s3 and gs that are read in ranges."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final, NamedTuple, cast

from engines.errors import CannotRunHere, InputError, NotInstalled

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

__all__ = [
    "Stamp",
    "absolute",
    "base_name",
    "expanded",
    "is_remote",
    "opened",
    "read_range",
    "sibling_text",
    "stamp_of",
]

_RANGE: Final = re.compile(r"\{(\d+)\.\.(\d+)\}")
_PACKAGES: Final = {"http": "aiohttp", "https": "aiohttp", "s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs"}
_VERSION_KEYS: Final = ("ETag", "etag", "LastModified", "mtime", "updated", "md5Hash", "created")
_TRIES: Final = 3  # networks fail now and then
_READ_AHEAD: Final = 8 << 20  # bytes; indexing reads an object from end to end
_MOST_SHARDS: Final = 1_000_000


class Stamp(NamedTuple):
    """What tells that a shard is still the same.

    Attributes:
        size: in bytes.
        version: the time of its last change in nanoseconds, or what the object store calls its version.
    """

    size: int
    version: str


def expanded(pattern: str) -> list[str]:
    """The places that a pattern such as `train-{000..127}.tar` stands for.

    Args:
        pattern: of a path or URL; numbers are as wide as the first of their range is written.

    Raises:
        InputError: a range that runs backwards, other braces, or far too many shards.
    """
    pieces, ranges = _RANGE.split(pattern)[::3], _RANGE.findall(pattern)
    if any(brace in piece for piece in pieces for brace in "{}"):
        raise InputError(f"{pattern} has braces that hold no range.", "write a range such as {000..127}.")
    numbers = []
    for first, last in ranges:
        if int(last) < int(first):
            raise InputError(f"The range {{{first}..{last}}} in {pattern} runs backwards.", "write the smaller first.")
        if int(last) - int(first) >= _MOST_SHARDS:
            raise InputError(f"The range {{{first}..{last}}} in {pattern} is too long.", "take larger shards.")
        numbers.append([f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)])
    return [
        "".join(itertools.chain(*zip(pieces, (*chosen, ""), strict=True))) for chosen in itertools.product(*numbers)
    ]


def is_remote(place: str) -> bool:
    """Whether a place is a URL, such as `s3://bucket/train-000.tar`."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", place) is not None


def absolute(place: str) -> str:
    """The place as it is named from any folder; braces stay."""
    return place if is_remote(place) else str(Path(place).expanduser().resolve())


def base_name(place: str) -> str:
    """The last part of a path or URL, without a query."""
    return re.split(r"[?#]", place)[0].rsplit("/", 1)[-1] if is_remote(place) else Path(place).name


def stamp_of(place: str) -> Stamp | None:
    """Size and version of a shard; None where there is none.

    Args:
        place: a path or URL.

    Raises:
        CannotRunHere: the place can't be reached.
    """
    if not is_remote(place):
        try:
            return _stamp(os.stat(place))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise _unreadable(place, error) from error
    with _network(place):
        system, path = _filesystem(place)
        try:
            info = system.info(path)
        except FileNotFoundError as error:
            cause = error.__cause__
            if cause is None or isinstance(cause, FileNotFoundError) or getattr(cause, "status", 0) == 404:
                return None
            raise cause from None  # fsspec calls a server that doesn't answer a missing file, too
        version = next((str(info[key]) for key in _VERSION_KEYS if info.get(key)), "")
        return Stamp(int(info["size"] or 0), version)
    raise AssertionError("unreachable")


@contextlib.contextmanager
def opened(place: str) -> Iterator[BinaryIO]:
    """A shard to read from end to end.

    Args:
        place: a path or URL.

    Yields:
        A file that can seek.

    Raises:
        InputError: a file that can't be read.
        CannotRunHere: the place can't be reached.
    """
    if not is_remote(place):
        try:
            file = open(place, "rb")  # noqa: SIM115 - closed below; errors of the block are not of the opening
        except OSError as error:
            raise _unreadable(place, error) from error
        with file:
            yield file
        return
    with _network(place):
        system, path = _filesystem(place)
        with system.open(path, "rb", block_size=_READ_AHEAD, cache_type="readahead") as remote:
            yield cast(BinaryIO, remote)


def read_range(place: str, offset: int, size: int, stamp: Stamp) -> bytes:
    """Some bytes of a shard. Nothing stays open: shards may outnumber what a process may open, and it may be forked.

    Args:
        place: a path or URL.
        offset: of the first byte.
        size: in bytes.
        stamp: of the shard when it was indexed; compared for files, where looking costs nothing.

    Raises:
        InputError: the shard is gone or was changed.
        CannotRunHere: the place can't be reached.
    """
    if is_remote(place):
        content = _read_remote(place, offset, size)
        if len(content) != size:
            raise InputError(
                f"{place} gave {len(content):,} bytes where {size:,} were asked for: it was changed since the run "
                "began, or its server knows no ranges.",
                "start the run again, or copy the shards to a disk.",
            )
        return content
    try:
        handle = os.open(place, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise _unreadable(place, error) from error
    try:
        content = os.pread(handle, size, offset) if _stamp(os.fstat(handle)) == stamp else b""
    finally:
        os.close(handle)
    if len(content) != size:
        raise InputError(f"{place} was changed since the run began.", "start again; the new content is indexed then.")
    return content


def sibling_text(place: str, name: str) -> str | None:
    """The text of a file beside a shard; None where there is none.

    Args:
        place: of the shard.
        name: of the file in the same folder.

    Raises:
        InputError: a file that can't be read, or is no UTF-8.
        CannotRunHere: the place can't be reached.
    """
    beside = place[: len(place) - len(place.rsplit("/", 1)[-1])] + name if is_remote(place) else ""
    beside = beside or str(Path(place).parent / name)
    if stamp_of(beside) is None:
        return None
    with opened(beside) as file:
        try:
            return file.read().decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise InputError(f"{beside} is no UTF-8 text.", "write a class name on each line.") from error


def _stamp(found: os.stat_result) -> Stamp:
    return Stamp(found.st_size, str(found.st_mtime_ns))


def _unreadable(place: str, error: OSError) -> InputError:
    return InputError(f"{place} could not be read: {error.strerror}.", "check that it is there and readable.")


def _read_remote(place: str, offset: int, size: int) -> bytes:
    for left in reversed(range(_TRIES)):
        try:
            with _network(place):
                system, path = _filesystem(place)
                return bytes(system.cat_file(path, start=offset, end=offset + size))
        except CannotRunHere:
            if not left:
                raise
            time.sleep(1)
    raise AssertionError("unreachable")


def _filesystem(place: str) -> tuple[AbstractFileSystem, str]:
    """Kept by fsspec for each process, so that one that was forked gets its own connections."""
    from fsspec.core import url_to_fs

    protocol = place.split("://", 1)[0]
    try:
        system, path = url_to_fs(place)
        return system, path
    except ImportError as error:
        package = _PACKAGES.get(protocol, "")
        how = f"pip install {package}" if package else f"install what fsspec needs for {protocol}."
        raise NotInstalled(f"Shards at {protocol}:// need a package that is not installed here.", how) from error
    except ValueError as error:
        raise InputError(
            f"{place} can't be read: fsspec knows no protocol {protocol}.", "use a path, http(s)://, s3:// or gs://."
        ) from error


@contextlib.contextmanager
def _network(place: str) -> Iterator[None]:
    try:
        yield
    except (InputError, CannotRunHere, GeneratorExit):
        raise
    except Exception as error:  # each protocol's package has errors of its own
        reason = " ".join(str(error).split()) or type(error).__name__
        raise CannotRunHere(
            f"{place} could not be read: {reason}.", "check the address, the credentials and the network."
        ) from error
