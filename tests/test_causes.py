"""The table of likely causes: each row fits its own evidence, in the order of what is certain."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from engines.causes import CAUSES, Evidence, kernels_saturate, layer_reach, likely_cause
from engines.parity import Divergence
from engines.qdq_graph import read_graph
from tests.cpu_kernels import VNNI
from tests.onnx_nets import residual_net
from tests.test_portable_cpu import QEMU

OFF_BY_ONE = Divergence("t", 3, 1, 0)
FAR_OFF = Divergence("t", 3, 9, 0)


@pytest.mark.parametrize(
    ("evidence", "name"),
    [
        (Evidence("oracle", OFF_BY_ONE, file_changes=["conv: a code"], float_parts=True), "changed file"),
        (Evidence("onnxruntime", FAR_OFF, engine_changes=["conv: a code"], saturates=True), "stale engine"),
        (Evidence("tensorrt", OFF_BY_ONE, float_parts=True), "float parts"),
        (Evidence("onnxruntime", FAR_OFF, saturates=True, reach=32_768), "saturating kernels"),
        (Evidence("onnxruntime", FAR_OFF, saturates=True, reach=32_767), "other kernels"),
        (Evidence("onnxruntime", FAR_OFF, saturates=False, reach=60_000), "other kernels"),
        (Evidence("tensorrt-rtx", FAR_OFF, unsigned=True), "unsigned codes"),
        (Evidence("onnxruntime", FAR_OFF, unsigned=True), "other kernels"),
        (Evidence("tensorrt", FAR_OFF, proven=False), "long sums"),
        (Evidence("tensorrt", FAR_OFF, fresh_agrees=True), "stale engine"),
        (Evidence("tensorrt", None), "shown codes agree"),
        (Evidence("tensorrt", OFF_BY_ONE, proven=True), "epilogue rounding"),
        (Evidence("tensorrt", FAR_OFF, proven=True), "other kernels"),
    ],
)
def test_likely_cause_is_the_first_row_that_fits(evidence: Evidence, name: str) -> None:
    found = likely_cause(evidence)
    assert found.name == name
    assert found.says(evidence) and found.remedy


def test_several_changes_are_counted() -> None:
    found = likely_cause(Evidence("oracle", OFF_BY_ONE, file_changes=["conv: a code", "fc: a scale"]))
    assert found.says(Evidence("oracle", file_changes=["conv: a code", "fc: a scale"])) == (
        "model.onnx is not the net: conv: a code (1 more differ)."
    )


def test_every_cause_is_on_its_page() -> None:
    text = (Path(__file__).parents[1] / "docs" / "blame.md").read_text("utf-8")
    missing = {cause.name for cause in CAUSES if f"| {cause.name} |" not in text}
    assert missing == set()


def test_kernels_saturate_where_the_cpu_has_no_vnni() -> None:
    assert kernels_saturate() is not VNNI


@pytest.mark.skipif(QEMU is None, reason="qemu-x86_64 is not installed (Debian package qemu-user)")
def test_kernels_saturate_on_an_emulated_haswell() -> None:
    assert QEMU is not None and shutil.which(QEMU)
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); from engines.causes import kernels_saturate as k; print(k())"
    )
    command = [QEMU, "-cpu", "Haswell", sys.executable, "-c", program, str(Path(__file__).parents[1])]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    assert done.stdout.strip() == "True"


def test_reach_is_the_largest_code_times_the_two_largest_weights_of_a_channel() -> None:
    graph = read_graph(residual_net("tensorrt", 0))
    layer = next(node for node in graph.nodes if node.op_type == "Conv")
    weights = graph.constants[graph.producer[layer.input[1]].input[0]].astype(np.int64)
    rows = np.sort(np.abs(weights).reshape(len(weights), -1))[:, -2:].sum(1)
    source = graph.producer[layer.input[0]].input[0]
    codes = {source: np.array([[-3, 100]], np.int64)}
    assert layer_reach(graph, str(layer.name), codes) == (100 + 128) * int(rows.max())
    assert layer_reach(graph, str(layer.name), {}) is None
    assert layer_reach(graph, "nowhere", codes) is None
