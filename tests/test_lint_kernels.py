"""The rule on convolutions for which TensorRT has no INT8 kernel."""

from __future__ import annotations

import pytest

from engines.lint import lint
from tests.layer_forms import layer

SIZES = {"12 by 4": (12, 12, 4), "10 by 5": (10, 10, 5), "30 by 3": (30, 30, 3)}


def found(kind: str, inputs: int, outputs: int, groups: int, target: str | None = "tensorrt") -> list[str]:
    weight = (inputs, outputs // groups, 3, 3) if kind == "ConvTranspose" else (outputs, inputs // groups, 3, 3)
    model = layer(kind, (inputs, 6, 6), weight, axis=None, group=groups)
    return [finding.node for finding in lint(model, target) if finding.rule == "grouped-int8"]


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_groups_of_awkward_size_are_warned_of(sizes: tuple[int, int, int]) -> None:
    assert found("Conv", *sizes) == ["y"]
    assert found("Conv", *sizes, target=None) == ["y"]
    assert found("Conv", *sizes, target="onnxruntime") == []


def test_depthwise_and_wide_groups_are_not() -> None:
    assert found("Conv", 6, 6, 6) == []
    assert found("Conv", 64, 64, 2) == []
    assert found("Conv", 3, 8, 1) == []


def test_transposed_convolution_counts_its_groups_the_other_way_round() -> None:
    assert found("ConvTranspose", 8, 8, 2) == []
    assert found("ConvTranspose", 8, 12, 4) == ["y"]
