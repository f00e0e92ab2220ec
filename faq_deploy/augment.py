"""Training batches: augmented, the same for any number of workers, and resumable at any step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from engines.errors import FaqError, InputError
from engines.image_batches import BadImages, OnBad, require_equal_sizes
from engines.images import ImageSet, IndexArray
from engines.preprocess import BadImage, PixelArray, normalize
from faq_deploy.data import Augment
from faq_deploy.loading_processes import from_workers
from faq_deploy.random_views import moved, moves, random_part, seed_of

__all__ = ["TrainingData", "batch_sizes", "epoch_order", "require_shares", "training_batches"]


@dataclass(frozen=True)
class TrainingData(Dataset[tuple[PixelArray, int]]):
    """Augmented images of one epoch. Image i depends on (seed, epoch, i) alone.

    Augmentation works on uint8 pixels, so that training and validation share one normalization.

    Attributes:
        images: the training images.
        augment: "none"; "shift", by up to 1 pixel; "cifar", random crop after padding by 4, and flip; "imagenet", a
            random part of the whole picture resized to the crop size, and flip. Padding is black.
        seed: of the run.
        epoch: counted from 0.
    """

    images: ImageSet
    augment: Augment
    seed: int
    epoch: int = 0

    def __post_init__(self) -> None:
        if self.augment == "imagenet" and self.images.preprocessing.crop_size is None:
            raise InputError(
                "The augmentation imagenet needs the size to crop to.", "pass --crop, or --set training.augment=cifar."
            )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[PixelArray, int]:
        """Augment one image.

        Args:
            index: which one.

        Returns:
            uint8 pixels of shape (H, W, C), and the label.

        Raises:
            BadImage: the image can't be used.
        """
        pixels = self.moved(self.pixels(index)[np.newaxis], np.array([index]))[0]
        return pixels, int(self.images.labels[index])

    def at_epoch(self, epoch: int) -> TrainingData:
        """The same images as another epoch sees them."""
        return replace(self, epoch=epoch)

    def pixels(self, index: int) -> PixelArray:
        """One image as far as it is made alone: a random part of its picture, or all of it, still to be `moved`.

        Args:
            index: which one.

        Returns:
            uint8, shape (H, W, C).

        Raises:
            BadImage: the image can't be used.
        """
        if self.augment != "imagenet":
            return self.images.pixels(index)
        return random_part(self.images.raw(index), self.images.preprocessing, self.seed, self.epoch, index)

    def moved(self, pixels: PixelArray, indices: IndexArray) -> PixelArray:
        """The rest of the augmentation, which is cheap only for many images at once.

        Args:
            pixels: what `pixels` gave, stacked; uint8, shape (N, H, W, C).
            indices: which images these are, int64, shape (N,).

        Returns:
            uint8, shape (N, H, W, C).
        """
        if self.augment not in ("shift", "cifar"):
            return pixels
        return moved(pixels, moves(self.augment, self.seed, self.epoch, len(self.images))[indices])


def epoch_order(count: int, seed: int, epoch: int) -> IndexArray:
    """The order in which an epoch visits the images.

    Args:
        count: how many images there are.
        seed: of the run.
        epoch: counted from 0.

    Returns:
        A permutation of 0..count-1, int64.
    """
    return np.random.default_rng(seed_of("order", seed, epoch)).permutation(count)


def batch_sizes(count: int, batch_size: int) -> list[int]:
    """Images in each batch of an epoch.

    A last batch of one image is merged into the one before: batch norm can't train on one image.

    Args:
        count: images an epoch.
        batch_size: images a batch; with 1, nothing is merged.
    """
    return [end - begin for begin, end in pairwise(_boundaries(count, batch_size))]


def require_shares(count: int, batch_size: int, ranks: int) -> None:
    """Refuse, before training, batches with fewer images than there are processes to share them.

    Args:
        count: images an epoch.
        batch_size: images a batch, of all processes together.
        ranks: processes that train together.

    Raises:
        InputError: a batch can't give each of them an image.
    """
    sizes = batch_sizes(count, batch_size)
    fewest = min(sizes)
    if fewest >= ranks:
        return
    which = "The last batch of an epoch" if sizes[0] >= ranks else "A batch"
    raise InputError(
        f"{which} has {fewest} of the {count} images, too few for {ranks} processes that share each batch.",
        "pass another --batch-size, or fewer --devices.",
    )


def training_batches(
    data: TrainingData,
    order: IndexArray,
    batch_size: int,
    *,
    start_step: int = 0,
    workers: int = 0,
    rank: int = 0,
    ranks: int = 1,
    on_bad: OnBad = "error",
    bad: BadImages | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches of one epoch, from any step on; step s is the same whatever `start_step` and `workers` are.

    Processes that train together cut each of these batches into consecutive parts of nearly equal size, so that their
    parts in the order of the ranks are the batch of one process.

    Args:
        data: the images at this epoch.
        order: from `epoch_order`.
        batch_size: images a batch; a last batch of one is merged into the one before.
        start_step: the first step to yield, to resume within an epoch.
        workers: processes that load ahead; 0 loads in this one. They send uint8 pixels by pipe, not by shared memory.
        rank: which part of each batch to yield, counted from 0.
        ranks: into how many parts a batch is cut; `require_shares` says beforehand whether all can be had.
        on_bad: "error" stops at an image that can't be used; "skip" puts the next usable one of the order in its place.
        bad: what was skipped is added here; "skip" needs it, so that nothing is left out unseen.

    Yields:
        Images, float32 of shape (N, C, H, W), and labels, int64 of shape (N,).

    Raises:
        InputError: an image can't be used, none can, or images differ in size.
        CannotRunHere: a worker process died.
        ValueError: "skip" without `bad`.
    """
    if on_bad == "skip" and bad is None:
        raise ValueError("on_bad='skip' needs a BadImages to count what is skipped")
    steps = _Steps(data, order, _shares(len(order), batch_size, rank, ranks), on_bad)
    if data.augment in ("shift", "cifar"):
        moves(data.augment, data.seed, data.epoch, len(data.images))  # drawn once, before processes are forked
    wanted = range(start_step, len(steps))
    for loaded in from_workers(steps, wanted, workers) if workers else map(steps.__getitem__, wanted):
        if isinstance(loaded, FaqError):
            raise loaded
        if bad is not None:
            bad.reasons.update(loaded.bad)
        yield (
            torch.from_numpy(normalize(loaded.pixels, data.images.preprocessing)),
            torch.from_numpy(loaded.labels),
        )


@dataclass(frozen=True)
class _Loaded:
    # NumPy arrays travel between processes by pipe; tensors would need shared memory, which is scarce in containers
    pixels: PixelArray  # (N, H, W, C)
    labels: IndexArray
    bad: dict[str, str]


class _Steps(Dataset["_Loaded | FaqError"]):
    """One item a training step. Errors are returned: raised in a worker, they would come back as another type."""

    def __init__(self, data: TrainingData, order: IndexArray, shares: Sequence[range], on_bad: OnBad) -> None:
        self.data, self.order, self.shares, self.on_bad = data, order, shares, on_bad

    def __len__(self) -> int:
        return len(self.shares)

    def __getitem__(self, step: int) -> _Loaded | FaqError:
        bad: dict[str, str] = {}
        try:
            items = [self._usable(position, bad) for position in self.shares[step]]
            require_equal_sizes([(self.data.images.identity(index), pixels) for index, pixels in items])
        except FaqError as error:
            return error
        indices = np.array([index for index, _ in items], np.int64)
        pixels = self.data.moved(np.stack([pixels for _, pixels in items]), indices)
        return _Loaded(pixels, self.data.images.labels[indices], bad)

    def _usable(self, position: int, bad: dict[str, str]) -> tuple[int, PixelArray]:
        for ahead in range(len(self.order)):
            index = int(self.order[(position + ahead) % len(self.order)])
            try:
                return index, self.data.pixels(index)
            except BadImage as error:
                if self.on_bad == "error":
                    raise InputError(error.what, f"{error.remedy} Or pass --on-bad-image skip.") from error
                bad[self.data.images.identity(index)] = error.what
        raise InputError(f"{self.data.images.name} has no image that can be used.", "check the files.")


def _boundaries(count: int, batch_size: int) -> list[int]:
    bounds = [*range(0, count, batch_size), count]
    if len(bounds) > 2 and batch_size > 1 and bounds[-1] - bounds[-2] == 1:
        del bounds[-2]
    return bounds


def _shares(count: int, batch_size: int, rank: int, ranks: int) -> list[range]:
    bounds = _boundaries(count, batch_size)
    return [range(a + (b - a) * rank // ranks, a + (b - a) * (rank + 1) // ranks) for a, b in pairwise(bounds)]
