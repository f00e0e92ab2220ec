"""Training batches: augmented, the same for any number of workers, and resumable at any step."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import InterpolationMode, v2

from engines.errors import CannotRunHere, FaqError, InputError
from engines.image_batches import BadImages, OnBad, require_equal_sizes
from engines.images import ImageSet, IndexArray
from engines.preprocess import BadImage, PixelArray, normalize
from faq_deploy.data import Augment

__all__ = ["TrainingData", "epoch_order", "steps_per_epoch", "training_batches"]

_CIFAR_PADDING: Final = 4  # pixels; paper 4.9 pads so before the random crop
_SHIFT: Final = 1  # pixels


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
        return self._pixels(index), int(self.images.labels[index])

    def at_epoch(self, epoch: int) -> TrainingData:
        """The same images as another epoch sees them."""
        return replace(self, epoch=epoch)

    def _pixels(self, index: int) -> PixelArray:
        if self.augment == "none":
            return self.images.pixels(index)
        with torch.random.fork_rng(devices=[]):
            # the CPU generator only: torch.manual_seed would also reset CUDA's, which fork_rng does not restore here
            torch.default_generator.manual_seed(_seed("augment", self.seed, self.epoch, index))
            if self.augment == "imagenet":
                spec = self.images.preprocessing
                height, width = spec.crop_size or (0, 0)
                picture = _random_part(height, width, spec.interpolation)(self.images.raw(index))
                return np.array(picture, np.uint8).reshape(height, width, spec.channels)
            pixels = self.images.pixels(index)
            transform = _random_shift(pixels.shape[0], pixels.shape[1], self.augment)
            shifted = transform(torch.from_numpy(pixels).permute(2, 0, 1))
            return np.ascontiguousarray(shifted.permute(1, 2, 0).numpy())


def epoch_order(count: int, seed: int, epoch: int) -> IndexArray:
    """The order in which an epoch visits the images.

    Args:
        count: how many images there are.
        seed: of the run.
        epoch: counted from 0.

    Returns:
        A permutation of 0..count-1, int64.
    """
    return np.random.default_rng(_seed("order", seed, epoch)).permutation(count)


def steps_per_epoch(count: int, batch_size: int) -> int:
    """Batches an epoch. A last batch of one image is merged into the one before: batch norm can't train on one image.

    Args:
        count: images an epoch.
        batch_size: images a batch; with 1, nothing is merged.
    """
    return len(_boundaries(count, batch_size)) - 1


def training_batches(
    data: TrainingData,
    order: IndexArray,
    batch_size: int,
    *,
    start_step: int = 0,
    workers: int = 0,
    on_bad: OnBad = "error",
    bad: BadImages | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches of one epoch, from any step on; step s is the same whatever `start_step` and `workers` are.

    Args:
        data: the images at this epoch.
        order: from `epoch_order`.
        batch_size: images a batch; a last batch of one is merged into the one before.
        start_step: the first step to yield, to resume within an epoch.
        workers: processes that load ahead; 0 loads in this one. They send uint8 pixels by pipe, not by shared memory.
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
    steps = _Steps(data, order, _boundaries(len(order), batch_size), on_bad)
    wanted = range(start_step, len(steps))
    for loaded in _from_workers(steps, wanted, workers) if workers else map(steps.__getitem__, wanted):
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

    def __init__(self, data: TrainingData, order: IndexArray, boundaries: Sequence[int], on_bad: OnBad) -> None:
        self.data, self.order, self.boundaries, self.on_bad = data, order, boundaries, on_bad

    def __len__(self) -> int:
        return len(self.boundaries) - 1

    def __getitem__(self, step: int) -> _Loaded | FaqError:
        bad: dict[str, str] = {}
        try:
            items = [self._usable(i, bad) for i in range(self.boundaries[step], self.boundaries[step + 1])]
            require_equal_sizes([(self.data.images.identity(index), pixels) for index, pixels in items])
        except FaqError as error:
            return error
        labels = self.data.images.labels[[index for index, _ in items]]
        return _Loaded(np.stack([pixels for _, pixels in items]), labels, bad)

    def _usable(self, position: int, bad: dict[str, str]) -> tuple[int, PixelArray]:
        for ahead in range(len(self.order)):
            index = int(self.order[(position + ahead) % len(self.order)])
            try:
                return index, self.data[index][0]
            except BadImage as error:
                if self.on_bad == "error":
                    raise InputError(error.what, f"{error.remedy} Or pass --on-bad-image skip.") from error
                bad[self.data.images.identity(index)] = error.what
        raise InputError(f"{self.data.images.name} has no image that can be used.", "check the files.")


def _from_workers(steps: _Steps, wanted: range, workers: int) -> Iterator[_Loaded | FaqError]:
    loader = DataLoader(
        steps,
        batch_size=None,
        sampler=wanted,
        num_workers=workers,
        worker_init_fn=_ignore_interrupts,
        generator=torch.Generator(),  # else the loader draws from the global generator, and workers change the run
    )
    try:
        with _child_signal_kept():
            loading = iter(loader)
        yield from loading
    except RuntimeError as error:
        if not str(error).startswith(
            "DataLoader worker"
        ):  # an error inside a live worker is "Caught ... in DataLoader"
            raise
        raise CannotRunHere(
            "A data loading process died, most often for want of memory.", "pass fewer --workers, or --workers 0."
        ) from error


@contextlib.contextmanager
def _child_signal_kept() -> Iterator[None]:
    """Undo the loader's SIGCHLD handler: it raises anywhere in the program, while the loader itself notices too."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, before)


def _ignore_interrupts(worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the trainer decides what it means


def _boundaries(count: int, batch_size: int) -> list[int]:
    bounds = [*range(0, count, batch_size), count]
    if len(bounds) > 2 and batch_size > 1 and bounds[-1] - bounds[-2] == 1:
        del bounds[-2]
    return bounds


@functools.lru_cache(maxsize=64)
def _random_shift(height: int, width: int, augment: Augment) -> Callable[[Tensor], Tensor]:
    if augment == "shift":
        shift: Callable[[Tensor], Tensor] = v2.RandomCrop((height, width), padding=_SHIFT)
        return shift
    both: Callable[[Tensor], Tensor] = v2.Compose(
        [v2.RandomCrop((height, width), padding=_CIFAR_PADDING), v2.RandomHorizontalFlip()]
    )
    return both


@functools.lru_cache(maxsize=4)
def _random_part(height: int, width: int, interpolation: str) -> Callable[[Image.Image], Image.Image]:
    part: Callable[[Image.Image], Image.Image] = v2.Compose(
        [
            v2.RandomResizedCrop((height, width), interpolation=InterpolationMode(interpolation), antialias=True),
            v2.RandomHorizontalFlip(),
        ]
    )
    return part


def _seed(purpose: str, *numbers: int) -> int:
    text = "/".join([purpose, *map(str, numbers)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
