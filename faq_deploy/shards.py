"""Images in WebDataset shards: tar archives of KEY.jpg with KEY.cls, read at random by their index."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final, TypeVar

import numpy as np
from PIL import Image

from engines.errors import InputError
from engines.image_files import VALIDATION_FOLDERS, decode_image
from engines.images import DataWarning, IndexArray
from engines.preprocess import BadImage, PixelArray, Preprocessing, to_color, to_pixels
from faq_deploy.shard_index import ShardIndex, index_of
from faq_deploy.shard_places import (
    Stamp,
    absolute,
    base_name,
    expanded,
    is_remote,
    read_range,
    sibling_text,
    stamp_of,
)

__all__ = ["CLASS_NAMES", "ShardImages", "ShardSpec", "shard_spec"]

CLASS_NAMES: Final = "classes.txt"
_COMPRESSED: Final = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")

_T = TypeVar("_T")


@dataclass(frozen=True)
class ShardSpec:
    """Which shards hold what.

    Attributes:
        train: absolute paths or URLs of the first part.
        val: of the validation part; empty where the images bring no split of their own.
        text: how --data names them, from any folder.
    """

    train: tuple[str, ...]
    val: tuple[str, ...]
    text: str


def shard_spec(data: str) -> ShardSpec | None:
    """What a data spec says of shards; None where it names none.

    Args:
        data: `TRAIN` or `TRAIN,VAL`, each a path or URL of a tar archive with ranges such as {000..127} in it, or a
            folder that holds train*.tar and val*.tar (or valid, validation, test), or tar archives alone.

    Raises:
        InputError: shards that can't be meant.
    """
    folder = Path(data).expanduser()
    if not is_remote(data) and folder.is_dir():
        return _of_folder(folder.resolve())
    parts = data.split(",")
    if compressed := [part for part in parts if part.endswith(_COMPRESSED)]:
        raise InputError(
            f"{compressed[0]} is compressed, so that its pictures can't be read one by one.",
            "unpack it to a plain .tar; pictures are compressed already.",
        )
    if not all(base_name(part).endswith(".tar") for part in parts):
        if is_remote(data):
            raise InputError(f"{data} is not a tar archive.", "name shards such as s3://bucket/train-{000..127}.tar.")
        return None
    if len(parts) > 2:
        raise InputError(f"{data} names {len(parts)} parts.", "name training shards and validation shards: TRAIN,VAL.")
    places = [absolute(part) for part in parts]
    train, val = (tuple(expanded(place)) for place in (*places, "")[:2])
    return ShardSpec(train, val if len(places) == 2 else (), ",".join(places))


class ShardImages:
    """The labelled pictures of some shards, in the order of the shards and of the samples in them.

    Args:
        places: absolute paths or URLs of tar archives.
        preprocessing: how the images are prepared.
        classes: names in the order of the network's outputs; None takes those of `classes.txt` beside the first shard,
            or else the numbers up to the largest label.
        name: what reports call the set; None takes the first shard's name.

    Raises:
        InputError: a shard is missing or damaged, or a label is out of range.
        CannotRunHere: the shards can't be reached from here.
    """

    def __init__(
        self,
        places: Sequence[str],
        preprocessing: Preprocessing,
        classes: Sequence[str] | None = None,
        name: str | None = None,
    ) -> None:
        self.places, self.preprocessing = tuple(places), preprocessing
        self.name = name or (places[0] if len(places) == 1 else f"{places[0]} to {base_name(places[-1])}")
        self._stamps = _stamps(self.places)
        indices = [index_of(place, stamp) for place, stamp in zip(self.places, self._stamps, strict=True)]
        self._shard: IndexArray = np.repeat(np.arange(len(indices)), [len(index.labels) for index in indices])
        self._names = np.concatenate([index.names for index in indices])
        self._offsets: IndexArray = np.concatenate([index.offsets for index in indices])
        self._sizes: IndexArray = np.concatenate([index.sizes for index in indices])
        self._short = _short_names(self.places)
        self.classes, self.labels = self._labelled(indices, classes)

    def __len__(self) -> int:
        return len(self._sizes)

    def raw(self, index: int) -> Image.Image:
        return self._prepared(index, to_color)

    def pixels(self, index: int) -> PixelArray:
        return self._prepared(index, to_pixels)

    def identity(self, index: int) -> str:
        picture = bytes(self._names[index]).decode("utf-8", "surrogateescape")
        return f"{self._short[self._shard[index]]}/{picture}"

    def _prepared(self, index: int, prepare: Callable[[Image.Image, Preprocessing], _T]) -> _T:
        shard = int(self._shard[index])
        content = read_range(
            self.places[shard], int(self._offsets[index]), int(self._sizes[index]), self._stamps[shard]
        )
        try:
            return prepare(decode_image(content), self.preprocessing)
        except BadImage as error:
            raise BadImage(f"{self.identity(index)} can't be used: {error.what}.", error.remedy) from error

    def _labelled(
        self, indices: Sequence[ShardIndex], classes: Sequence[str] | None
    ) -> tuple[tuple[str, ...], IndexArray]:
        """Class names, and labels that are indices into them."""
        labels = np.concatenate([index.labels for index in indices])
        own = _own_names(self.places[0])
        known = own or (tuple(map(str, range(int(labels.max()) + 1))) if classes is None else tuple(classes))
        if int(labels.max()) >= len(known):
            first = int(np.argmax(labels >= len(known)))
            raise InputError(
                f"{self.identity(first)} has the label {labels[first]}, but there are {len(known)} classes.",
                f"count labels from 0, and name every class in {CLASS_NAMES}." if own else "count labels from 0.",
            )
        wanted = known if classes is None else tuple(classes)
        if unknown := sorted(set(known) - set(wanted)):
            raise InputError(
                f"{CLASS_NAMES} beside {base_name(self.places[0])} names {unknown[0]}, which is not among the "
                f"{len(wanted)} known classes.",
                "take the names that the network was trained with.",
            )
        if without := sorted(set(range(len(known))) - set(np.unique(labels).tolist())):
            named = ", ".join(known[i] for i in without[:5]) + (", ..." if len(without) > 5 else "")
            warnings.warn(f"{self.name} has no images of {len(without)} class(es): {named}.", DataWarning, stacklevel=3)
        order = np.array([wanted.index(name) for name in known], np.int64)
        return wanted, order[labels]


def _of_folder(folder: Path) -> ShardSpec | None:
    names = sorted(entry.name for entry in folder.iterdir() if entry.name.endswith(".tar"))
    if not names or any(entry.is_dir() and not entry.name.startswith(".") for entry in folder.iterdir()):
        return None  # with class folders in it, it is a folder of images
    train = [name for name in names if name.startswith("train")]
    found = ([name for name in names if name.startswith(prefix)] for prefix in VALIDATION_FOLDERS)
    val = next(filter(None, found), [])
    if not (train and val):
        train, val = names, []
    places = [tuple(str(folder / name) for name in part) for part in (train, val)]
    return ShardSpec(places[0], places[1], str(folder))


def _stamps(places: Sequence[str]) -> list[Stamp]:
    found = [(place, stamp_of(place)) for place in places]
    if missing := [place for place, stamp in found if stamp is None]:
        more = f", and {len(missing) - 1} more of {len(places)}" if len(missing) > 1 else ""
        raise InputError(
            f"The shard {missing[0]} does not exist{more}.", "check the range in --data, or copy the shard there."
        )
    return [stamp for _, stamp in found if stamp is not None]


def _own_names(place: str) -> tuple[str, ...] | None:
    text = sibling_text(place, CLASS_NAMES)
    if text is None:
        return None
    names = [line.strip() for line in text.splitlines()]
    while names and not names[-1]:
        names.pop()
    where = f"{CLASS_NAMES} beside {base_name(place)}"
    if not names or not all(names):
        raise InputError(f"{where} has an empty line.", "write the name of class 0 in line 1, and so on.")
    if twice := [name for name in names if names.count(name) > 1]:
        raise InputError(f"{where} names {twice[0]} twice.", "give each class a name of its own.")
    return tuple(names)


def _short_names(places: Sequence[str]) -> list[str]:
    """The shards' names without what all of them share, so that identities are the same on every machine."""
    names = [base_name(place) for place in places]
    if len(set(names)) == len(names):
        return names
    parts = [PurePosixPath(place).parts for place in places]
    shared = next(i for i in range(len(parts[0])) if len({part[i] for part in parts}) > 1)
    return ["/".join(part[shared:]) for part in parts]
