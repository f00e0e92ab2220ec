"""How often each integer code occurs in each tensor, counted while stages are compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from faq_deploy.fixed_point import FixedPoint
from faq_deploy.report_parts import BINS

__all__ = ["CodeHistograms", "CodeUse", "code_use"]

IntArray = npt.NDArray[np.int64]


class CodeUse(NamedTuple):
    """How a tensor fills its grid.

    Attributes:
        histogram: codes in each of `BINS` equal parts of the grid, from the lowest; one a code where there are fewer.
        zero: share of the codes that are 0.
        clipped: share on the highest code, or on the lowest of a signed grid.
    """

    histogram: list[int]
    zero: float
    clipped: float


@dataclass
class CodeHistograms:
    """Counts by tensor; they don't grow with the number of images.

    Attributes:
        grids: of the tensors, by name.
        counts: how often each code occurred, from the lowest to the highest.
    """

    grids: Mapping[str, FixedPoint]
    counts: dict[str, IntArray] = field(default_factory=dict)

    def add(self, codes: Mapping[str, IntArray]) -> None:
        """Count some more images' codes, by tensor."""
        for name, values in codes.items():
            grid = self.grids[name]
            found = _counted(values, grid)
            self.counts[name] = self.counts[name] + found if name in self.counts else found

    def use(self, name: str) -> CodeUse | None:
        """How a tensor fills its grid; None where none of its codes was seen."""
        return _use(self.counts[name], self.grids[name]) if name in self.counts else None


def code_use(codes: IntArray, grid: FixedPoint) -> CodeUse:
    """How codes fill their grid.

    Args:
        codes: of any shape.
        grid: that they lie on.
    """
    return _use(_counted(codes, grid), grid)


def _counted(codes: IntArray, grid: FixedPoint) -> IntArray:
    return np.bincount(codes.ravel() - grid.min_code, minlength=grid.max_code - grid.min_code + 1).astype(np.int64)


def _use(counts: IntArray, grid: FixedPoint) -> CodeUse:
    total = max(int(counts.sum()), 1)
    ends = int(counts[-1]) + (int(counts[0]) if grid.signed else 0)
    # a narrow grid leaves one code out: its first part is one code shorter
    codes = 1 << grid.bits
    whole = np.concatenate([np.zeros(codes - len(counts), np.int64), counts])
    parts = whole.reshape(min(BINS, codes), -1).sum(1)
    return CodeUse(parts.tolist(), int(counts[-grid.min_code]) / total, ends / total)
