"""What several tests demand of a net: the same integers three ways, or one lint finding."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx

from engines.lint import RULES, Finding, lint
from engines.ort import OrtRunner
from engines.parity import compare_codes
from engines.reference import ReferenceRunner
from tests.onnx_nets import saved


def three_ways(model: onnx.ModelProto, batch: npt.NDArray[np.float32]) -> dict[str, npt.NDArray[np.int64]]:
    """Codes of the reference, after asserting that onnxruntime has the same, optimized or not."""
    with tempfile.TemporaryDirectory() as folder:
        path = saved(model, Path(folder))
        reference = ReferenceRunner(path)
        codes = reference.codes(batch)
        for oracle in (True, False):
            other = OrtRunner(path, oracle=oracle, threads=1, with_codes=True).codes(batch)
            parity = compare_codes(codes, other, reference.code_names)
            assert parity.differing == 0, (oracle, parity)
            assert np.array_equal(codes["logits"], other["logits"]), oracle
    return codes


def only_finding(model: onnx.ModelProto, rule: str, target: str | None = None) -> Finding:
    """The only finding of a rule, with its level and a remedy."""
    found = [finding for finding in lint(model, target) if finding.rule == rule]
    assert len(found) == 1, found
    assert found[0].level == RULES[rule].level
    assert found[0].remedy.endswith(".")
    return found[0]
