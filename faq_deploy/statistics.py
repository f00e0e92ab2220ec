"""What so many images can show: intervals, the exact test on flips, and the smallest drop that could have been seen."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = [
    "CONFIDENCE",
    "Interval",
    "Pairs",
    "drop_interval",
    "independent_drop",
    "mcnemar",
    "pairs_of",
    "smallest_visible_drop",
    "wilson",
]

CONFIDENCE: Final = 0.95

IntArray = npt.NDArray[np.int64]


class Interval(NamedTuple):
    """A range of percent, or of points, that holds the true value with some confidence."""

    low: float
    high: float


@dataclass(frozen=True)
class Pairs:
    """Two stages' answers to the same images.

    Attributes:
        images: how many.
        lost: right in the first stage, wrong in the second.
        gained: the reverse.
        flips: answered with another class, right or wrong.
    """

    images: int
    lost: int
    gained: int
    flips: int

    @property
    def drop(self) -> float:
        """Points of top-1 that the second stage loses."""
        return 100 * (self.lost - self.gained) / self.images


def pairs_of(labels: IntArray, before: IntArray, after: IntArray) -> Pairs:
    """Compare two stages image by image.

    Args:
        labels: the true classes, shape (N,).
        before: the first stage's answers, shape (N,).
        after: the second stage's, shape (N,).
    """
    first, second = before == labels, after == labels
    return Pairs(
        images=len(labels),
        lost=int(np.count_nonzero(first & ~second)),
        gained=int(np.count_nonzero(second & ~first)),
        flips=int(np.count_nonzero(before != after)),
    )


def wilson(right: int, images: int, confidence: float = CONFIDENCE) -> Interval:
    """Wilson's interval of an accuracy, in percent.

    Args:
        right: images that were answered rightly.
        images: of how many, at least one.
        confidence: such as 0.95.
    """
    from scipy.stats import binomtest

    found = binomtest(right, images).proportion_ci(confidence, method="wilson")
    return Interval(100 * max(found.low, 0.0), 100 * min(found.high, 1.0))


def mcnemar(pairs: Pairs) -> float:
    """The exact McNemar test: how likely so uneven a split of lost and gained is by chance alone, both sides counted.

    Args:
        pairs: of two stages.

    Returns:
        The p-value; 1 where no image was lost or gained.
    """
    from scipy.stats import binomtest

    discordant = pairs.lost + pairs.gained
    return float(binomtest(pairs.lost, discordant).pvalue) if discordant else 1.0


def drop_interval(pairs: Pairs, confidence: float = CONFIDENCE) -> Interval:
    """The interval of the drop between two stages, in points.

    Args:
        pairs: of two stages.
        confidence: such as 0.95.

    Source: D. G. Bonett and R. M. Price, Adjusted Wald confidence interval for a difference of binomial proportions
        based on paired data, J. Educational and Behavioral Statistics 37 (2012): one image is added to the lost and one
        to the gained, so that it has a width where none was seen.
    """
    from scipy.stats import norm

    images = pairs.images + 2
    lost, gained = (pairs.lost + 1) / images, (pairs.gained + 1) / images
    middle = lost - gained
    half = float(norm.ppf(0.5 + confidence / 2)) * math.sqrt((lost + gained - middle**2) / images)
    return Interval(100 * max(middle - half, -1.0), 100 * min(middle + half, 1.0))


def smallest_visible_drop(images: int, gained: int = 0, confidence: float = CONFIDENCE) -> float | None:
    """The smallest drop that these images could have shown: a smaller one would have looked like chance.

    It is the smallest net loss whose exact McNemar test has a p-value below 1 - confidence.

    Args:
        images: how many were run.
        gained: of them, wrong before and right after; each hides a loss.
        confidence: such as 0.95.

    Returns:
        Points of top-1; None where not even the loss of all other images could be told from chance.
    """
    from scipy.stats import binomtest

    for lost in range(gained + 1, images - gained + 1):
        if binomtest(lost, lost + gained).pvalue < 1 - confidence:
            return 100 * (lost - gained) / images
    return None


def independent_drop(before: float, after: float, around_before: Interval, around_after: Interval) -> Interval:
    """The interval of the drop between two accuracies that were measured on different images, in points.

    Args:
        before: the first accuracy, in percent.
        after: the second.
        around_before: Wilson's interval of the first.
        around_after: of the second.

    Source: R. G. Newcombe, Interval estimation for the difference between independent proportions, Statistics in
        Medicine 17 (1998), method 10.
    """
    drop = before - after
    low = drop - math.hypot(before - around_before.low, around_after.high - after)
    high = drop + math.hypot(around_before.high - before, after - around_after.low)
    return Interval(max(low, -100.0), min(high, 100.0))
