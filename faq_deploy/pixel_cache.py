"""Decoded pixels of small image sets, kept in memory that loading processes share."""

from __future__ import annotations

import mmap
import os
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from engines.images import ImageSet, ImageSubset, IndexArray
from engines.preprocess import PixelArray, Preprocessing

__all__ = ["LARGEST", "CachedImages", "cached", "keeps_pixels"]

LARGEST: Final = 512 << 20  # bytes
_SHARE: Final = 4  # of the machine's memory, at most a quarter


def cached(images: ImageSet) -> ImageSet:
    """The same images, decoded once, where all of them fit into memory; the given set otherwise.

    Args:
        images: a set whose images are decoded anew each time. Only a fixed crop tells how large they become.
    """
    shape = images.preprocessing.crop_size
    if shape is None:
        return images
    size = len(images) * shape[0] * shape[1] * images.preprocessing.channels
    return CachedImages(images) if size <= min(LARGEST, _memory() // _SHARE) else images


def keeps_pixels(images: ImageSet) -> bool:
    """Whether each image of a set is decoded only once."""
    return isinstance(images.base if isinstance(images, ImageSubset) else images, CachedImages)


class CachedImages:
    """Keeps each image's pixels once they were asked for. A file that changes later is not read again.

    The memory is shared with processes that are forked later: what loads in a worker of one epoch is there for all in
    the next. It is no part of /dev/shm, which is small in containers, and takes room only as it is filled.

    Args:
        base: the images; their preprocessing has a crop.
    """

    def __init__(self, base: ImageSet) -> None:
        self.base, self.name, self.classes = base, base.name, base.classes
        self.preprocessing: Preprocessing = base.preprocessing
        self.labels: IndexArray = base.labels
        self._allocate()

    def __len__(self) -> int:
        return len(self.base)

    def raw(self, index: int) -> Image.Image:
        return self.base.raw(index)

    def pixels(self, index: int) -> PixelArray:
        if self._known[index]:
            kept: PixelArray = self._pixels[index].copy()  # a caller may write to its own
            return kept
        pixels = self.base.pixels(index)
        self._pixels[index] = pixels
        # after the pixels: another thread or process that sees no mark decodes again, to the same pixels
        self._known[index] = True
        return pixels

    def identity(self, index: int) -> str:
        return self.base.identity(index)

    def __getstate__(self) -> ImageSet:
        return self.base  # shared memory can't be pickled: a process that is not forked keeps pixels of its own

    def __setstate__(self, base: ImageSet) -> None:
        CachedImages.__init__(self, base)

    def _allocate(self) -> None:
        height, width = self.preprocessing.crop_size or (0, 0)
        count, shape = len(self), (len(self), height, width, self.preprocessing.channels)
        # anonymous and shared: forked processes write to the same pages
        self._known: npt.NDArray[np.bool_] = np.frombuffer(mmap.mmap(-1, max(1, count)), np.bool_, count)
        size = int(np.prod(shape))
        self._pixels: PixelArray = np.frombuffer(mmap.mmap(-1, max(1, size)), np.uint8, size).reshape(shape)


def _memory() -> int:
    """Bytes of memory in the machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
