"""A few preprocessed images kept with the run, so that export can check the file without the data."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from engines.errors import InputError
from engines.files import atomic_path
from engines.images import ImageSet
from engines.preprocess import Preprocessing, normalize
from engines.runner import FloatArray

__all__ = ["COUNT", "load_samples", "save_samples"]

COUNT: Final = 32


def save_samples(path: Path, images: ImageSet, indices: npt.NDArray[np.int64]) -> int:
    """Write pixels (uint8, NHWC) and labels of some images; bad ones are left out.

    Returns:
        How many were written.

    Raises:
        InputError: none of them can be read, or the disk is full.
    """
    pixels, labels = [], []
    error: InputError | None = None
    for index in indices:
        try:
            pixels.append(images.pixels(int(index)))
            labels.append(images.labels[index])
        except InputError as bad:
            error = bad
    if not pixels:
        raise error or InputError(f"{images.name} holds no images.", "give a folder with images.")
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(stream, pixels=np.stack(pixels), labels=np.array(labels, np.int64))
    return len(pixels)


def load_samples(path: Path, preprocessing: Preprocessing, count: int | None = None) -> FloatArray:
    """Normalized images of a run, float32 (N, C, H, W); the first `count` of them.

    Raises:
        InputError: the file is damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            pixels = stored["pixels"]
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{path} is damaged ({error}).", "run `faq-deploy quantize` again.") from error
    return np.ascontiguousarray(normalize(pixels[:count], preprocessing))
