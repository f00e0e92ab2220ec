"""The table of classes in report.html: those that lost most where there are many, and only stages that differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from faq_deploy.report_model import Report
from faq_deploy.report_parts import ClassRow

__all__ = ["MOST_CLASSES", "ClassTable", "class_table"]

MOST_CLASSES: Final = 60

_FLOAT, _QUANTIZED = "PyTorch float", "PyTorch quantized"


@dataclass(frozen=True)
class ClassTable:
    """What is shown.

    Attributes:
        stages: with a column of top-1.
        rows: class, images, top-1 in each of `stages` in percent (None without images), points lost from float to
            quantized.
        equal: stages that answer as many images of every class rightly as PyTorch quantized.
        left_out: classes that are not shown.
    """

    stages: Sequence[str]
    rows: Sequence[tuple[str, int, Sequence[float | None], float | None]]
    equal: int
    left_out: int


def class_table(report: Report) -> ClassTable | None:
    """The table of a report; None where it has no classes."""
    if not report.classes:
        return None
    names = [stage.name for stage in report.stages if stage.name in report.classes[0].right]
    differing = [name for name in names if any(row.right[name] != row.right.get(_QUANTIZED) for row in report.classes)]
    stages = [name for name in names if name in (_FLOAT, _QUANTIZED) or name in differing]
    found = [(row, _drop(row)) for row in report.classes]
    kept = found
    if len(found) > MOST_CLASSES:
        most = sorted(found, key=lambda pair: (-abs(pair[1] or 0.0), pair[0].images))[:MOST_CLASSES]
        chosen = {row.name for row, _ in most}
        kept = [pair for pair in found if pair[0].name in chosen]
    rows = [(row.name, row.images, [_percent(row, name) for name in stages], drop) for row, drop in kept]
    return ClassTable(stages, rows, len(names) - len(stages), len(found) - len(kept))


def _percent(row: ClassRow, stage: str) -> float | None:
    return 100 * row.right[stage] / row.images if row.images else None


def _drop(row: ClassRow) -> float | None:
    if not row.images or _FLOAT not in row.right or _QUANTIZED not in row.right:
        return None
    return 100 * (row.right[_FLOAT] - row.right[_QUANTIZED]) / row.images
