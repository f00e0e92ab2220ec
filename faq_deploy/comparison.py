"""Two networks' answers to the same images, image by image, and whether the networks may be compared at all."""

from __future__ import annotations

from pathlib import Path

from faq_deploy.report_parts import Comparison
from faq_deploy.statistics import Pairs, drop_interval, mcnemar, smallest_visible_drop

__all__ = ["comparison_of", "model_name"]


def comparison_of(before: str, after: str, pairs: Pairs, *, certain: bool = False) -> Comparison:
    """Two sets of answers to the same images, and what they show.

    Args:
        before: name of the first.
        after: name of the second.
        pairs: the two image by image.
        certain: they are of one network, so that no other images could show a difference.
    """
    low, high = (pairs.drop, pairs.drop) if certain else drop_interval(pairs)
    return Comparison(
        before=before,
        after=after,
        images=pairs.images,
        lost=pairs.lost,
        gained=pairs.gained,
        flips=pairs.flips,
        drop=pairs.drop,
        low=low,
        high=high,
        p_value=min(1.0, mcnemar(pairs)),
        visible_drop=smallest_visible_drop(pairs.images, pairs.gained),
        certain=certain,
    )


def model_name(model: str) -> str:
    """A model's name that is the same on every machine: of a path in front, the last part."""
    path, colon, factory = model.rpartition(":")
    return f"{Path(path).name}{colon}{factory}" if path.endswith(".py") else model
