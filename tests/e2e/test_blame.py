"""Seeded faults: `eval` fails, and its first lines name the layer or the cause."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest
from click.testing import Result
from onnx import numpy_helper
from PIL import Image

from engines.files import sha256_of
from engines.onnx_metadata import metadata_of
from engines.qdq_graph import read_graph
from faq_deploy.statistics import wilson
from tests.cpu_kernels import VNNI

Call = Callable[..., Result]

QEMU = shutil.which("qemu-x86_64")
MEAN, STD = "0.49,0.48,0.45", "0.25,0.24,0.26"
COLOURS = {
    "blue": (40, 60, 200),
    "brown": (110, 70, 40),
    "dark": (60, 60, 60),
    "green": (50, 160, 60),
    "orange": (220, 130, 40),
    "red": (200, 40, 50),
    "teal": (40, 130, 150),
    "white": (205, 205, 205),
}
NET = """
from torch import nn

def build(num_classes: int = 8) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, num_classes),
    )
"""


def write_colours(folder: Path, *, per_class: tuple[int, int] = (40, 20)) -> Path:
    """Noisy 16x16 images whose class is their colour."""
    rng = np.random.default_rng(0)
    for split, count in zip(("train", "val"), per_class, strict=True):
        for name, colour in COLOURS.items():
            (folder / split / name).mkdir(parents=True)
            for index in range(count):
                noisy = np.array(colour) + rng.normal(0, 18, 3) + rng.normal(0, 30, (16, 16, 3))
                pixels = noisy.clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def colours(call: Call, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images, a float net that knows their colours, and a quantized run with an onnxruntime engine."""
    root = tmp_path_factory.mktemp("colours")
    data = write_colours(root / "data")
    (root / "net.py").write_text(NET)
    model = f"{root / 'net.py'}:build"
    shape = ("--resize", 0, "--crop", 16, "--mean", MEAN, "--std", STD)
    brief = ("--epochs", 6, "--lr", 0.05, "--batch-size", 32, "--seed", 1)
    result = call("train", model, "--data", data, "-o", root / "float", *shape, *brief)
    assert result.exit_code == 0, result.output
    make_run(call, root, root / "run")
    return root


def make_run(call: Call, root: Path, run: Path, *options: object) -> Path:
    """Quantize the float net for onnxruntime, export it and build an engine."""
    given = ("--weights", root / "float" / "float.pth", "--data", root / "data", "--target", "onnxruntime", *options)
    for line in (
        ("quantize", f"{root / 'net.py'}:build", *given, "--recipe", "quick", "--epochs", 0, "-o", run),
        ("export", run),
        ("build", run, "--runtime", "onnxruntime"),
    ):
        result = call(*line)
        assert result.exit_code == 0, result.output
    return run


@pytest.fixture
def coloured(colours: Path, tmp_path: Path) -> Path:
    """A copy of the coloured run."""
    return Path(shutil.copytree(colours / "run", tmp_path / "run"))


def first_lines(result: Result, count: int = 5) -> str:
    return "\n".join(result.stdout.splitlines()[:count])


def report_of(run: Path) -> dict[str, object]:
    found = json.loads((run / "report.json").read_text("utf-8"))
    assert isinstance(found, dict)
    return found


def failed(call: Call, run: Path, folder: Path, *options: object) -> Result:
    """An evaluation that ends with exit code 1 and with JUnit failures, each of which says the likely cause."""
    result = call("eval", run, *options, "--junit", folder / "junit.xml")
    assert result.exit_code == 1, result.output
    failures = failures_in(folder / "junit.xml")
    assert failures and all("Likely cause: " in said for said in failures.values())
    return result


def failures_in(path: Path) -> dict[str | None, str]:
    """The failed test cases of a JUnit file and what they say."""
    cases = ElementTree.parse(path).getroot().findall("testcase")
    return {case.get("name"): failure.text or "" for case in cases for failure in case.findall("failure")}


def rewritten(run: Path, change: Callable[[onnx.ModelProto], None]) -> None:
    """Change model.onnx and record it as if the exporter had written it so: else its sha256 would tell."""
    path = run / "model.onnx"
    model = onnx.load(path)
    change(model)
    onnx.save(model, path)
    manifest = json.loads((run / "manifest.json").read_text("utf-8"))
    manifest["steps"]["export"]["outputs"]["model.onnx"] = sha256_of(path)
    (run / "manifest.json").write_text(json.dumps(manifest))


def without_engines(run: Path) -> None:
    """As if none had been built yet."""
    manifest = json.loads((run / "manifest.json").read_text("utf-8"))
    manifest["steps"] = {name: step for name, step in manifest["steps"].items() if not name.startswith("build/")}
    (run / "manifest.json").write_text(json.dumps(manifest))
    shutil.rmtree(run / "engines")


def initializer(model: onnx.ModelProto, name: str) -> onnx.TensorProto:
    (found,) = (tensor for tensor in model.graph.initializer if tensor.name == name)
    assert isinstance(found, onnx.TensorProto)
    return found


def weight_of(model: onnx.ModelProto, layer: str) -> tuple[str, str]:
    """The names of a layer's weight codes and of their scale."""
    graph = read_graph(model)
    reader = graph.producer[next(node for node in graph.nodes if node.name == layer).input[1]]
    return reader.input[0], reader.input[1]


def second_layer(model: onnx.ModelProto) -> str:
    return [str(node.name) for node in model.graph.node if node.op_type == "Conv"][1]


def built_anew(call: Call, run: Path) -> None:
    result = call("build", run, "--runtime", "onnxruntime", "--force")
    assert result.exit_code == 0, result.output


def test_clean_run_passes_and_blames_nobody(call: Call, coloured: Path) -> None:
    result = call("eval", coloured)
    assert result.exit_code == 0, result.output
    assert "Likely cause" not in result.output
    assert report_of(coloured)["blame"] is None


def test_a_weight_code_that_is_one_off_is_named_with_its_layer(call: Call, coloured: Path, tmp_path: Path) -> None:
    named: list[str] = []

    def change(model: onnx.ModelProto) -> None:
        named.append(second_layer(model))
        tensor = initializer(model, weight_of(model, named[0])[0])
        codes = numpy_helper.to_array(tensor).copy()
        codes[3, 2, 1, 1] += 1
        tensor.CopyFrom(numpy_helper.from_array(codes, tensor.name))

    rewritten(coloured, change)
    built_anew(call, coloured)
    result = failed(call, coloured, tmp_path, "--markdown", tmp_path / "summary.md")
    lines = first_lines(result)
    assert f" first leaves PyTorch quantized in {named[0]} (module 3)" in lines
    assert "in channel 3" in lines
    assert "Likely cause: model.onnx is not the net" in lines and "differs by 1, in channel 3" in lines
    blame = report_of(coloured)["blame"]
    assert isinstance(blame, dict)
    assert (blame["layer"], blame["cause"], blame["channel"]) == (named[0], "changed file", 3)
    failures = failures_in(tmp_path / "junit.xml")
    assert "numbers in model.onnx" in failures and "codes: engine onnxruntime" in failures
    assert "Likely cause: model.onnx is not the net" in (tmp_path / "summary.md").read_text("utf-8")


def test_a_doubled_scale_is_named_with_its_factor(call: Call, coloured: Path, tmp_path: Path) -> None:
    named: list[str] = []

    def change(model: onnx.ModelProto) -> None:
        named.append(second_layer(model))
        tensor = initializer(model, weight_of(model, named[0])[1])
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(2), tensor.name))

    rewritten(coloured, change)
    refused = call("build", coloured, "--runtime", "onnxruntime", "--force")
    assert refused.exit_code == 2 and f"Conv {named[0]}: the bias of channel" in refused.output
    without_engines(coloured)
    result = failed(call, coloured, tmp_path, "--allow-skip")
    lines = first_lines(result)
    assert f"integer reference (NumPy) first leaves PyTorch quantized in {named[0]}" in lines
    assert "Likely cause: model.onnx is not the net" in lines and "by a factor of 2" in lines


def test_a_file_that_was_changed_after_export_is_refused(call: Call, coloured: Path) -> None:
    path = coloured / "model.onnx"
    path.write_bytes(path.read_bytes() + b"\n")
    result = call("eval", coloured)
    assert result.exit_code == 2
    assert "was changed after `faq-deploy export` wrote it" in result.output


def test_swapped_mean_and_std_in_the_file_are_named(call: Call, coloured: Path, tmp_path: Path) -> None:
    def change(model: onnx.ModelProto) -> None:
        entry = next(prop for prop in model.metadata_props if "preprocessing" in prop.key)
        facts = json.loads(entry.value)
        facts["mean"], facts["std"] = facts["std"], facts["mean"]
        entry.value = json.dumps(facts)

    assert "preprocessing" in metadata_of(onnx.load(coloured / "model.onnx"))
    rewritten(coloured, change)
    built_anew(call, coloured)
    result = failed(call, coloured, tmp_path)
    assert "mean and std are swapped" in first_lines(result)


def test_a_net_quantized_with_swapped_mean_and_std_is_found_by_trying(
    call: Call, colours: Path, tmp_path: Path
) -> None:
    run = make_run(call, colours, tmp_path / "run", "--mean", STD, "--std", MEAN)
    result = failed(call, run, tmp_path, "--min-top1", 70)
    assert "Likely cause: mean and std are swapped" in first_lines(result)


def test_bgr_images_are_found_by_trying(call: Call, colours: Path, coloured: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(colours / "data", tmp_path / "bgr"))
    for path in sorted((data / "val").rglob("*.png")):
        Image.fromarray(np.asarray(Image.open(path))[..., ::-1].copy()).save(path)
    result = failed(call, coloured, tmp_path, "--data", data)
    assert "Likely cause: the images are BGR where the net wants RGB" in first_lines(result)
    assert "fall since quantize" in result.output


def test_an_old_engine_beside_a_new_file_is_refused_as_stale(call: Call, coloured: Path) -> None:
    def change(model: onnx.ModelProto) -> None:
        model.producer_version = "another"

    rewritten(coloured, change)
    result = call("eval", coloured)
    assert result.exit_code == 2
    assert f"{coloured / 'engines' / 'onnxruntime' / 'model.onnx'} was built from another" in result.output


def test_permuted_classes_are_named(call: Call, colours: Path, coloured: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(colours / "data", tmp_path / "permuted"))
    names = ["blue", "green", "red"]
    for name in names:
        (data / "val" / name).rename(data / "val" / f"{name}.moved")
    for old, new in zip(names, [*names[1:], names[0]], strict=True):
        (data / "val" / f"{old}.moved").rename(data / "val" / new)
    result = failed(call, coloured, tmp_path, "--data", data)
    lines = first_lines(result)
    assert "the classes are in another order: 3 of 8" in lines
    assert "green is called blue" in lines


@pytest.fixture(scope="module")
def for_vnni(call: Call, colours: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose 8-bit codes and weights are right on CPUs with VNNI alone."""
    return make_run(call, colours, tmp_path_factory.mktemp("vnni") / "run", "--cpu", "vnni")


@pytest.mark.skipif(VNNI, reason="this CPU has VNNI, so that 8-bit kernels don't saturate")
def test_saturating_kernels_are_named_on_a_cpu_without_vnni(call: Call, for_vnni: Path, tmp_path: Path) -> None:
    result = failed(call, for_vnni, tmp_path)
    assert "Likely cause: this CPU has no VNNI" in first_lines(result)


@pytest.mark.slow
@pytest.mark.skipif(QEMU is None, reason="qemu-x86_64 is not installed (Debian package qemu-user)")
@pytest.mark.skipif(platform.machine() != "x86_64", reason="the emulator runs this machine's x86-64 Python")
def test_saturating_kernels_are_named_on_an_emulated_haswell(colours: Path, for_vnni: Path, tmp_path: Path) -> None:
    assert QEMU is not None
    data = few_images(colours, tmp_path / "few")
    program = [QEMU, "-cpu", "Haswell", sys.executable, str(Path(sys.executable).parent / "faq-deploy")]
    sizes = ["--code-images", "2", "--reference-images", "1"]
    command = [*program, "eval", str(for_vnni), "--data", str(data), *sizes]
    environment = {**os.environ, "COLUMNS": "140"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800, env=environment, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Likely cause: this CPU has no VNNI" in "".join(done.stdout.splitlines(keepends=True)[:5])


def few_images(colours: Path, folder: Path, per_class: int = 2) -> Path:
    """The data with only so many validation images a class."""
    data = Path(shutil.copytree(colours / "data", folder))
    for path in sorted((data / "val").rglob("*.png")):
        if int(path.stem) >= per_class:
            path.unlink()
    return data


def test_few_images_are_not_blamed_for_bad_luck(call: Call, colours: Path, coloured: Path, tmp_path: Path) -> None:
    """Two images a class: luck alone moves top-1 by points."""
    data = few_images(colours, tmp_path / "few")
    result = call("eval", coloured, "--data", data)
    assert result.exit_code == 0, result.output
    assert wilson(16, 16).low < 85
