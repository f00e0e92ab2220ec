"""Seeded draws of images: a validation part, and images to calibrate on."""

from __future__ import annotations

import hashlib

import numpy as np

from engines.errors import InputError
from engines.images import IndexArray

__all__ = ["calibration_indices", "hold_out"]


def hold_out(labels: IndexArray, train_fraction: float, seed: int) -> tuple[IndexArray, IndexArray]:
    """Draw a training and a validation part, class by class in proportion.

    A class keeps at least one image for training, unless it has a single one: that goes to either part.

    Args:
        labels: int64, shape (N,).
        train_fraction: share of the training part, between 0 and 1.
        seed: of the draw.

    Returns:
        Indices of the training and of the validation images, each sorted; together all N.

    Raises:
        InputError: the fraction isn't between 0 and 1, or leaves one part empty.
    """
    if not 0 < train_fraction < 1:
        raise InputError(f"The training fraction {train_fraction} is not between 0 and 1.", "pass, for example, 0.8.")
    rng = _generator(seed, "hold out")
    counts = np.bincount(labels)
    available = np.where(counts > 1, counts - 1, counts)
    wanted = min(round(len(labels) * (1 - train_fraction)), int(available.sum()))
    val = np.sort(_draw(labels, _proportional(available, wanted, rng), rng))
    train = np.setdiff1d(np.arange(len(labels)), val)
    if not len(train) or not len(val):
        raise InputError(
            f"A training fraction of {train_fraction} splits the images into {len(train)} for training and {len(val)} "
            "for validation.",
            "pass another fraction, or more images.",
        )
    return train, val


def calibration_indices(labels: IndexArray, count: int, seed: int) -> IndexArray:
    """Draw images to calibrate on: from all classes, in proportion, and mixed.

    The draw depends on the labels and the seed alone; image sets are ordered by file name, so that neither the order on
    disk nor the number of workers matters. Where `count` allows, each class gives at least one image.

    Args:
        labels: int64, shape (N,).
        count: how many; fewer are returned where there are fewer.
        seed: of the draw.

    Returns:
        Distinct indices in random order, shape (min(count, N),).
    """
    rng = _generator(seed, "calibration")
    available = np.bincount(labels)
    wanted = min(count, len(labels))
    one_each = np.minimum(available, 1)
    if wanted < int(one_each.sum()):
        one_each[:] = 0
    drawn = one_each + _proportional(available - one_each, wanted - int(one_each.sum()), rng)
    return rng.permutation(_draw(labels, drawn, rng))


def _generator(seed: int, purpose: str) -> np.random.Generator:
    digest = hashlib.blake2b(f"{purpose}/{seed}".encode(), digest_size=16).digest()
    return np.random.default_rng(int.from_bytes(digest, "big"))


def _proportional(available: IndexArray, total: int, rng: np.random.Generator) -> IndexArray:
    """Split `total` in proportion to `available`, in whole numbers: largest remainders first, ties by lot."""
    whole = max(1, int(available.sum()))
    counts: IndexArray = total * available // whole
    remainders = total * available % whole
    order = np.lexsort((rng.permutation(len(available)), -remainders))
    counts[order[: total - int(counts.sum())]] += 1
    return counts


def _draw(labels: IndexArray, counts: IndexArray, rng: np.random.Generator) -> IndexArray:
    """`counts[c]` random images of each class c."""
    order = rng.permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]  # by class, in random order within each
    of_class = np.bincount(labels, minlength=len(counts))
    rank = np.arange(len(labels)) - np.repeat(np.cumsum(of_class) - of_class, of_class)
    return order[rank < np.repeat(counts, of_class)]
