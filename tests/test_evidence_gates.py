"""Gates on what is certain: an exported file is its net, codes are the net's, top-1 does not fall by more than luck."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from engines.run_folder import RunFolder
from faq_deploy.evidence_gates import check_file, code_gates, fall_gate, file_gates
from faq_deploy.onnx_export import export_onnx
from faq_deploy.report_model import Stage
from faq_deploy.stored_net import StoredNet
from tests.nets import Small, with_statistics
from tests.quantized import images, make_recipe, quantized_net


def stored_net(target: str = "tensorrt", bits: int = 8) -> StoredNet:
    return quantized_net(with_statistics(Small()), make_recipe(target, bits))


def exported(stored: StoredNet, folder: Path, *, packed: bool = False) -> Path:
    path = folder / "model.onnx"
    export_onnx(stored, path, images(4).numpy(), versions={}, checkpoint_sha256="", packed=packed)
    return path


@pytest.mark.parametrize(
    ("target", "bits", "packed"),
    [("tensorrt", 8, False), ("onnxruntime", 8, False), ("paper", 8, False), ("tensorrt", 4, True)],
)
def test_an_exported_file_is_its_net(tmp_path: Path, target: str, bits: int, packed: bool) -> None:
    stored = stored_net(target, bits)
    check = check_file(stored, exported(stored, tmp_path, packed=packed))
    assert check.constants == () and check.facts == ()
    assert [(gate.name, gate.value, gate.passed) for gate in file_gates(check)] == [
        ("numbers in model.onnx", 0, True),
        ("facts in model.onnx", 0, True),
    ]


def test_a_changed_bias_breaks_the_gate_and_is_named(tmp_path: Path) -> None:
    stored = stored_net()
    path = exported(stored, tmp_path)
    model = onnx.load(path)
    name = next(node.input[2] for node in model.graph.node if node.op_type == "Conv")
    (tensor,) = (tensor for tensor in model.graph.initializer if tensor.name == name)
    bias = numpy_helper.to_array(tensor).copy()
    bias[2] -= 7
    tensor.CopyFrom(numpy_helper.from_array(bias, name))
    onnx.save(model, path)
    numbers, facts = file_gates(check_file(stored, path))
    assert not numbers.passed and facts.passed
    assert f"1 of {len(bias)} values of {name} differs by 7, in channel 2" in numbers.detail


def stage(kind: str, differing: int, difference: float) -> Stage:
    counts = {"differing_codes": differing, "codes_compared": 1000, "max_logit_difference": difference}
    return Stage.model_validate({"name": kind, "kind": kind, "images": 10, "top1": 50.0, **counts})


@pytest.mark.parametrize("target", ["tensorrt", "onnxruntime"])
def test_engines_are_held_to_the_bit_where_the_target_promises_it(target: str) -> None:
    stages = [stage("quantized", 0, 0), stage("reference", 0, 0), stage("onnxruntime", 1, 0.5), stage("engine", 2, 0.5)]
    gates = {gate.name: gate.passed for gate in code_gates(stored_net(target), stages)}
    wanted = {
        "codes: reference": True,
        "logits: reference": True,
        "codes: onnxruntime": False,
        "logits: onnxruntime": False,
    }
    if target == "onnxruntime":
        wanted |= {"codes: engine": False, "logits: engine": False}
    assert gates == wanted


def run_with_top1(folder: Path, top1: float | None) -> RunFolder:
    run = RunFolder(folder)
    run.record("quantize", version="1", facts={} if top1 is None else {"top1": top1})
    return run


def row(top1: float, count: int = 1000) -> Stage:
    return Stage(name="PyTorch quantized", kind="quantized", images=count, top1=top1)


@pytest.mark.parametrize(
    ("now", "count", "allowed", "passes"),
    [
        (90.0, 1000, None, True),
        (95.0, 1000, 0.0, True),
        (85.5, 1000, None, True),
        (84.5, 1000, None, False),
        (60.0, 10, None, True),  # three more wrong than expected: luck
        (30.0, 10, None, False),
        (89.5, 1000, 0.4, False),
        (70.0, 1000, 20.0, True),
    ],
)
def test_top1_may_fall_by_luck_or_by_what_is_allowed(
    tmp_path: Path, now: float, count: int, allowed: float | None, passes: bool
) -> None:
    gate = fall_gate(run_with_top1(tmp_path, 90.0), row(now, count), allowed)
    assert gate is not None
    assert gate.passed is passes
    assert gate.value == pytest.approx(90 - now)


def test_without_a_figure_of_quantize_there_is_no_gate_on_a_fall(tmp_path: Path) -> None:
    assert fall_gate(run_with_top1(tmp_path, None), row(3.0), None) is None


def test_luck_rarely_breaks_the_gate_on_a_fall(tmp_path: Path) -> None:
    run, rng = run_with_top1(tmp_path, 70.0), np.random.default_rng(0)
    for count in (20, 100, 1000):
        gates = [fall_gate(run, row(100 * right / count, count), None) for right in rng.binomial(count, 0.7, 500)]
        assert sum(gate is None or not gate.passed for gate in gates) <= 5
