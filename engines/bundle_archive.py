"""The bundle as one file: a gzip-compressed tar, written the same way every time, and read without trusting it.

Reading takes regular files only, those that the manifest lists, of the size it lists; nothing is written outside the
given folder, and nothing more than the manifest announced. The tar headers are read here, one block at a time:
`tarfile` would follow links, make devices, and read extension headers of any size into memory.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import shutil
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Final, cast

from engines.bundle_manifest import MANIFEST, BundleManifest, FileFacts, parse
from engines.errors import InputError, WriteError
from engines.files import atomic_path

__all__ = ["MOST_BYTES", "extract", "write"]

MOST_BYTES: Final = 8 << 30  # of all files together; the largest networks that we know of have 1 GiB
_MOST_RATIO: Final = 200  # unpacked to packed; deflate itself reaches 1,032
_ALWAYS_ALLOWED: Final = 64 << 20  # unpacked bytes that need no such look
_MOST_MANIFEST: Final = 4 << 20
_PIECE: Final = 1 << 20
_BLOCK: Final = tarfile.BLOCKSIZE
_REGULAR: Final = (tarfile.REGTYPE, tarfile.AREGTYPE)
_KINDS: Final[Mapping[bytes, str]] = {
    tarfile.DIRTYPE: "a folder",
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.LNKTYPE: "a hard link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a pipe",
}
_AGAIN: Final = "copy the bundle again, or write it again with `faq-deploy bundle`."


def write(bundle: Path, manifest: BundleManifest, files: Mapping[str, Path]) -> None:
    """Write a bundle: the manifest first, the files in the order of their names, nothing that depends on the day.

    Args:
        bundle: the file to write; it appears whole or not at all.
        manifest: lists exactly `files`.
        files: where each lies now, by its path in the bundle.

    Raises:
        WriteError: the disk is full, or the folder can't be written.
    """
    ordered = manifest.model_copy(update={"files": dict(sorted(manifest.files.items()))})
    text = (ordered.model_dump_json(indent=2) + "\n").encode()
    with (
        atomic_path(bundle) as temporary,
        temporary.open("wb") as raw,
        gzip.GzipFile(filename="", mode="wb", compresslevel=6, fileobj=raw, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as archive,
    ):
        archive.addfile(_header(MANIFEST, len(text)), io.BytesIO(text))
        for name, path in sorted(files.items()):
            with path.open("rb") as stream:
                archive.addfile(_header(name, path.stat().st_size), stream)


def extract(bundle: Path, folder: Path) -> BundleManifest:
    """Check a bundle and unpack it.

    Args:
        bundle: the file.
        folder: where to; it exists and is empty.

    Returns:
        The manifest; every file that it lists is in `folder`, with the sha256 that it lists.

    Raises:
        InputError: there is no such file, it is no bundle, it is damaged, it holds what no bundle holds, or it is
            from a newer version.
        WriteError: the disk has no room for what is in it.
    """
    if not bundle.is_file():
        known = "is a folder, not a bundle" if bundle.exists() else "does not exist"
        raise InputError(f"{bundle} {known}.", "write one with `faq-deploy bundle RUN -o FILE.tgz`.")
    with _opened(bundle) as stream:
        manifest = _manifest(bundle, stream)
        _check_room(bundle, manifest, folder)
        missing = dict(manifest.files)
        while (member := _next(bundle, stream)) is not None:
            facts = missing.pop(member.name, None)
            _check_member(bundle, member, facts, manifest)
            assert facts is not None
            _copy(bundle, stream, member.name, facts, folder)
        _check_end(bundle, stream)
    if missing:
        raise InputError(f"{bundle} is damaged: {min(missing)} is missing from it.", _AGAIN)
    return manifest


@contextlib.contextmanager
def _opened(bundle: Path) -> Iterator[IO[bytes]]:
    """The unpacked bytes of a bundle, as a stream; whatever the decompressor stumbles over is one sentence."""
    try:
        with gzip.open(bundle, "rb") as stream:
            yield cast(IO[bytes], stream)
    except EOFError as error:
        raise InputError(f"{bundle} was cut short.", _AGAIN) from error
    except (gzip.BadGzipFile, zlib.error) as error:
        what = "is not a bundle" if "Not a gzipped file" in str(error) else "is damaged"
        raise InputError(f"{bundle} {what} ({str(error).splitlines()[0]}).", _AGAIN) from error


def _header(name: str, size: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)  # its other fields are zero or empty: no owner, no time
    info.size, info.mode = size, 0o644
    return info


def _manifest(bundle: Path, stream: IO[bytes]) -> BundleManifest:
    member = _next(bundle, stream)
    if member is None or member.name != MANIFEST or member.type not in _REGULAR or member.size > _MOST_MANIFEST:
        raise InputError(
            f"{bundle} is not a bundle, or was packed again ({MANIFEST} is not its first plain file).",
            _AGAIN,
        )
    return parse(b"".join(_contents(bundle, stream, MANIFEST, member.size)), str(bundle))


def _check_room(bundle: Path, manifest: BundleManifest, folder: Path) -> None:
    """Refuse what unpacks to too much before any of it is unpacked."""
    total, packed = sum(facts.bytes for facts in manifest.files.values()), bundle.stat().st_size
    if total > min(MOST_BYTES, max(_ALWAYS_ALLOWED, _MOST_RATIO * packed)):
        raise InputError(
            f"{bundle} would unpack {packed / 1e6:.3g} MB to {total / 1e6:,.0f} MB, which no bundle does.",
            "don't use it, unless you know who made it and why.",
        )
    free = shutil.disk_usage(folder).free
    if total > free:
        raise WriteError(
            f"{bundle} needs {total / 1e6:,.0f} MB in {folder.parent}, which has {free / 1e6:,.0f} MB left.",
            "free some disk space, or set TMPDIR to a folder on another disk.",
        )


def _check_member(bundle: Path, member: tarfile.TarInfo, facts: FileFacts | None, manifest: BundleManifest) -> None:
    if member.type not in _REGULAR:
        kind = _KINDS.get(member.type, f"an entry of type {member.type!r}")
        raise InputError(f"{bundle} holds {member.name!r}, {kind}: a bundle holds regular files only.", _AGAIN)
    if facts is None:
        why = "twice" if member.name in manifest.files or member.name == MANIFEST else "which its manifest doesn't list"
        raise InputError(f"{bundle} holds {member.name!r} {why}.", _AGAIN)
    if member.size != facts.bytes:
        raise InputError(
            f"{bundle} is damaged: {member.name} has {member.size:,} bytes, and the manifest says {facts.bytes:,}.",
            _AGAIN,
        )


def _next(bundle: Path, stream: IO[bytes]) -> tarfile.TarInfo | None:
    """The next header; None at the end of the archive, which is a block of zeros."""
    block = _read(bundle, stream, _BLOCK)
    if not any(block):
        return None
    try:
        return tarfile.TarInfo.frombuf(block, "ascii", "strict")
    except (tarfile.TarError, ValueError) as error:  # a name that is not ASCII is a ValueError
        raise InputError(
            f"{bundle} is not a bundle, or is damaged (no tar header where one must be).", _AGAIN
        ) from error


def _check_end(bundle: Path, stream: IO[bytes]) -> None:
    """Read to the end, where gzip keeps the checksum; all that may come there are zeros, and not many."""
    rest = stream.read(tarfile.RECORDSIZE + 1)
    if any(rest) or len(rest) > tarfile.RECORDSIZE:
        raise InputError(f"{bundle} holds something after its last file.", _AGAIN)


def _copy(bundle: Path, stream: IO[bytes], name: str, facts: FileFacts, folder: Path) -> None:
    digest, path = hashlib.sha256(), folder / name
    try:
        path.parent.mkdir(exist_ok=True)
        with path.open("xb") as file:
            for piece in _contents(bundle, stream, name, facts.bytes):
                digest.update(piece)
                file.write(piece)
    except (EOFError, gzip.BadGzipFile):
        raise
    except OSError as error:
        raise WriteError(
            f"{path} could not be written: {error.strerror or error}.",
            "free some disk space, or set TMPDIR to a folder on another disk.",
        ) from error
    if digest.hexdigest() != facts.sha256:
        raise InputError(f"{bundle} is damaged: {name} is not what was bundled (its sha256 is another).", _AGAIN)


def _contents(bundle: Path, stream: IO[bytes], name: str, size: int) -> Iterator[bytes]:
    """One file's bytes in pieces, and the zeros after it that fill its last block."""
    left = size
    while left:
        piece = _read(bundle, stream, min(left, _PIECE))
        left -= len(piece)
        yield piece
    padding = _read(bundle, stream, -size % _BLOCK)
    if any(padding):
        raise InputError(f"{bundle} is damaged: something lies hidden behind {name}.", _AGAIN)


def _read(bundle: Path, stream: IO[bytes], size: int) -> bytes:
    data = stream.read(size)
    if len(data) != size:
        raise InputError(f"{bundle} was cut short.", _AGAIN)
    return data
