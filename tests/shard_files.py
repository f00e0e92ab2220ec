"""Tar archives as WebDataset's writer lays them out, for tests."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

__all__ = ["picture", "sample", "write_shards", "write_tar"]


def picture(number: int, size: tuple[int, int] = (8, 8), kind: str = "PNG") -> bytes:
    """A picture of noise; a PNG, so that its pixels are what was drawn."""
    pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


def sample(number: int, label: int | None, kind: str = "cls") -> dict[str, bytes]:
    """The two members of a sample; without a label, the picture alone."""
    key = f"{number:06d}"
    content = {"cls": str(label).encode(), "json": json.dumps({"label": label, "width": 8}).encode()}
    return {f"{key}.png": picture(number)} | ({} if label is None else {f"{key}.{kind}": content[kind]})


def write_tar(path: Path, members: Mapping[str, bytes], form: int = tarfile.PAX_FORMAT) -> Path:
    """An archive with fractions of seconds, which pax keeps in a header of its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as stream, tarfile.open(fileobj=stream, mode="w|", format=form) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(content), 1700000000.25
            archive.addfile(info, io.BytesIO(content))
    return path


def write_shards(folder: Path, part: str, labels: Sequence[Sequence[int]]) -> str:
    """One shard for each row of labels; returns the pattern that names them."""
    number = 0
    for shard, row in enumerate(labels):
        members: dict[str, bytes] = {}
        for label in row:
            members |= sample(number, label, "cls" if number % 2 else "json")
            number += 1
        write_tar(folder / f"{part}-{shard:03d}.tar", members)
    return str(folder / f"{part}-{{000..{len(labels) - 1:03d}}}.tar")
