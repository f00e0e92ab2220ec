"""Images that stages answer otherwise, with a thumbnail each: the first thing to look at where accuracy was lost."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from engines.errors import FaqError
from engines.images import ImageSet
from faq_deploy.predictions import Predictions
from faq_deploy.report_parts import Flip

__all__ = ["MOST_FLIPS", "flip_gallery", "flipped", "thumbnail"]

MOST_FLIPS: Final = 24

_SIDE: Final = 96  # pixels
_QUALITY: Final = 80

IntArray = npt.NDArray[np.int64]


def flip_gallery(images: ImageSet, indices: IntArray, predictions: Predictions) -> list[Flip]:
    """The first images that some stage answers otherwise than PyTorch float, or than PyTorch quantized.

    Args:
        images: that were evaluated.
        indices: int64, shape (N,): which images of the set were run.
        predictions: of all stages, in the same order.

    Returns:
        At most `MOST_FLIPS`: first those that leave PyTorch quantized, which nothing may; then what quantization lost,
        gained, and changed from one wrong answer to another.
    """
    classes, answers = predictions.classes, predictions.answers
    return [
        Flip(
            image=predictions.images[row],
            label=classes[int(predictions.labels[row])],
            answers={stage: classes[int(found[row])] for stage, found in answers.items() if row < len(found)},
            thumbnail=thumbnail(images, int(indices[row])),
        )
        for row in flipped(predictions)[:MOST_FLIPS]
    ]


def flipped(predictions: Predictions) -> list[int]:
    """Rows of the images that stages answer otherwise, in the order of `flip_gallery`."""
    labels, answers = predictions.labels, predictions.answers
    floating, quantized = answers["PyTorch float"], answers["PyTorch quantized"]
    left = np.zeros(len(labels), bool)
    for stage, found in answers.items():
        if stage not in ("PyTorch float", "PyTorch quantized"):
            left[: len(found)] |= found != quantized[: len(found)]
    other = floating != quantized
    lost, gained = other & (floating == labels), other & (quantized == labels)
    groups: Sequence[npt.NDArray[np.bool_]] = (left, lost, gained, other)
    return list(dict.fromkeys(int(row) for group in groups for row in np.flatnonzero(group)))


def thumbnail(images: ImageSet, index: int) -> str:
    """A small JPEG of an image in base64; empty where it can't be read any more.

    Args:
        images: the set.
        index: of the image.
    """
    try:
        picture = images.raw(index).convert("RGB")
    except (FaqError, OSError):  # a picture is for the eye alone
        return ""
    scale = _SIDE / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    # pixels of a tiny image stay squares
    small = picture.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=_QUALITY)
    return base64.b64encode(stream.getvalue()).decode()
