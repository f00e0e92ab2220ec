"""A few preprocessed images kept with the run, so that export can check the file without the data."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from engines.errors import InputError
from engines.image_batches import require_equal_sizes
from engines.images import ImageSet
from engines.preprocess import BadImage, PixelArray, Preprocessing, normalize
from engines.runner import FloatArray

__all__ = ["COUNT", "load_samples", "write_samples"]

COUNT: Final = 32


def write_samples(path: Path, images: ImageSet, indices: npt.NDArray[np.int64]) -> int:
    """Write pixels (uint8, NHWC) and labels of some images; bad ones are left out.

    Args:
        path: a file that has no name yet, as in `atomic_path`.
        images: the set to take them from.
        indices: which ones.

    Returns:
        How many were written.

    Raises:
        InputError: none of them can be used, or they differ in size.
        OSError: the disk is full.
    """
    found: list[tuple[int, PixelArray]] = []
    error: BadImage | None = None
    for index in map(int, indices):
        try:
            found.append((index, images.pixels(index)))
        except BadImage as bad:
            error = bad
    if not found:
        raise error or InputError(f"{images.name} holds no images.", "give a folder with images.")
    require_equal_sizes([(images.identity(index), pixels) for index, pixels in found])
    labels = images.labels[[index for index, _ in found]]
    with path.open("wb") as stream:
        np.savez_compressed(stream, pixels=np.stack([pixels for _, pixels in found]), labels=labels)
    return len(found)


def load_samples(path: Path, preprocessing: Preprocessing, count: int | None = None) -> FloatArray:
    """Normalized images of a run, float32 (N, C, H, W); the first `count` of them.

    Raises:
        InputError: the file is damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            pixels = stored["pixels"]
    except MemoryError:
        raise
    except Exception as error:  # whatever the archive reader or NumPy's header parser trips over
        raise InputError(f"{path} is damaged.", "make the run again with `faq-deploy quantize --force`.") from error
    return np.ascontiguousarray(normalize(pixels[:count], preprocessing))
