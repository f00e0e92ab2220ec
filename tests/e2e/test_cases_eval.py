"""Cases C25 and C26: logits that tie, and fewer classes than five, through all verbs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from tests.e2e.test_readme import write_images

Call = Callable[..., Result]

NET = """
import torch
from torch import nn

def build(num_classes: int = 8) -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, num_classes)
    )
    if num_classes == 8:  # classes 1, 3 and 7 always tie, and always win
        with torch.no_grad():
            net[4].weight.mul_(0.1)
            net[4].weight[[1, 3, 7]] = 0.5
            net[4].bias.zero_()
            net[4].bias[[1, 3, 7]] = 4.0
    return net
"""


def evaluated(call: Call, folder: Path, classes: int) -> tuple[Result, dict[str, object]]:
    """Quantize, export, build and evaluate a net of so many classes; eval's result and its report."""
    data = folder / "data"
    write_images(data / "train", classes=classes, each=3, size=16)
    write_images(data / "val", classes=classes, each=2, size=16)
    (folder / "net.py").write_text(NET)
    run = folder / "run"
    given = ("--weights", "random", "--data", data, "--resize", 0, "--crop", 16, "--recipe", "quick", "--epochs", 0)
    for line in (
        ("quantize", f"{folder / 'net.py'}:build", *given, "-o", run),
        ("export", run),
        ("build", run, "--runtime", "onnxruntime"),
    ):
        result = call(*line)
        assert result.exit_code == 0, result.output
    result = call("eval", run)
    return result, json.loads((run / "report.json").read_text("utf-8"))


def test_c25_ties_go_to_the_lowest_class_in_every_stage(call: Call, tmp_path: Path) -> None:
    result, report = evaluated(call, tmp_path, 8)
    assert result.exit_code == 0, result.output
    stages = report["stages"]
    assert isinstance(stages, list)
    judged = [stage for stage in stages if stage["kind"] not in ("float", "quantized")]
    assert len(judged) == 3 and [stage["flips"] for stage in judged] == [0, 0, 0]
    # 2 of 16 images are of class 1, and no other class is ever the answer
    assert {stage["top1"] for stage in stages if stage["images"] == 16 and stage["top1"] is not None} == {12.5}


@pytest.mark.parametrize("classes", [2, 4])
def test_c26_fewer_than_five_classes_have_no_top5(call: Call, tmp_path: Path, classes: int) -> None:
    result, report = evaluated(call, tmp_path, classes)
    assert result.exit_code == 0, result.output
    stages = report["stages"]
    assert isinstance(stages, list) and len(stages) == 5
    assert [stage["top5"] for stage in stages] == [None] * 5
