"""What augmentation makes of an image: shifted, mirrored, or a part of it, drawn from (seed, epoch, image) alone."""

from __future__ import annotations

import functools
import hashlib
import math
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from engines.preprocess import PixelArray, Preprocessing
from faq_deploy.data import Augment

__all__ = ["MoveArray", "moved", "moves", "random_part", "seed_of"]

MoveArray = npt.NDArray[np.int8]

_REACH: Final = {"shift": 1, "cifar": 4}  # pixels; paper 4.9 pads by 4 before the random crop
_SCALE: Final = (0.08, 1.0)  # share of the picture's area; these are torchvision's RandomResizedCrop
_RATIO: Final = (3 / 4, 4 / 3)
_TRIES: Final = 10


@functools.lru_cache(maxsize=2)
def moves(augment: Augment, seed: int, epoch: int, count: int) -> MoveArray:
    """How the images of an epoch are moved: all of it drawn at once, since a generator for each image costs more.

    Args:
        augment: "shift" or "cifar".
        seed: of the run.
        epoch: counted from 0.
        count: images in the set. Row i is the same for any larger count.

    Returns:
        int8, shape (count, 3): rows and columns that the crop begins below and right of the image's own corner, and
        whether it is mirrored. Read-only.
    """
    drawn = np.random.default_rng(seed_of("augment", seed, epoch)).random((count, 3))
    reach = _REACH[augment]
    drawn[:, :2] = drawn[:, :2] * (2 * reach + 1) - reach
    drawn[:, 2] = (drawn[:, 2] < 0.5) & (augment == "cifar")
    table = np.floor(drawn).astype(np.int8)
    table.flags.writeable = False  # it is shared by all that ask for this epoch
    return table


def moved(pixels: PixelArray, table: MoveArray) -> PixelArray:
    """Images cropped out of themselves with a black border, to their own size, and some mirrored.

    NumPy's slices: torchvision's kernels give the same pixels, and cost more for calling them than for their work.

    Args:
        pixels: uint8, shape (N, H, W, C).
        table: int8, shape (N, 3), rows of `moves`.

    Returns:
        uint8, shape (N, H, W, C).
    """
    _, height, width, _ = pixels.shape
    result = np.zeros_like(pixels)
    for image, target, (down, right, mirrored) in zip(pixels, result, table.tolist(), strict=True):
        if abs(down) >= height or abs(right) >= width:
            continue  # nothing but the border is left of a tiny image
        into = target[:, ::-1] if mirrored else target
        into[max(0, -down) : height - max(0, down), max(0, -right) : width - max(0, right)] = image[
            max(0, down) : height + min(0, down), max(0, right) : width + min(0, right)
        ]
    return result


def random_part(picture: Image.Image, spec: Preprocessing, seed: int, epoch: int, index: int) -> PixelArray:
    """A random part of a picture, resized to the crop size, and mirrored half of the time.

    Args:
        picture: the whole picture, in the wanted colour.
        spec: crop size, interpolation and channels.
        seed: of the run.
        epoch: counted from 0.
        index: of the image in its set.

    Returns:
        uint8, shape (H, W, C) of the crop size.

    Source: torchvision's v2.RandomResizedCrop and RandomHorizontalFlip, with numbers from a counter-based generator.
    """
    bits = np.random.Philox(key=seed_of("augment", seed, epoch), counter=[0, 0, 0, index])
    rng = np.random.Generator(bits)
    height, width = spec.crop_size or (0, 0)
    top, left, rows, columns = _part(picture.height, picture.width, rng)
    mode = InterpolationMode(spec.interpolation)
    part = functional.resized_crop(picture, top, left, rows, columns, [height, width], mode, antialias=True)
    if rng.random() < 0.5:
        part = functional.horizontal_flip(part)
    return np.array(part, np.uint8).reshape(height, width, spec.channels)


def seed_of(purpose: str, *numbers: int) -> int:
    """A seed of 64 bits for one use, unlike those of neighbouring numbers and of other purposes.

    Args:
        purpose: names the use.
        *numbers: such as the run's seed and the epoch.
    """
    text = "/".join([purpose, *map(str, numbers)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def _part(height: int, width: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Top, left, height and width of a part with a random area and aspect ratio; the middle where none fits."""
    low, high = math.log(_RATIO[0]), math.log(_RATIO[1])
    for _ in range(_TRIES):
        area = height * width * rng.uniform(*_SCALE)
        ratio = math.exp(rng.uniform(low, high))
        columns, rows = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < columns <= width and 0 < rows <= height:
            return int(rng.integers(height - rows + 1)), int(rng.integers(width - columns + 1)), rows, columns
    columns, rows = width, height
    if width / height < _RATIO[0]:
        rows = round(width / _RATIO[0])
    elif width / height > _RATIO[1]:
        columns = round(height * _RATIO[1])
    return (height - rows) // 2, (width - columns) // 2, rows, columns
