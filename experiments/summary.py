"""Mean and spread over seeds, and what experiments differ by."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from experiments.record import Record

__all__ = ["Summary", "best", "calibrated", "difference", "last", "points", "summary"]


@dataclass(frozen=True)
class Summary:
    """Figures of several seeds.

    Attributes:
        mean: of all.
        std: sample standard deviation; None for a single one.
        low, high: smallest and largest.
        count: how many.
    """

    mean: float
    std: float | None
    low: float
    high: float
    count: int

    def __str__(self) -> str:
        return f"{self.mean:.2f}" if self.std is None else f"{self.mean:.2f} ± {self.std:.2f}"


def summary(values: Sequence[float]) -> Summary:
    """Of at least one figure."""
    std = statistics.stdev(values) if len(values) > 1 else None
    return Summary(statistics.fmean(values), std, min(values), max(values), len(values))


def last(records: Sequence[Record]) -> Summary:
    """Top-1 after the last epoch, in percent: no image of the test set had a say in it."""
    return summary([record.last_top1 for record in records])


def best(records: Sequence[Record]) -> Summary:
    """Top-1 of the epoch that is kept, in percent: the best one on these very images."""
    return summary([record.best_top1 for record in records])


def calibrated(records: Sequence[Record]) -> Summary | None:
    """Top-1 right after quantization, in percent; None for float nets."""
    values = [record.calibrated_top1 for record in records if record.calibrated_top1 is not None]
    return summary(values) if values else None


def difference(records: Sequence[Record], other: float) -> float:
    """Points that the mean after the last epoch is above `other`."""
    return last(records).mean - other


def points(value: float | None) -> str:
    """With its sign; empty for None."""
    if value is None:
        return ""
    return f"{value:+.2f}" if abs(value) >= 0.005 else "0.00"
