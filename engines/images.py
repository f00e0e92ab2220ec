"""Image sets: labelled pictures from a folder or from memory, each prepared on demand."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from engines.errors import InputError
from engines.image_files import SUFFIXES, class_folders, image_files, read_image
from engines.preprocess import BadImage, PixelArray, Preprocessing, to_color, to_pixels

__all__ = [
    "ArrayImages",
    "DataWarning",
    "ImageFolder",
    "ImageSet",
    "ImageSubset",
    "IndexArray",
]

IndexArray = npt.NDArray[np.int64]

_T = TypeVar("_T")


class DataWarning(UserWarning):
    """Something about the data that a user should know and that stops nothing."""


class ImageSet(Protocol):
    """Labelled images in a fixed order, with the preprocessing that turns them into network input."""

    name: str
    classes: tuple[str, ...]
    labels: IndexArray
    preprocessing: Preprocessing

    def __len__(self) -> int: ...

    def raw(self, index: int) -> Image.Image:
        """The whole picture in the wanted colour and orientation, before resize and crop."""
        ...

    def pixels(self, index: int) -> PixelArray:
        """The preprocessed picture: uint8, shape (H, W, C)."""
        ...

    def identity(self, index: int) -> str:
        """A name that stays the same on every machine: the relative file name, or the index."""
        ...


class ImageFolder:
    """A folder with one folder per class; files may be nested in it, and are ordered by name.

    Args:
        root: the folder.
        preprocessing: how its images are prepared.
        classes: class i is the folder `classes[i]`; None takes the folders of `root` in lexical order.

    Raises:
        InputError: the folder is missing or holds no images, or holds a class that `classes` doesn't know.
    """

    def __init__(self, root: Path, preprocessing: Preprocessing, classes: Sequence[str] | None = None) -> None:
        found = class_folders(root)
        self.root, self.name, self.preprocessing = root, str(root), preprocessing
        self.classes = tuple(found if classes is None else classes)
        if unknown := sorted(set(found) - set(self.classes)):
            raise InputError(
                f"{root} holds the class {unknown[0]}, which is not among the {len(self.classes)} known classes.",
                f"remove or rename the folder {root / unknown[0]}, or train with this class.",
            )
        files = [image_files(root, name) if name in found else [] for name in self.classes]
        self._files = [name for of_class in files for name in of_class]
        self.labels: IndexArray = np.repeat(np.arange(len(files)), [len(of_class) for of_class in files])
        if not self._files:
            raise InputError(f"{root} holds no images.", f"known file names end in {', '.join(sorted(SUFFIXES))}.")
        if without := [name for name, of_class in zip(self.classes, files, strict=True) if not of_class]:
            named = ", ".join(without[:5]) + (", ..." if len(without) > 5 else "")
            warnings.warn(f"{root} has no images of {len(without)} class(es): {named}.", DataWarning, stacklevel=2)

    def __len__(self) -> int:
        return len(self._files)

    def raw(self, index: int) -> Image.Image:
        return self._prepared(index, to_color)

    def pixels(self, index: int) -> PixelArray:
        return self._prepared(index, to_pixels)

    def identity(self, index: int) -> str:
        return self._files[index]

    def _prepared(self, index: int, prepare: Callable[[Image.Image, Preprocessing], _T]) -> _T:
        path = self.root / self._files[index]
        try:
            return prepare(read_image(path), self.preprocessing)
        except BadImage as error:
            raise BadImage(f"{path} can't be used: {error.what}.", error.remedy) from error


class ArrayImages:
    """Images in memory.

    Args:
        pixels: uint8, shape (N, H, W, C), C = 1 or 3.
        labels: int64, shape (N,).
        classes: class names; labels index them.
        preprocessing: how the images are prepared.
        name: what reports call the set.

    Raises:
        InputError: shapes, dtype or labels don't fit together.
    """

    def __init__(
        self,
        pixels: PixelArray,
        labels: IndexArray,
        classes: Sequence[str],
        preprocessing: Preprocessing,
        name: str = "images",
    ) -> None:
        if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[3] not in (1, 3) or len(pixels) != len(labels):
            raise InputError(
                f"{name} has pixels of {pixels.dtype} {pixels.shape} with {len(labels)} labels.",
                "pass uint8 pixels of shape (N, H, W, 1 or 3) and N labels.",
            )
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(classes):
            raise InputError(
                f"{name} has labels {labels.min()} to {labels.max()}, but {len(classes)} classes.",
                "number the classes from 0, and name them all.",
            )
        self.name, self.classes, self.preprocessing = name, tuple(classes), preprocessing
        self.labels: IndexArray = np.asarray(labels, np.int64)
        self._pixels = pixels
        # nothing to resize, crop or convert: most of the time would go into the way to Pillow and back
        size = preprocessing.crop_size or pixels.shape[1:3]
        self._ready = preprocessing.resize is None and (*size, preprocessing.channels) == pixels.shape[1:]

    def __len__(self) -> int:
        return len(self._pixels)

    def raw(self, index: int) -> Image.Image:
        return to_color(self._picture(index), self.preprocessing)

    def pixels(self, index: int) -> PixelArray:
        return self._pixels[index].copy() if self._ready else to_pixels(self._picture(index), self.preprocessing)

    def identity(self, index: int) -> str:
        return str(index)

    def _picture(self, index: int) -> Image.Image:
        pixels = self._pixels[index]
        return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)


class ImageSubset:
    """Some images of another set, in the given order.

    Args:
        base: the set.
        indices: int64, shape (N,), into it.
        name: what reports call it.

    Attributes:
        base: that set.
    """

    def __init__(self, base: ImageSet, indices: IndexArray, name: str) -> None:
        self.name, self.classes, self.preprocessing = name, base.classes, base.preprocessing
        self.labels: IndexArray = base.labels[indices]
        self.base, self._indices = base, indices

    def __len__(self) -> int:
        return len(self._indices)

    def raw(self, index: int) -> Image.Image:
        return self.base.raw(int(self._indices[index]))

    def pixels(self, index: int) -> PixelArray:
        return self.base.pixels(int(self._indices[index]))

    def identity(self, index: int) -> str:
        return self.base.identity(int(self._indices[index]))
