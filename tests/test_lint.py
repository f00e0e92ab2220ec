"""Lint: our own files are clean, errors come first, targets are known."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from engines.errors import InputError
from engines.lint import lint
from tests.onnx_nets import Target, residual_net, with_constant


@pytest.fixture(scope="module")
def trt() -> onnx.ModelProto:
    return residual_net("tensorrt", 0)


@pytest.mark.parametrize("target", ["tensorrt", "onnxruntime"])
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("gemm", [False, True])
def test_our_own_form_is_clean(target: Target, bits: int, gemm: bool) -> None:
    assert lint(residual_net(target, 3, bits=bits, gemm=gemm), target) == []
    assert {finding.level for finding in lint(residual_net(target, 3, bits=bits, gemm=gemm, factor=127), target)} == {
        "info"
    }


def test_errors_come_before_information(trt: onnx.ModelProto) -> None:
    model = with_constant(trt, "stem.out.scale", np.float32(0.3))
    model = with_constant(model, "last.out.scale", np.float32(-1))
    levels = [finding.level for finding in lint(model)]
    assert levels == sorted(levels)  # error, info, warning happen to sort so, and there is no warning
    assert set(levels) == {"error", "info"}


def test_an_unknown_target_is_refused(trt: onnx.ModelProto) -> None:
    with pytest.raises(InputError, match="no target 'tensorRT'"):
        lint(trt, "tensorRT")
