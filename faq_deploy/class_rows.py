"""How each class fares: one row a class, and the gate that no class may lose more than some points."""

from __future__ import annotations

from faq_deploy.predictions import Predictions
from faq_deploy.report_model import Gate
from faq_deploy.report_parts import ClassRow
from faq_deploy.statistics import Pairs, drop_interval

__all__ = ["CLASS_GATE", "class_gate", "class_rows"]

CLASS_GATE = "largest drop of a class"

_CLOSE = 1e-9  # sums of shares in binary


def class_rows(predictions: Predictions) -> list[ClassRow]:
    """One row a class, with the stages that ran all images; a class without images is there, too."""
    whole = [name for name, answers in predictions.answers.items() if len(answers) == len(predictions.labels)]
    right = {name: predictions.right(name).tolist() for name in whole}
    images = predictions.per_class().tolist()
    return [
        ClassRow(name=label, images=images[index], right={name: right[name][index] for name in whole})
        for index, label in enumerate(predictions.classes)
    ]


def class_gate(
    predictions: Predictions, before: str, after: str, limit: float, *, allow_undecided: bool
) -> Gate | None:
    """No class may lose more than `limit` points.

    Args:
        predictions: of all stages.
        before: the stage that is compared with.
        after: the other one.
        limit: points that a class may lose.
        allow_undecided: whether it passes where some class has too few images to tell.

    Returns:
        Broken where a class lost more, undecided where none did but the interval of one passes the limit; None where
        one of the stages ran no image.
    """
    pairs = {name: pair for name, pair in predictions.class_pairs(before, after).items() if pair.images}
    if not pairs:
        return None
    worst = max(pairs, key=lambda name: pairs[name].drop)
    intervals = {name: drop_interval(pair) for name, pair in pairs.items()}
    widest = max(pairs, key=lambda name: intervals[name].high)
    kept = pairs[worst].drop <= limit + _CLOSE
    undecided = kept and intervals[widest].high > limit + _CLOSE
    detail = f"points of top-1, {after} against {before}: {_in_words(worst, pairs)}"
    if undecided:
        low, high = intervals[widest]
        detail += (
            f"; undecided: on the {pairs[widest].images:,} images of {widest} the drop lies between {low:.2f} and "
            f"{high:.2f} points (95 %)"
        )
    return Gate(
        name=CLASS_GATE,
        limit=limit,
        value=round(pairs[worst].drop, 2),
        passed=kept and (not undecided or allow_undecided),
        interval=intervals[widest],
        undecided=undecided,
        detail=detail,
    )


def _in_words(worst: str, pairs: dict[str, Pairs]) -> str:
    pair = pairs[worst]
    equal = sum(other.drop == pair.drop for other in pairs.values()) - 1
    more = f", and {equal} more" if equal else ""
    return f"{worst} ({pair.lost} of its {pair.images} images lost, {pair.gained} gained{more})"
