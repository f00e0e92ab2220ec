"""Lint of a large network takes seconds, most of which is reading it."""

from __future__ import annotations

import time
from pathlib import Path

import onnx

from engines.lint import lint_file
from tests.large_models import resnet152

_LIMIT = 3.0  # seconds of one core, whatever else the machine does


def test_resnet152_is_linted_in_under_three_seconds(tmp_path: Path) -> None:
    path = tmp_path / "resnet152.onnx"
    onnx.save(resnet152(), path)
    begin = time.process_time()
    _, found = lint_file(path)
    assert time.process_time() - begin < _LIMIT
    assert {finding.rule for finding in found} == {"sum-over-24-bits"}  # random codes, of up to 4,608 products
