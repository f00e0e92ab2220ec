"""What an engine runs, in sentences for a person; predicted from the graph or told by the engine itself."""

from __future__ import annotations

from engines.inspected_plan import inspected
from engines.plan_model import EnginePlan, FloatIsland, Share
from engines.predicted_plan import predict

__all__ = ["EnginePlan", "FloatIsland", "Share", "inspected", "predict", "sentences"]

_MOST_ISLANDS = 5
_MOST_NAMES = 3


def sentences(plan: EnginePlan) -> list[str]:
    """What `build` and the report say of an engine.

    Args:
        plan: of the engine.

    Returns:
        One sentence with the counts, one a float island (the first few), and one on functions where there are any. A
        prediction says that it is one.
    """
    counted = [
        f"{share} {name}"
        for name, share in (
            ("convolutions", plan.convolutions),
            ("linear layers", plan.linears),
            ("adds", plan.adds),
            ("concats", plan.concats),
        )
        if share.all
    ]
    counts = f"{', '.join(counted)} in INT8" if counted else "nothing in INT8"
    extra = [f"{plan.reformats} {'reformat' if plan.reformats == 1 else 'reformats'}"]
    if plan.int4_linears:
        extra.append(f"{plan.int4_linears} of the linear layers with INT4 weights, multiplied in float")
    if plan.unseen:
        extra.append(f"{plan.unseen} layers inside blocks that the engine does not itemize")
    start = "Predicted from the graph, not measured" if plan.source == "predicted" else "The engine's own account"
    found = [f"{start}: {counts}; {'; '.join(extra)}."]
    between = [
        f"{count} {name}{'s' if count > 1 else ''}"
        for count, name in ((plan.functions, "function"), (plan.pools, "average pool"))
        if count
    ]
    if between:
        found.append(f"From codes to codes, in between in float: {' and '.join(between)}.")
    for island in plan.islands[:_MOST_ISLANDS]:
        found.append(f"In float: {_names(island)}. {island.reason} {island.edit}".rstrip())
    if len(plan.islands) > _MOST_ISLANDS:
        found.append(f"{len(plan.islands) - _MOST_ISLANDS} more parts are in float; --json lists them.")
    return found


def _names(island: FloatIsland) -> str:
    names = island.modules or island.nodes
    more = len(names) - _MOST_NAMES
    return ", ".join(names[:_MOST_NAMES]) + (f" and {more} more" if more > 0 else "")
