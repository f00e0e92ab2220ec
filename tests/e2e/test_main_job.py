"""quantize, export, build, eval on embedded data, through the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.cpu_kernels import optimized_is_exact
from tests.e2e.conftest import Call, Program

pytestmark = pytest.mark.xdist_group("digits")


def report_of(run: Path) -> dict[str, object]:
    return dict(json.loads((run / "report.json").read_text()))


@pytest.mark.parametrize(("target", "bits"), [("tensorrt", 8), ("tensorrt", 4), ("onnxruntime", 8), ("onnxruntime", 4)])
def test_all_stages_compute_the_same_integers(
    call: Call, make_run: Callable[..., Path], target: str, bits: int
) -> None:
    run = make_run("--target", target, "--bits", bits, "--epochs", 2 if bits == 4 else 1)
    assert call("export", run).exit_code == 0
    assert call("build", run, "--runtime", "onnxruntime").exit_code == 0
    result = call("eval", run, "--max-drop", 0, "--max-flips", 0, "--reference-images", 1000, "--code-images", 1000)
    assert result.exit_code == 0, result.output
    assert "The same integers everywhere: 0 of" in result.output
    stages = {s["name"]: s for s in report_of(run)["stages"]}  # type: ignore[attr-defined]
    assert list(stages) == [
        "PyTorch float",
        "PyTorch quantized",
        "integer reference (NumPy)",
        "onnxruntime, optimizations off",
        "engine onnxruntime",
    ]
    for name in list(stages)[2:]:
        stage = stages[name]
        assert (stage["images"], stage["flips"], stage["differing_codes"]) == (449, 0, 0)
        assert stage["codes_compared"] > 100_000
        assert stage["max_logit_difference"] == 0.0
    drop = stages["PyTorch float"]["top1"] - stages["PyTorch quantized"]["top1"]
    assert drop <= (1.0 if bits == 8 else 4.0)  # short training; the demo holds 0.5 and 1.5


@pytest.mark.parametrize("mode", ["paper", "fit"])
def test_papers_own_form_goes_through_all_verbs(call: Call, make_run: Callable[..., Path], mode: str) -> None:
    run = make_run("--target", "paper", "--set", f"quantizer.batch_norm={mode}")
    assert call("export", run).exit_code == 0
    assert call("build", run, "--runtime", "onnxruntime").exit_code == 0
    result = call("eval", run)
    exact = optimized_is_exact("paper")
    assert result.exit_code == 0 or not exact, result.output
    judged = {"quantized", "reference", "onnxruntime", *(["engine"] if exact else [])}
    stages = [stage for stage in report_of(run)["stages"] if stage["kind"] in judged]  # type: ignore[attr-defined]
    assert len(stages) >= 3
    assert all(stage["flips"] == 0 for stage in stages)


@pytest.mark.skipif(find_spec("tensorrt_rtx") is None, reason="tensorrt-rtx is not installed")
def test_engines_for_four_architectures_and_their_manifests(call: Call, run_copy: Path) -> None:
    sms = (75, 86, 89, 120)
    options = [part for sm in sms for part in ("--sm", sm)]
    result = call("build", run_copy, "--runtime", "tensorrt-rtx", *options, "--json")
    assert result.exit_code == 0, result.output
    for sm in sms:
        folder = run_copy / "engines" / f"tensorrt-rtx-sm{sm}"
        manifest = json.loads((folder / "manifest.json").read_text())
        engine = folder / manifest["file"]
        assert (manifest["sm"], manifest["runtime"], manifest["target"]) == (sm, "tensorrt-rtx", "tensorrt")
        assert manifest["bytes"] == engine.stat().st_size > 10_000
        assert manifest["profile"]["input"] == [[1, 1, 8, 8], [8, 1, 8, 8], [32, 1, 8, 8]]
    printed = call("build", run_copy, "--runtime", "tensorrt-rtx", *options).stdout  # they are kept
    assert printed.count("Built ahead of time") == 1
    assert "it needs a GPU of SM 75, 86, 89 or 120 and this TensorRT-RTX version." in printed
    skipped = call("eval", run_copy)
    assert skipped.exit_code == 3
    assert "A skipped engine is not a passed one" in skipped.output
    assert call("eval", run_copy, "--allow-skip").exit_code == 0
    result = call("eval", run_copy, "--engine", "onnxruntime")
    assert result.exit_code == 0, result.output
    assert "The same integers in all that ran here: 0 of" in result.output
    assert "4 built engines were not asked for." in result.output
    rows = {e["name"]: (e["status"], e["note"]) for e in report_of(run_copy)["engines"]}  # type: ignore[attr-defined]
    assert rows["onnxruntime"][0] == "ran"
    for sm in sms:
        status, note = rows[f"tensorrt-rtx-sm{sm}"]
        assert status == "not asked for"
        assert "run here" in note
        assert any(
            line.split() == ["engine", f"tensorrt-rtx-sm{sm}", "not", "asked", "for"]
            for line in result.output.splitlines()
        )


def test_eval_passes_without_an_engine_only_when_asked_to(call: Call, make_run: Callable[..., Path]) -> None:
    run = make_run("--epochs", 0)
    assert call("export", run).exit_code == 0
    result = call("eval", run)
    assert result.exit_code == 3
    assert "NOT PASSED (exit code 3). No engine was built, so none was judged." in result.output
    assert "Build one with `faq-deploy build`, or pass --allow-skip" in result.output
    assert report_of(run)["verdict"]["passed"] is False  # type: ignore[index]
    result = call("eval", run, "--allow-skip")
    assert result.exit_code == 0
    assert "PASSED." in result.output and "No engine was built, so none was judged." in result.output
    assert "has no engine onnxruntime" in call("eval", run, "--engine", "onnxruntime").output
    assert call("build", run, "--runtime", "onnxruntime").exit_code == 0
    assert call("eval", run).exit_code == 0


def test_installed_program_prints_results_on_stdout_and_progress_on_stderr(program: Program, run_copy: Path) -> None:
    done = program("eval", run_copy, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["verdict"]["passed"] is True
    done = program("export", run_copy)
    assert done.returncode == 0, done.stderr
    assert "0 of" in done.stdout
    assert "comparing" in done.stderr and "comparing" not in done.stdout


def test_export_writes_the_same_bytes_twice(call: Call, run_copy: Path) -> None:
    first = (run_copy / "model.onnx").read_bytes()
    assert call("export", run_copy).exit_code == 0
    assert (run_copy / "model.onnx").read_bytes() == first


def test_report_is_self_contained(call: Call, run_copy: Path) -> None:
    assert call("eval", run_copy).exit_code == 0
    page = (run_copy / "report.html").read_text()
    assert "PyTorch quantized" in page
    assert 'src="http' not in page and 'href="http' not in page
    assert len(page) < 1_000_000


def test_calibration_only_run(call: Call, make_run: Callable[..., Path]) -> None:
    run = make_run("--epochs", 0)
    assert not (run / "metrics.jsonl").exists()
    assert call("export", run).exit_code == 0
    assert call("build", run, "--runtime", "onnxruntime").exit_code == 0
    assert call("eval", run).exit_code == 0


def test_same_command_gives_the_same_net(make_run: Callable[..., Path]) -> None:
    first, second = (torch.load(make_run() / "quantized.pt", weights_only=True) for _ in range(2))
    assert first["graph"] == second["graph"] and first["facts"] == second["facts"]
    for key, value in first["state"].items():
        assert torch.equal(value, second["state"][key]), key


def test_samples_are_pixels_of_validation_images(exported: Path) -> None:
    with np.load(exported / "samples.npz") as samples:
        assert samples["pixels"].shape == (32, 8, 8, 1)
        assert samples["pixels"].dtype == np.uint8
        assert len(set(samples["labels"].tolist())) == 10


def test_engine_that_was_not_built_is_named(call: Call, run_copy: Path) -> None:
    result = call("eval", run_copy, "--engine", "tensorrt-typo", "--allow-skip")
    assert result.exit_code == 2
    assert "has no engine tensorrt-typo." in result.output
    assert "built are onnxruntime" in result.output
