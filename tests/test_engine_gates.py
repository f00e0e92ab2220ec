"""Gates on engines, each kept at its limit and broken beyond it."""

from __future__ import annotations

import pytest

from engines.plan_model import EnginePlan, FloatIsland
from faq_deploy.engine_gates import engine_gates, engine_stage, with_int8_shares
from faq_deploy.inspect import inspect_net
from faq_deploy.limits import Limits
from faq_deploy.report_model import Engine, Gate, Stage
from tests.nets import Small, with_statistics
from tests.quantized import images, make_recipe, quantized_net

FLOAT = Stage(name="PyTorch float", kind="float", images=10, top1=90.0, latency_ms=2.0)
RAN = Stage(name="engine a", kind="engine", images=10, top1=90.0, latency_ms=1.0, largest_batch=10)
SKIPPED = Stage(name="engine b", kind="engine", skipped="no GPU")
ENGINES = [
    Engine(name="a", runtime="onnxruntime", status="ran", bytes=1000, int8_share=0.75),
    Engine(name="b", runtime="tensorrt", status="skipped", bytes=2000, int8_share=1.0),
    Engine(name="c", runtime="tensorrt-rtx", status="not asked for", bytes=9000, int8_share=0.0),
]


def gates(**limits: object) -> dict[str, Gate]:
    found = engine_gates(ENGINES, [FLOAT, RAN, SKIPPED], Limits.model_validate(limits))
    return {gate.name: gate for gate in found}


def test_without_limits_there_are_no_gates() -> None:
    assert gates() == {}


@pytest.mark.parametrize(("limit", "kept"), [(1999, [True, False]), (2000, [True, True]), (999, [False, False])])
def test_bytes_of_every_engine_that_was_asked_for_are_limited(limit: int, kept: list[bool]) -> None:
    found = gates(max_engine_bytes=limit)
    assert list(found) == ["engine bytes: a", "engine bytes: b"]
    assert [gate.passed for gate in found.values()] == kept


@pytest.mark.parametrize(("limit", "kept"), [(0.75, True), (0.76, False)])
def test_share_in_int8_has_a_floor(limit: float, kept: bool) -> None:
    gate = gates(min_int8_share=limit)["INT8 share: a"]
    assert (gate.value, gate.at_least, gate.passed) == (0.75, True, kept)


@pytest.mark.parametrize(("limit", "kept"), [(0.5, True), (0.49, False)])
def test_latency_is_a_ratio_to_the_float_net(limit: float, kept: bool) -> None:
    found = gates(max_latency_ratio=limit)
    assert list(found) == ["latency ratio: a"]  # what did not run has none
    assert (found["latency ratio: a"].value, found["latency ratio: a"].passed) == (0.5, kept)
    assert "1 ms to 2 ms in batches of 10" in found["latency ratio: a"].detail


@pytest.mark.parametrize(("runtime", "kept"), [("onnxruntime", True), ("tensorrt", False), ("tensorrt-rtx", False)])
def test_a_required_runtime_must_have_run(runtime: str, kept: bool) -> None:
    assert gates(required_runtimes=[runtime])[f"required runtime: {runtime}"].passed is kept


def test_the_stage_of_an_engine_is_one_that_ran() -> None:
    assert engine_stage(ENGINES[0], [FLOAT, RAN, SKIPPED]) is RAN
    assert engine_stage(ENGINES[1], [FLOAT, RAN, SKIPPED]) is None


def test_share_in_int8_leaves_out_what_a_plan_has_in_float() -> None:
    stored = quantized_net(with_statistics(Small()), make_recipe(), images(8))
    rows = inspect_net(stored.net, stored.recipe, "small").layers
    assert len(rows) > 1 and all(row.int8 for row in rows)
    island = FloatIsland(nodes=(rows[0].name,), reason="No kernel.", edit="")
    plan = EnginePlan(source="predicted", islands=(island,))
    whole, part = with_int8_shares(stored, [ENGINES[0], ENGINES[1].model_copy(update={"plan": plan})])
    assert whole.int8_share == 1.0
    assert part.int8_share == pytest.approx(1 - rows[0].macs / sum(row.macs for row in rows))
