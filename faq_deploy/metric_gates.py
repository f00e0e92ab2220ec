"""What a metric may lose: by quantization, and from there to each stage."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from faq_deploy.report_model import Gate, Stage

__all__ = ["drop_gate", "metric_gates"]

_CLOSE = 1e-9  # sums of shares in binary


def metric_gates(stages: Sequence[Stage], name: str, limit: float | None) -> Iterator[Gate]:
    """The gates on a metric.

    Args:
        stages: of the evaluation: float first, then quantized.
        name: of the metric.
        limit: what it may lose, in its own unit; None judges nothing.
    """
    if limit is None:
        return
    floating, quantized, *others = stages
    yield _gate(f"drop of {name} by quantization", floating, quantized, limit)
    for stage in others:
        # one that saw fewer images has another value for that reason alone
        if stage.skipped is None and stage.images == quantized.images:
            yield _gate(f"drop of {name}: {stage.name}", quantized, stage, limit)


def _gate(name: str, before: Stage, after: Stage, limit: float) -> Gate:
    if before.metric is None or after.metric is None:
        return Gate(name=name, limit=limit, value=None, passed=False, detail="it was not measured")
    return drop_gate(name, (before.name, before.metric), (after.name, after.metric), limit)


def drop_gate(name: str, before: tuple[str, float], after: tuple[str, float], limit: float) -> Gate:
    """The gate on what a metric loses from one stage to another.

    Args:
        name: of the gate.
        before, after: name of the stage and its value.
        limit: what it may lose, in its own unit.
    """
    drop = before[1] - after[1]
    detail = f"{before[0]} {before[1]:.6g}, {after[0]} {after[1]:.6g}; higher is better"
    return Gate(name=name, limit=limit, value=round(drop, 6), passed=drop <= limit + _CLOSE, detail=detail)
