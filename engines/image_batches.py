"""Batches of an image set: decoded by threads ahead of their use, normalized, ready for a runner."""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from engines.errors import InputError
from engines.images import ImageSet, IndexArray
from engines.preprocess import BadImage, PixelArray, normalize

__all__ = ["BadImages", "Batch", "OnBad", "batches", "require_equal_sizes"]

OnBad = Literal["error", "skip"]

_MOST_WORKERS: Final = 8
_Decoded = Generator[PixelArray | BadImage, None, None]


class Batch(NamedTuple):
    """Consecutive images of a set.

    Attributes:
        images: float32, shape (N, C, H, W), C-contiguous.
        labels: int64, shape (N,).
        indices: int64, shape (N,): which images of the set these are; bad ones are left out.
    """

    images: npt.NDArray[np.float32]
    labels: IndexArray
    indices: IndexArray


@dataclass
class BadImages:
    """Collects the images that were skipped.

    Attributes:
        reasons: what is wrong, by the image's identity.
    """

    reasons: dict[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.reasons)

    def warnings(self) -> list[str]:
        """A sentence with the count and some names, or none."""
        if not self.reasons:
            return []
        names = list(self.reasons)
        were = "image was" if len(names) == 1 else "images were"
        return [f"{len(names)} bad {were} skipped: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}."]


def batches(
    image_set: ImageSet,
    indices: Sequence[int] | IndexArray | None = None,
    batch_size: int = 256,
    *,
    on_bad: OnBad = "error",
    bad: BadImages | None = None,
    workers: int | None = None,
) -> Iterator[Batch]:
    """Batches in the order of `indices`, decoded by threads ahead of their use.

    Args:
        image_set: the images.
        indices: which ones; None takes all.
        batch_size: images a batch; the last one may have fewer, and so has one with bad images that are skipped.
        on_bad: "error" stops at an image that can't be used; "skip" leaves it out.
        bad: what was skipped is added here; "skip" needs it, so that nothing is left out unseen.
        workers: threads that decode; 0 decodes in this thread; None takes one for each core, up to 8.

    Yields:
        `Batch`es of at least one image, the same whatever `workers` is.

    Raises:
        InputError: an image can't be used, or images differ in size after preprocessing.
        ValueError: "skip" without `bad`.
    """
    if on_bad == "skip" and bad is None:
        raise ValueError("on_bad='skip' needs a BadImages to count what is skipped")
    wanted = range(len(image_set)) if indices is None else [int(index) for index in indices]
    threads = min(_MOST_WORKERS, len(os.sched_getaffinity(0))) if workers is None else workers
    first: list[tuple[str, PixelArray]] = []
    with contextlib.closing(_decoded(image_set, wanted, threads, ahead=2 * batch_size)) as decoded:
        for start in range(0, len(wanted), batch_size):
            results = [(index, next(decoded)) for index in wanted[start : start + batch_size]]
            failed = {image_set.identity(i): result for i, result in results if isinstance(result, BadImage)}
            if failed and (bad is None or on_bad == "error"):
                raise _bad_images(list(failed.values()), len(results))
            if bad is not None:
                bad.reasons.update({name: error.what for name, error in failed.items()})
            kept = [(index, result) for index, result in results if not isinstance(result, BadImage)]
            if not kept:
                continue
            named = [(image_set.identity(index), pixels) for index, pixels in kept]
            first = first or named[:1]
            require_equal_sizes(first + named)
            chosen = np.array([index for index, _ in kept], np.int64)
            images = normalize(np.stack([pixels for _, pixels in kept]), image_set.preprocessing)
            yield Batch(images, image_set.labels[chosen], chosen)


def require_equal_sizes(named: Sequence[tuple[str, PixelArray]]) -> None:
    """Refuse images that can't share a batch.

    Args:
        named: identities and preprocessed pixels, shape (H, W, C).

    Raises:
        InputError: two images differ in size.
    """
    (name, pixels), *others = named
    for other_name, other in others:
        if other.shape != pixels.shape:
            raise InputError(
                f"After preprocessing {name} is {pixels.shape[1]}x{pixels.shape[0]} pixels, "
                f"but {other_name} is {other.shape[1]}x{other.shape[0]}.",
                "pass --crop (and --resize) to give all images one size.",
            )


def _decoded(image_set: ImageSet, indices: Sequence[int], workers: int, ahead: int) -> _Decoded:
    def decode(index: int) -> PixelArray | BadImage:
        try:
            return image_set.pixels(index)
        except BadImage as error:
            return error

    if workers == 0:
        yield from map(decode, indices)
        return
    pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
    waiting: deque[Future[PixelArray | BadImage]] = deque()
    try:
        for index in indices:
            waiting.append(pool.submit(decode, index))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _bad_images(errors: Sequence[BadImage], among: int) -> InputError:
    count = f" {len(errors)} of the {among} images in its batch are bad." if len(errors) > 1 else ""
    return InputError(f"{errors[0].what}{count}", f"{errors[0].remedy} Or pass --on-bad-image skip.")
