"""Do two runtimes agree? Codes to the last integer, logits to the last bit, predictions by one rule for ties."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from engines.errors import InputError
from engines.runner import FloatArray

__all__ = [
    "Divergence",
    "LogitParity",
    "Parity",
    "accuracy",
    "agreement",
    "compare_codes",
    "compare_logits",
    "logit_bits",
    "logits_of_bits",
    "tied_images",
    "top1",
    "topk",
]

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Divergence:
    """Where two runtimes differ in one tensor.

    Args:
        tensor: its name.
        count: codes that differ.
        largest: largest difference, in codes.
        channel: index on axis 1 of the first of the largest differences; None for a tensor without channels.
    """

    tensor: str
    count: int
    largest: int
    channel: int | None


@dataclass(frozen=True)
class Parity:
    """All codes of two runtimes compared.

    Args:
        compared: number of codes.
        differing: number of codes that differ, over all tensors.
        first: the first tensor in graph order that differs: where to look for the cause; None if none does.
    """

    compared: int
    differing: int
    first: Divergence | None

    @property
    def equal(self) -> bool:
        """Whether every code is the same."""
        return self.differing == 0


@dataclass(frozen=True)
class LogitParity:
    """The logits of two runtimes compared.

    Args:
        images: number of images.
        differing: logits whose values differ (0.0 and -0.0 are one value).
        largest_difference: of two logits.
        flips: images whose top-1 class differs; of outputs that are not (images, classes), images that differ at all.
    """

    images: int
    differing: int
    largest_difference: float
    flips: int

    @property
    def equal(self) -> bool:
        """Whether every logit is bitwise the same, up to the sign of zero."""
        return self.differing == 0


def compare_codes(a: Mapping[str, IntArray], b: Mapping[str, IntArray], order: Sequence[str]) -> Parity:
    """Compare the codes of two runtimes, tensor by tensor.

    Args:
        a: codes by tensor name, as a CodeRunner returns them.
        b: the other runtime's.
        order: the names to compare, in graph order (`code_names`); `logits` is left to `compare_logits`.

    Returns:
        How many codes were compared and how many differ, and the first tensor that does.

    Raises:
        InputError: a tensor is missing on one side, or the shapes differ.
    """
    compared = differing = 0
    first: Divergence | None = None
    for name in order:
        if name == "logits":
            continue
        left, right = _pair(a, b, name)
        compared += left.size
        if np.array_equal(left, right):
            continue
        difference = np.abs(left - right)
        count = int(np.count_nonzero(difference))
        differing += count
        if first is None:
            place = np.unravel_index(int(difference.argmax()), difference.shape)
            channel = int(place[1]) if difference.ndim > 1 else None
            first = Divergence(name, count, int(difference.max()), channel)
    return Parity(compared, differing, first)


def compare_logits(a: FloatArray, b: FloatArray) -> LogitParity:
    """Compare two runtimes' logits, or another output of theirs.

    Args:
        a: float32, shape (N, classes), or (N, ...).
        b: the other runtime's.

    Returns:
        How many logits differ, by how much at most, and how many predictions flip.

    Raises:
        InputError: the shapes differ, or a logit is NaN.
    """
    if a.shape != b.shape:
        raise InputError(f"logits of shape {a.shape} and {b.shape} cannot be compared.", "run both on the same images.")
    _refuse_nan(a)
    _refuse_nan(b)
    unequal = a != b  # equal infinities have no difference to compute
    flipped = top1(a) != top1(b) if a.ndim == 2 else unequal.any(axis=tuple(range(1, a.ndim)))
    flips = int(np.count_nonzero(flipped))
    distance = np.abs(a[unequal].astype(np.float64) - b[unequal].astype(np.float64))
    return LogitParity(len(a), int(np.count_nonzero(unequal)), float(distance.max(initial=0.0)), flips)


def logits_of_bits(bits: IntArray) -> FloatArray:
    """The float32 logits whose bits `logit_bits` gave."""
    return bits.astype(np.int32).view(np.float32)


def logit_bits(logits: FloatArray) -> IntArray:
    """The bits of float32 logits as int64, so that they travel with codes; -0.0 becomes 0.0 first."""
    return (logits + np.float32(0)).view(np.int32).astype(np.int64)


def top1(logits: FloatArray) -> IntArray:
    """The class of each image: the largest logit, the lowest index among equals.

    Args:
        logits: float32, shape (N, classes).

    Returns:
        int64, shape (N,).

    Raises:
        InputError: a logit is NaN, which must not win (nor lose) in silence.
    """
    _require_rows(logits)
    return np.asarray(np.argmax(logits, axis=1), np.int64)


def topk(logits: FloatArray, k: int) -> IntArray | None:
    """The k best classes of each image, best first, shape (N, k); ties go to the lowest index.

    Args:
        logits: float32, shape (N, classes).
        k: how many.

    Returns:
        None where there are k classes or fewer: every answer would be right.

    Raises:
        InputError: a logit is NaN.
    """
    _require_rows(logits)
    if logits.shape[1] <= k:
        return None
    return np.argsort(-logits, axis=1, kind="stable")[:, :k].astype(np.int64)


def accuracy(logits: FloatArray, labels: IntArray, k: int = 1) -> float | None:
    """Percent of images whose label is among the k best classes.

    Args:
        logits: float32, shape (N, classes).
        labels: class indices, shape (N,).
        k: 1 or 5, say.

    Returns:
        None where the number says nothing: no images, or no more classes than k.

    Raises:
        InputError: a logit is NaN, or the labels are not one per image.
    """
    if labels.shape != (len(logits),):
        raise InputError(f"{labels.shape} labels for {len(logits)} images.", "pass one class index per image.")
    best = topk(logits, k)
    if best is None or len(logits) == 0:
        return None
    return 100.0 * float((best == labels[:, None]).any(axis=1).mean())


def agreement(a: FloatArray, b: FloatArray) -> float | None:
    """Percent of images for which two runtimes name the same class.

    Args:
        a: float32 logits, shape (N, classes).
        b: the other runtime's.

    Returns:
        None without images.

    Raises:
        InputError: the shapes differ, or a logit is NaN.
    """
    parity = compare_logits(a, b)
    return 100.0 * (parity.images - parity.flips) / parity.images if parity.images else None


def tied_images(logits: FloatArray) -> int:
    """Number of images whose largest logit occurs more than once (the lowest index wins).

    Args:
        logits: float32, shape (N, classes).

    Returns:
        A count of images.

    Raises:
        InputError: a logit is NaN.
    """
    _require_rows(logits)
    best = logits.max(axis=1, keepdims=True, initial=-np.inf)
    return int(np.count_nonzero((logits == best).sum(axis=1) > 1))


def _pair(a: Mapping[str, IntArray], b: Mapping[str, IntArray], name: str) -> tuple[IntArray, IntArray]:
    if name not in a or name not in b:
        raise InputError(f"{name} is missing in one of the two runs.", "compare two runs of the same ONNX file.")
    left, right = a[name], b[name]
    if left.shape != right.shape:
        raise InputError(f"{name} has shape {left.shape} in one run and {right.shape} in the other.", "use one batch.")
    return left, right


def _require_rows(logits: FloatArray) -> None:
    if logits.ndim != 2:
        raise InputError(f"logits have shape {logits.shape}, not (images, classes).", "pass one row per image.")
    _refuse_nan(logits)


def _refuse_nan(logits: FloatArray) -> None:
    if (bad := np.isnan(logits).any(axis=tuple(range(1, logits.ndim)))).any():
        raise InputError(
            f"image {int(bad.argmax())} has NaN among its logits: no class can win.",
            "look for NaN or infinity in the weights and in the image.",
        )
