"""Gates on engines: which runtimes ran, size, share of the multiply-adds in INT8, and latency."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from faq_deploy.graph import WEIGHTED
from faq_deploy.inspect import layer_row
from faq_deploy.inspect_view import NetView
from faq_deploy.limits import Limits
from faq_deploy.report_model import Engine, Gate, Stage
from faq_deploy.stored_net import StoredNet

__all__ = ["engine_gates", "engine_stage", "with_int8_shares"]


def with_int8_shares(stored: StoredNet, engines: Sequence[Engine]) -> list[Engine]:
    """The engines with the share of an image's multiply-adds that they run in INT8.

    Args:
        stored: the quantized net, whose layers the engines' plans name.
        engines: as built.
    """
    view = NetView(stored.net)
    rows = [layer_row(view, node) for node in stored.net.graph if node.kind in WEIGHTED]
    macs = {row.name: row.macs for row in rows}
    in_int8 = {row.name for row in rows if row.int8}
    return [engine.model_copy(update={"int8_share": _share(engine, macs, in_int8)}) for engine in engines]


def _share(engine: Engine, macs: Mapping[str, int], in_int8: set[str]) -> float | None:
    """A plan's word counts where there is one: it knows which layers have no kernel."""
    total = sum(macs.values())
    if not total:
        return None
    islands = engine.plan.islands if engine.plan is not None else ()
    floats = {name for island in islands for name in island.nodes}
    return sum(macs[name] for name in in_int8 - floats) / total


def engine_gates(engines: Sequence[Engine], stages: Sequence[Stage], limits: Limits) -> Iterator[Gate]:
    """The gates on engines that `limits` ask for.

    Args:
        engines: every one that was built.
        stages: of the evaluation.
        limits: see `Limits`.
    """
    for runtime in limits.required_runtimes:
        ran = sum(engine.runtime == runtime and engine.status == "ran" for engine in engines)
        yield _gate(f"required runtime: {runtime}", ran, 1, "engines of this runtime that ran here", at_least=True)
    floating = next((stage for stage in stages if stage.kind == "float"), None)
    for engine in engines:
        if engine.status == "not asked for":
            continue
        if limits.max_engine_bytes is not None:
            yield _gate(f"engine bytes: {engine.name}", engine.bytes, limits.max_engine_bytes, "size of its file")
        if limits.min_int8_share is not None:
            source = "the graph" if engine.plan is None else f"its plan, {engine.plan.source}"
            said = f"share of the multiply-adds of an image that are in INT8, by {source}"
            yield _gate(f"INT8 share: {engine.name}", engine.int8_share, limits.min_int8_share, said, at_least=True)
        stage = engine_stage(engine, stages)
        if limits.max_latency_ratio is not None and stage is not None and floating is not None:
            said = f"its time for an image over PyTorch float's, {_times(stage, floating)}"
            yield _gate(f"latency ratio: {engine.name}", _ratio(stage, floating), limits.max_latency_ratio, said)


def engine_stage(engine: Engine, stages: Sequence[Stage]) -> Stage | None:
    """The stage of an engine that ran."""
    return next((s for s in stages if s.name == f"engine {engine.name}" and s.skipped is None), None)


def _ratio(stage: Stage, floating: Stage) -> float | None:
    if stage.latency_ms is None or not floating.latency_ms:
        return None
    return round(stage.latency_ms / floating.latency_ms, 4)


def _times(stage: Stage, floating: Stage) -> str:
    return f"{stage.latency_ms or 0:.4g} ms to {floating.latency_ms or 0:.4g} ms in batches of {stage.largest_batch}"


def _gate(name: str, value: float | None, limit: float, detail: str, *, at_least: bool = False) -> Gate:
    kept = value is not None and (value >= limit if at_least else value <= limit)
    return Gate(name=name, limit=limit, value=value, passed=kept, detail=detail, at_least=at_least)
