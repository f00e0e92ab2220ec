"""A histogram small enough for a table's cell, as SVG in the page's ink."""

from __future__ import annotations

import math
from collections.abc import Sequence

__all__ = ["sparkline"]

_BAR, _HEIGHT = 5, 20  # pixels


def sparkline(counts: Sequence[int]) -> str:
    """Bars whose heights are square roots of the counts, so that rare codes are seen beside frequent ones.

    Args:
        counts: from the lowest codes to the highest; at least one is not 0.

    Returns:
        An `<svg>` element, with the shares in words for those who can't see it; empty where there is nothing to draw.
    """
    total = sum(counts)
    if not total:
        return ""
    largest = max(counts)
    bars = []
    for index, count in enumerate(counts):
        height = max(1, round(_HEIGHT * math.sqrt(count / largest))) if count else 0
        if height:
            bars.append(f"M{_BAR * index} {_HEIGHT}v-{height}h{_BAR - 1}v{height}z")
    width = _BAR * len(counts) - 1
    shares = ", ".join(f"{100 * count / total:.0f}" for count in counts)
    return (
        f'<svg class="spark" role="img" aria-label="percent of the codes, from the lowest to the highest: {shares}" '
        f'viewBox="0 0 {width} {_HEIGHT}" width="{width}" height="{_HEIGHT}"><path d="{"".join(bars)}"/></svg>'
    )
