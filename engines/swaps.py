"""Is it the preprocessing? Likely mistakes, undone one at a time on a few images, to see which one restores top-1."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from engines.images import ImageSet, IndexArray
from engines.parity import top1
from engines.preprocess import BadImage, PixelArray, Preprocessing, normalize, to_pixels
from engines.runner import Runner

__all__ = ["IMAGES", "Swap", "Trial", "is_gain", "restoring_swap", "spread", "swaps"]

IMAGES: Final = 256  # that a mistake is tried on
_QUARTER: Final = 4  # of them first: there it has to gain anything at all, and most gain nothing
_WORTH: Final = 64  # images, below which a quarter says too little
_AT_ONCE: Final = 32
_CHANCE: Final = 1e-4  # of a gain by luck alone, below which it is none
_POINTS: Final = 5.0
_KNOWN: Final[tuple[tuple[str, tuple[float, ...], tuple[float, ...]], ...]] = (
    ("ImageNet's mean and std", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ("mean 0.5 and std 0.5", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    ("mean 127/255 and std 128/255", (127 / 255,) * 3, (128 / 255,) * 3),
    ("no mean and std", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
)


@dataclass(frozen=True)
class Swap:
    """One mistake, undone.

    Attributes:
        says: the fault, after "likely cause: ".
        remedy: what to do.
        spec: the preprocessing that undoes it.
        change: of the pixels, uint8 (N, H, W, C), before normalization.
        decodes: whether the picture itself has to be prepared again, from its file.
    """

    says: str
    remedy: str
    spec: Preprocessing
    change: Callable[[PixelArray], PixelArray] = lambda pixels: pixels
    decodes: bool = False


@dataclass(frozen=True)
class Trial:
    """What a swap gives.

    Attributes:
        swap: the swap.
        images: on how many images.
        before, after: top-1 in percent without and with it.
    """

    swap: Swap
    images: int
    before: float
    after: float


def swaps(spec: Preprocessing) -> Iterator[Swap]:
    """The likely mistakes of a preprocessing, cheap ones first."""
    again = "quantize with the values that the network was trained with (--mean, --std), or give such images."
    if spec.channels == 3:
        yield Swap(
            "the images are BGR where the net wants RGB",
            "OpenCV reads BGR: convert the images, or the input of the engine, to RGB.",
            spec,
            lambda pixels: pixels[..., ::-1],
        )
    yield Swap(
        "the pixels are inverted (dark for light)",
        "invert the images.",
        spec,
        lambda pixels: (255 - pixels).astype(np.uint8),
    )
    usable = all(value > 0 for value in spec.mean) and spec.mean != spec.std
    if usable:
        yield Swap("mean and std are swapped", again, spec.model_copy(update={"mean": spec.std, "std": spec.mean}))
    if spec.channels == 3 and len({*spec.mean, *spec.std}) > 2:
        mirrored = {"mean": spec.mean[::-1], "std": spec.std[::-1]}
        yield Swap("mean and std are in the order of BGR", again, spec.model_copy(update=mirrored))
    other = 1.0 if spec.scale != 1.0 else 255.0
    yield Swap(
        f"pixels are divided by {spec.scale:g} where the net wants {other:g}",
        again,
        spec.model_copy(update={"scale": other}),
    )
    for name, mean, std in _KNOWN:
        known = {"mean": mean[: spec.channels], "std": std[: spec.channels]}
        if (spec.mean, spec.std) != (known["mean"], known["std"]):
            yield Swap(f"the net wants {name}", again, spec.model_copy(update=known))
    yield from _sizes(spec)


def _sizes(spec: Preprocessing) -> Iterator[Swap]:
    """Other ways to come to the same size; each prepares the pictures anew."""
    size = spec.crop_size
    if size is None:
        return
    remedy = "quantize with --resize and --interpolation as the network was trained, or give such images."
    shorter = min(size)
    for resize in (shorter, round(shorter * 256 / 224), None):
        if resize != spec.resize:
            says = "no resize before the crop" if resize is None else f"a resize to {resize}"
            yield Swap(f"the net wants {says}", remedy, spec.model_copy(update={"resize": resize}), decodes=True)
    if spec.resize is not None:
        other = "bicubic" if spec.interpolation == "bilinear" else "bilinear"
        yield Swap(
            f"the net wants {other} interpolation",
            remedy,
            spec.model_copy(update={"interpolation": other}),
            decodes=True,
        )


def spread(count: int, most: int = IMAGES) -> IndexArray:
    """Indices of `most` images, from all over a set that may be sorted by class."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.int64))


def restoring_swap(images: ImageSet, runner: Runner, *, goal: float | None = None, most: int = IMAGES) -> Trial | None:
    """Try all likely mistakes and find the one that restores top-1.

    Args:
        images: labelled.
        runner: of the net.
        goal: top-1 in percent that is good enough to stop looking.
        most: images to try on.

    Returns:
        The best of the swaps that gain more than luck can; None where none does.
    """
    pictures, chosen = _pixels(images, spread(len(images), most))
    if not len(chosen):
        return None
    labels, spec = images.labels[chosen], images.preprocessing
    plain = _right(runner, pictures, spec, labels)
    few = slice(None, None, _QUARTER if len(chosen) >= _WORTH else 1)
    best: Trial | None = None
    for swap in swaps(spec):
        right = _tried(images, chosen[few], swap, runner, pictures[few], labels[few])
        if right is None or right.sum() <= plain[few].sum() + 1:
            continue
        right = _tried(images, chosen, swap, runner, pictures, labels)
        if right is None or not is_gain(plain, right):
            continue
        trial = Trial(swap, len(chosen), 100 * float(plain.mean()), 100 * float(right.mean()))
        if best is None or trial.after > best.after:
            best = trial
        if goal is not None and best.after >= goal:
            break
    return best


def is_gain(before: npt.NDArray[np.bool_], after: npt.NDArray[np.bool_]) -> bool:
    """Whether more images are right than luck explains: five points, and an exact sign test on those that changed."""
    won, lost = int((after & ~before).sum()), int((before & ~after).sum())
    changed = won + lost
    if 100 * (won - lost) < _POINTS * len(before):
        return False
    tail = sum(math.comb(changed, k) for k in range(won, changed + 1))
    return bool(tail < _CHANCE * 2**changed)


def _tried(
    images: ImageSet, chosen: IndexArray, swap: Swap, runner: Runner, pictures: PixelArray, labels: IndexArray
) -> npt.NDArray[np.bool_] | None:
    """Which images are right with a swap; None where it can't be tried."""
    if not swap.decodes:
        return _right(runner, swap.change(pictures), swap.spec, labels)
    try:
        again = [to_pixels(images.raw(int(index)), swap.spec) for index in chosen]
    except BadImage:
        return None
    if {pixels.shape for pixels in again} != {pictures.shape[1:]}:
        return None
    return _right(runner, np.stack(again), swap.spec, labels)


def _right(runner: Runner, pixels: PixelArray, spec: Preprocessing, labels: IndexArray) -> npt.NDArray[np.bool_]:
    pieces = [
        top1(runner(normalize(pixels[start : start + _AT_ONCE], spec))) for start in range(0, len(pixels), _AT_ONCE)
    ]
    right: npt.NDArray[np.bool_] = np.concatenate(pieces) == labels
    return right


def _pixels(images: ImageSet, indices: Sequence[int] | IndexArray) -> tuple[PixelArray, IndexArray]:
    """Pixels of the images that can be read, and which they are."""
    found, kept = [], []
    for index in indices:
        try:
            found.append(images.pixels(int(index)))
        except BadImage:
            continue
        kept.append(int(index))
    return np.stack(found) if found else np.zeros((0, 0, 0, 0), np.uint8), np.array(kept, np.int64)
