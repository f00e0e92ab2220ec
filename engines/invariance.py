"""Whether an image's answer depends on the batch that it comes in (U12): it must not, to the last bit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from engines.errors import InputError
from engines.runner import FloatArray, Runner

__all__ = ["BatchDependence", "batch_dependence", "batch_sentence"]


@dataclass(frozen=True)
class BatchDependence:
    """An image that gets other logits in another batch.

    Args:
        image: its index.
        size: of the batch that gave other logits than the image alone.
        position: of the image in that batch.
        values: how many of its logits differ.
        largest: the largest difference.
    """

    image: int
    size: int
    position: int
    values: int
    largest: float

    def __str__(self) -> str:
        return (
            f"image {self.image} gets other logits in a batch of {self.size} (at position {self.position}) than alone: "
            f"{self.values} differ, by up to {self.largest:g}"
        )


def batch_dependence(runner: Runner, images: FloatArray, sizes: Sequence[int]) -> BatchDependence | None:
    """Run images alone, then in batches of several sizes and at other positions, and compare the logits' bits.

    Args:
        runner: a loaded engine.
        images: float32, shape (N, C, H, W), N of at least 1; repeated where a batch needs more.
        sizes: of the batches, such as the best and the largest of the engine's profile.

    Returns:
        The first image whose logits depend on its batch; None where none does.

    Raises:
        InputError: no images.
    """
    if not len(images):
        raise InputError("there is no image to run.", "give at least one.")
    alone = np.concatenate([runner(images[i : i + 1]) for i in range(len(images))])
    for size in dict.fromkeys(sizes):
        for order in _orders(len(images), size):
            answers = runner(np.ascontiguousarray(images[order]))
            differing = answers.view(np.uint32) != alone[order].view(np.uint32)
            if differing.any():
                position = int(differing.reshape(size, -1).any(1).argmax())
                return BatchDependence(
                    image=int(order[position]),
                    size=size,
                    position=position,
                    values=int(differing[position].sum()),
                    largest=float(np.abs(answers[position] - alone[order[position]]).max()),
                )
    return None


def batch_sentence(runner: Runner, images: FloatArray, sizes: Sequence[int]) -> str:
    """What `batch_dependence` finds, as a sentence; empty where it finds nothing. Arguments are as there."""
    found = batch_dependence(runner, images, sizes)
    return "" if found is None else f"{found}."


def _orders(count: int, size: int) -> Iterator[np.ndarray[tuple[int], np.dtype[np.intp]]]:
    """Which image stands where: in order, and backwards, so that each comes at two positions."""
    order = np.arange(size) % count
    yield order
    if size > 1:
        yield order[::-1].copy()
