"""What lies where in a shard: pictures with their labels, found in one pass and remembered."""

from __future__ import annotations

import contextlib
import hashlib
import json
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np
import numpy.typing as npt

from engines.errors import InputError, WriteError
from engines.files import atomic_path
from engines.image_files import SUFFIXES
from engines.images import IndexArray
from engines.json_text import read_json
from engines.user_cache import user_cache
from faq_deploy.shard_places import Stamp, opened
from faq_deploy.tar_members import Member, tar_members

__all__ = ["ShardIndex", "index_folder", "index_of"]

_FORMAT: Final = "1"
_LONGEST_LABEL: Final = 1 << 20  # bytes of a .cls or .json file


@dataclass(frozen=True)
class ShardIndex:
    """The samples of one shard, in the order in which they begin.

    Attributes:
        names: of the pictures, UTF-8, shape (N,).
        offsets: of the pictures' first bytes, int64, shape (N,).
        sizes: of the pictures in bytes, int64, shape (N,).
        labels: int64, shape (N,), not negative.
    """

    names: npt.NDArray[np.bytes_]
    offsets: IndexArray
    sizes: IndexArray
    labels: IndexArray


@dataclass
class _Sample:
    picture: Member | None = None
    files: set[str] = field(default_factory=set)
    label: int | None = None
    from_class_file: bool = False


def index_folder() -> Path:
    """Where indices are kept: `$XDG_CACHE_HOME/faq-deploy/shards`, by default below `~/.cache`."""
    return user_cache("shards")


def index_of(place: str, stamp: Stamp) -> ShardIndex:
    """The index of a shard: read from the user's cache, or made and put there.

    Args:
        place: an absolute path or a URL.
        stamp: of the shard now; an index of another size or version is not used.

    Raises:
        InputError: no tar archive, a truncated one, or a sample without a label or with two pictures.
        CannotRunHere: the place can't be reached.
    """
    file = index_folder() / f"{hashlib.sha256(place.encode()).hexdigest()[:32]}.npz"
    wanted = json.dumps([_FORMAT, place, stamp.size, stamp.version])
    kept = _kept(file, wanted)
    if kept is not None:
        return kept
    with opened(place) as archive:
        index = _indexed(archive, place, stamp.size)
    # a cache only saves time: where it can't be written, the next run indexes again
    with contextlib.suppress(WriteError), atomic_path(file) as temporary, temporary.open("wb") as stream:
        arrays = {"names": index.names, "offsets": index.offsets, "sizes": index.sizes, "labels": index.labels}
        np.savez(stream, allow_pickle=False, stamp=np.frombuffer(wanted.encode(), np.uint8), **arrays)
    return index


def _kept(file: Path, wanted: str) -> ShardIndex | None:
    try:
        with np.load(file, allow_pickle=False) as arrays:
            if arrays["stamp"].tobytes() != wanted.encode():
                return None
            return ShardIndex(arrays["names"], arrays["offsets"], arrays["sizes"], arrays["labels"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _indexed(archive: BinaryIO, place: str, length: int) -> ShardIndex:
    samples: dict[str, _Sample] = {}
    for member in tar_members(archive, place, length):
        folder, slash, name = member.name.rpartition("/")
        stem, _, extension = name.lower().partition(".")
        if not stem or not extension or stem.startswith("__"):  # hidden, or the writer's notes on the shard itself
            continue
        sample = samples.setdefault(folder + slash + name[: len(stem)], _Sample())
        if extension in sample.files:
            raise InputError(f"{place} holds {member.name} twice.", "give each sample a key of its own.")
        sample.files.add(extension)
        _take(sample, member, extension, archive, place)
    found = [_complete(key, sample, place) for key, sample in samples.items() if sample.picture is not None]
    if not found:
        raise InputError(
            f"{place} holds no images.",
            "a sample is KEY.jpg (or .jpeg, .png, ...) with KEY.cls, or with KEY.json that has a label.",
        )
    names, offsets, sizes, labels = zip(*found, strict=True)
    numbers = (np.array(values, np.int64) for values in (offsets, sizes, labels))
    return ShardIndex(np.array([name.encode("utf-8", "surrogateescape") for name in names]), *numbers)


def _take(sample: _Sample, member: Member, extension: str, archive: BinaryIO, place: str) -> None:
    kind = "." + extension.rsplit(".", 1)[-1]
    if kind in SUFFIXES:
        if sample.picture is not None:
            raise InputError(
                f"{place} has two pictures in one sample: {sample.picture.name} and {member.name}.",
                "write one picture for each key.",
            )
        sample.picture = member
    elif kind in (".cls", ".json") and not sample.from_class_file:
        if member.size > _LONGEST_LABEL:
            raise InputError(f"{member.name} in {place} has {member.size:,} bytes, too many for a label.", "check it.")
        archive.seek(member.offset)
        label = _label(archive.read(member.size), kind)
        if label is None and kind == ".cls":
            raise InputError(
                f"{member.name} in {place} is no class number.", "write the class as a number, counted from 0."
            )
        sample.from_class_file = kind == ".cls"
        sample.label = label if label is not None else sample.label


def _label(content: bytes, kind: str) -> int | None:
    """The class number in a .cls file, or in the "label" of a .json file; None where there is none."""
    try:
        text = content.decode()
        value: object = int(text) if kind == ".cls" else read_json(text)
    except ValueError:
        return None
    if isinstance(value, dict):
        value = value.get("label")
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 31 else None


def _complete(key: str, sample: _Sample, place: str) -> tuple[str, int, int, int]:
    assert sample.picture is not None
    if sample.label is None:
        raise InputError(
            f"{sample.picture.name} in {place} has no label.",
            f"write {key}.cls, or a number named label into {key}.json.",
        )
    return sample.picture.name, sample.picture.offset, sample.picture.size, sample.label
