"""What `init` looks at: some of the images, how a net of the user's own takes them, and how many it gets right."""

from __future__ import annotations

import dataclasses
import time
from typing import Final

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from engines.errors import InputError
from engines.image_batches import BadImages, OnBad
from engines.images import ImageSet, ImageSubset, IndexArray
from engines.preprocess import BadImage
from faq_deploy.data import Splits
from faq_deploy.run_data import DataOptions
from faq_deploy.starter_rules import ImageFacts, Tried
from faq_deploy.torch_eval import top1_percent

__all__ = ["look_at", "same_parameters", "suited", "tried"]

_LOOKED_AT: Final = 64  # images
_SIDES: Final = (224, 32, 28, 64, 96, 128, 160, 192, 256, 299, 384)  # that nets commonly take, the likeliest first
_WHOLE: Final = 64  # pixels; up to here a crop out of a larger image loses too much


def look_at(splits: Splits) -> ImageFacts:
    """What the images are.

    Args:
        splits: opened in colour where grey is to be told from colour.

    Raises:
        InputError: none of those opened can be read.
    """
    train = splits.train
    pictures: list[Image.Image] = []
    indices = _spread(len(train))
    for index in indices:
        try:
            pictures.append(train.raw(int(index)))
        except BadImage:
            continue
    if not pictures:
        raise InputError(f"No image of {train.name} can be read.", "give a data folder with images.")
    of_class = np.bincount(train.labels, minlength=len(train.classes))
    sizes = sorted((picture.size for picture in pictures), key=lambda size: size[0] * size[1])
    return ImageFacts(
        description=splits.description,
        train=len(train),
        val=len(splits.val),
        classes=len(train.classes),
        fewest=int(of_class.min()),
        most=int(of_class.max()),
        looked_at=len(indices),
        unreadable=len(indices) - len(pictures),
        smallest=sizes[0],
        largest=sizes[-1],
        one_size=len(set(sizes)) == 1,
        grey=all(map(_is_grey, pictures)),
        augment=splits.augment,
    )


def suited(module: nn.Module, images: ImageFacts, data: DataOptions) -> DataOptions:
    """How to prepare images for a net of which nobody says how it was trained: in a size and colours that it takes.

    Args:
        module: in float.
        images: that were looked at.
        data: what the user gave stays.

    Returns:
        The same, with a size and a colour where they were open.
    """
    channels = next((m.in_channels for m in module.modules() if isinstance(m, nn.Conv2d)), 3)
    color = data.color or ("L" if channels == 1 else "RGB")
    data = dataclasses.replace(data, color="L" if color == "L" else data.color)
    if data.crop is not None or data.resize is not None:
        return data
    width, height = images.smallest
    depth = 1 if color == "L" else 3
    if images.one_size and _takes(module, depth, height, width):
        return dataclasses.replace(data, resize=0, crop=width if width == height else 0)
    side = next((side for side in _SIDES if _takes(module, depth, side, side)), None)
    if side is None:
        return data  # quantize's own choice, of which the model says what is wrong with it
    return dataclasses.replace(data, resize=side if side <= _WHOLE else round(side * 256 / 224), crop=side)


def same_parameters(module: nn.Module, again: nn.Module) -> bool:
    """Whether two nets that a function made from different seeds hold the same weights, so that none was drawn.

    Args:
        module, again: of one architecture.
    """
    both = zip(module.parameters(), again.parameters(), strict=False)
    return all(torch.equal(first, second) for first, second in both)


def tried(module: nn.Module, images: ImageSet, on_bad: OnBad) -> Tried:
    """Run some images, evenly spaced over the classes.

    Args:
        module: in float.
        images: to evaluate on.
        on_bad: what to do about an image that can't be read.

    Raises:
        InputError: an image can't be read, or none can.
    """
    indices, bad = _spread(len(images)), BadImages()
    began = time.monotonic()
    part = ImageSubset(images, indices, images.name)
    percent = top1_percent(module, part, batch_size=16, on_bad=on_bad, bad=bad)
    seen = len(indices) - len(bad.reasons)
    return Tried(round(percent * seen / 100), seen, (time.monotonic() - began) / seen)


def _spread(count: int) -> IndexArray:
    return np.unique(np.linspace(0, count - 1, min(count, _LOOKED_AT)).astype(np.int64))


def _is_grey(picture: Image.Image) -> bool:
    pixels = np.asarray(picture.convert("RGB"))
    return bool((pixels == pixels[..., :1]).all())


def _takes(module: nn.Module, channels: int, height: int, width: int) -> bool:
    example = torch.zeros(2, channels, height, width)
    with torch.inference_mode():
        try:
            result = module.eval()(example)
        except Exception:  # the user's code may raise anything
            return False
    return not isinstance(result, Tensor) or result.dim() == 2
