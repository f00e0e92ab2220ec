"""`eval FILE.onnx`: a segmentation net judged on samples and by a metric of the user's file."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
from click.testing import Result
from onnx import numpy_helper

import faq_deploy
from engines.files import sha256_of
from engines.run_folder import RunFolder
from tests.cpu_kernels import optimized_is_exact
from tests.nets import with_statistics
from tests.quantized import images
from tests.task_nets import Segmenter

Call = Callable[..., Result]
VALUES = 6 * 4 * 32 * 32

USER = """
import torch
from tests.task_nets import Segmenter
from tests.nets import with_statistics
from tests.quantized import images

def net():
    torch.manual_seed(3)
    return with_statistics(Segmenter())

def val():
    data = images(6, 32, seed=8)
    masks = net()(data)["out"].argmax(1)
    yield data[:4], masks[:4]
    yield data[4:].numpy(), masks[4:].numpy()

def broken():
    yield images(2, 32), None
    raise RuntimeError("no more")

def bare():
    yield images(2, 32)

def small():
    yield images(2, 16), None

def nothing():
    return None

images6 = images(6, 32)
"""


@pytest.fixture(scope="module", params=["tensorrt", "onnxruntime"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """An exported net, and its target."""
    torch.manual_seed(3)
    folder = tmp_path_factory.mktemp("file")
    model = faq_deploy.prepare(with_statistics(Segmenter()), images(2, 32), request.param, output="*")
    faq_deploy.calibrate(model, [images(4, 32)])
    faq_deploy.export(model, folder / "model.onnx")
    (folder / "mine.py").write_text(USER)
    return folder / "model.onnx", request.param


def test_codes_outputs_and_metric_of_a_file_are_judged(call: Call, made: tuple[Path, str]) -> None:
    path, target = made
    mine = path.with_name("mine.py")
    line = ("eval", path, "--samples", f"{mine}:val", "--float-model", f"{mine}:net", "--metric", "mean-iou")
    result = call(*line, "--max-metric-drop", 60, "--code-images", 5, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    floating, oracle, reference, optimized = found["stages"]
    assert (floating["name"], floating["metric"], found["images"]) == ("PyTorch float", 100.0, 6)
    assert oracle["metric"] == optimized["metric"] < 100
    assert (reference["images"], reference["metric"]) == (5, None)
    for stage in (reference, optimized) if optimized_is_exact(target) else (reference,):
        assert stage["codes_compared"] > 0
        assert stage["differing_codes"] == 0
        assert [(o["name"], o["differing"]) for o in stage["outputs"]] == [("out", 0), ("aux", 0)]
    assert [o["compared"] for o in optimized["outputs"]] == [VALUES, VALUES]
    names = [gate["name"] for gate in found["gates"]]
    assert "output aux: integer reference (NumPy)" in names
    assert ("codes: onnxruntime" in names) == (target == "onnxruntime")
    result = call(*line, "--max-metric-drop", 0)
    assert result.exit_code == 1
    assert "NOT PASSED (exit code 1). drop of mean-iou: onnxruntime, optimizations off is" in result.output
    result = call(*line)
    assert result.exit_code == 0
    assert "PASSED. All" in result.output


def test_report_of_a_file_is_a_page_where_one_is_asked_for(call: Call, made: tuple[Path, str], tmp_path: Path) -> None:
    path, mine, page = made[0], made[0].with_name("mine.py"), tmp_path / "new" / "page.html"
    before = {file.name for file in path.parent.iterdir()} - {"__pycache__"}
    line = ("eval", path, "--samples", f"{mine}:val", "--float-model", f"{mine}:net", "--metric", "mean-iou")
    result = call(*line, "--max-metric-drop", 0, "--html", page)
    assert (result.exit_code, result.stdout.splitlines()[-1]) == (1, f"Report: {page}")
    text = page.read_text("utf-8")
    for said in ("Not passed: a gate failed", "mean-iou", "100.0000", "aux", sha256_of(path), "✘ failed", "✔ passed"):
        assert said in text, said
    assert not re.search(r"<script|https?://|src=", text)
    assert {file.name for file in path.parent.iterdir()} - {"__pycache__"} == before
    assert call(*line, "--html", page, "--json").exit_code == 0
    assert "Not passed" not in page.read_text("utf-8")


def test_a_page_of_a_run_is_not_asked_for(call: Call, tmp_path: Path) -> None:
    RunFolder(tmp_path).record("begin", version="0")
    result = call("eval", tmp_path, "--html", tmp_path / "page.html")
    assert result.exit_code == 2
    assert "--html goes with an ONNX file, not with a run" in result.output


def test_a_changed_file_is_no_longer_its_float_net(call: Call, made: tuple[Path, str], tmp_path: Path) -> None:
    path, _ = made
    model = onnx.load(path)
    weight = next(t for t in model.graph.initializer if numpy_helper.to_array(t).ndim == 4)
    weight.CopyFrom(numpy_helper.from_array(0 * numpy_helper.to_array(weight), weight.name))
    onnx.save(model, tmp_path / "other.onnx")
    mine = path.with_name("mine.py")
    options = ("--samples", f"{mine}:val", "--float-model", f"{mine}:net", "--metric", "mean-iou")
    assert call("eval", tmp_path / "other.onnx", *options, "--max-metric-drop", 50).exit_code == 1


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ((), "which images to run is not said"),
        (("--samples", "mine.py:none"), "no function or class 'none'"),
        (("--samples", "other.py:val"), "other.py does not exist, so there are no samples"),
        (("--samples", "mine.py:small"), "model.onnx takes a batch of shape (N, 3, 32, 32), not (2, 3, 16, 16)"),
        (("--samples", "mine.py"), "is not of the form FILE.py:NAME"),
        (("--samples", "mine.py:nothing"), "nothing returned a NoneType, not batches"),
        (("--samples", "mine.py:images6"), "images6 is a Tensor, not a function"),
        (("--samples", "mine.py:broken"), "mine.py:19: the samples raised RuntimeError: no more"),
        (("--samples", "mine.py:bare", "--metric", "mean-iou"), "a metric needs targets"),
        (("--samples", "mine.py:val", "--max-metric-drop", 1), "has no metric to judge"),
        (("--samples", "mine.py:val", "--float-model", "mine.py:net"), "--float-model has no metric"),
        (("--samples", "mine.py:val", "--max-drop", 1), "--max-drop goes with a run"),
        (("--samples", "mine.py:val", "--data", "x"), "--data goes with a run"),
    ],
)
def test_what_a_file_cannot_be_judged_by_is_refused(
    call: Call, made: tuple[Path, str], options: tuple[str, ...], what: str
) -> None:
    path, _ = made
    given = [str(path.with_name(o)) if str(o).startswith(("mine.py", "other.py")) else o for o in options]
    result = call("eval", path, *given)
    assert result.exit_code == 2
    assert what in result.output.replace("\n", " ")


def test_a_file_that_is_not_there_is_named(call: Call, tmp_path: Path) -> None:
    result = call("eval", tmp_path / "gone.onnx", "--samples", "mine.py:val")
    assert result.exit_code == 2
    assert "gone.onnx does not exist." in result.output.replace("\n", "")
