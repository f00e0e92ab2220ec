"""The base install on a machine that never had torch: the steps of docker/Dockerfile.cpu make it, then it is used."""

from __future__ import annotations

import importlib.metadata
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.dockerfile import ROOT, Image, built
from tests.e2e.conftest import Call

pytestmark = pytest.mark.xdist_group("digits")

PINS = dict(re.findall(r"^([a-z][a-z0-9-]*)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
NEVER = ("torch", "torchvision", "lightning-fabric", "jinja2", "matplotlib", "scikit-learn", "timm")


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    """What docker/Dockerfile.cpu makes, in a folder; takes about 15 seconds, most of them pip's."""
    folder = tmp_path_factory.mktemp("image")
    pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder / "try")]
    reached = subprocess.run([*pip, f"click=={PINS['click']}"], capture_output=True, text=True, check=False)
    if reached.returncode != 0:
        pytest.skip(f"pip reaches no index here: {reached.stderr.strip().splitlines()[-1]}")
    return built(ROOT / "docker" / "Dockerfile.cpu", folder / "root")


@pytest.fixture(scope="module")
def model(image: Image, exported: Path) -> str:
    """The exported net in the container's working folder, by the name it has there."""
    shutil.copy(exported / "model.onnx", image.path("digits.onnx"))
    return "digits.onnx"


def test_install_is_the_pinned_base_without_torch(image: Image) -> None:
    done = image.shell("python -m pip list --format json")
    found = {entry["name"].lower().replace("_", "-"): entry["version"] for entry in json.loads(done.stdout)}
    ours = found.pop("faq-deploy")
    assert ours == importlib.metadata.version("faq-deploy")
    assert found.keys().isdisjoint(NEVER)
    others = found.keys() - {"pip", "setuptools"}
    assert {name: found[name] for name in others} == {name: PINS[name] for name in others}
    assert {"click", "numpy", "onnx", "onnxruntime", "pillow", "pydantic"} <= others


def test_torch_can_not_be_imported(image: Image) -> None:
    done = image.shell("python -c 'import torch'")
    assert done.returncode == 1
    assert "ModuleNotFoundError: No module named 'torch'" in done.stderr


def test_command_comes_from_the_install_and_not_from_the_checkout(image: Image) -> None:
    done = image.shell("python -c 'import cli, engines, faq_deploy; print(cli.__file__, engines.__file__)'")
    assert done.returncode == 0, done.stderr
    assert [Path(name).is_relative_to(image.path("/usr/local")) for name in done.stdout.split()] == [True, True]


def test_container_without_a_command_shows_the_help(image: Image) -> None:
    done = image.run()
    assert done.returncode == 0
    assert "Usage: faq-deploy" in done.stdout


def test_doctor_says_what_is_missing_and_how_to_get_it(image: Image) -> None:
    done = image.run("doctor", "--json")
    assert done.returncode == 0, done.stderr
    checks = {check["name"]: check for check in json.loads(done.stdout)}
    assert (checks["torch"]["status"], checks["onnxruntime"]["status"]) == ("missing", "ok")
    assert "pip install 'faq-deploy[torch]'" in checks["torch"]["remedy"]


def test_lint_snap_and_build_need_no_torch(image: Image, model: str) -> None:
    done = image.run("lint", model)
    assert (done.returncode, done.stdout) == (0, f"{model}, for target tensorrt: nothing to remark.\n")
    done = image.run("snap", model, "-o", "po2.onnx")
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "po2.onnx, for target tensorrt: nothing to remark.")
    done = image.run("build", model, "--runtime", "onnxruntime", "-o", "engines", "--json")
    assert done.returncode == 0, done.stderr
    assert [engine["status"] for engine in json.loads(done.stdout)["engines"]] == ["built"]
    assert image.path("engines/onnxruntime/manifest.json").is_file()


def test_engine_that_was_built_there_computes_what_it_does_here(image: Image, model: str, exported: Path) -> None:
    code = """
import sys, zlib
from pathlib import Path
import numpy as np
from engines.ort import OrtRunner
images = np.linspace(-2, 2, 4 * 64, dtype=np.float32).reshape(4, 1, 8, 8)
print(zlib.crc32(OrtRunner(Path(sys.argv[1]))(images).tobytes()))
"""
    image.path("run.py").write_text(code)
    there = image.shell(f"python run.py {model}")
    assert there.returncode == 0, there.stderr
    here = [sys.executable, str(image.path("run.py")), str(exported / "model.onnx")]
    assert there.stdout == subprocess.run(here, capture_output=True, text=True, check=True, cwd=ROOT).stdout


@pytest.fixture(scope="module")
def bundle(image: Image, call: Call, exported: Path) -> str:
    """A bundle in the container's working folder, by the name it has there."""
    result = call("bundle", exported, "-o", image.path("digits.tgz"))
    assert result.exit_code == 0, result.output
    return "digits.tgz"


def test_verify_needs_no_torch(image: Image, bundle: str) -> None:
    done = image.run("verify", bundle, "--runtime", "onnxruntime", "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert (said["file"]["images"], said["file"]["first"], said["engines"][0]["status"]) == (32, None, "identical")
    assert said["engines"][0]["logits"] == {"images": 32, "differing": 0, "largest_difference": 0.0, "flips": 0}


def test_eval_of_a_bundle_needs_no_torch(image: Image, bundle: str) -> None:
    done = image.run("eval", "--bundle", bundle, "--engine", "onnxruntime", "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert (said["images"], said["exit_code"], said["engines"][0]["parity"]["flips"]) == (32, 0, 0)


@pytest.mark.parametrize(
    "command",
    [
        ("quantize", "torchvision:resnet18", "--data", "photos", "-o", "run"),
        ("quantize", "net.py:build", "--data", "photos", "-o", "run"),
        ("train", "builtin:digits-resnet", "--data", "digits", "-o", "run"),
        ("inspect", "torchvision:resnet18"),
        ("export", "run"),
        ("eval", "run"),
        ("demo", "-o", "demo"),
    ],
    ids=lambda command: "-".join(command[:2]),
)
def test_verbs_that_need_torch_say_how_to_get_it(image: Image, command: tuple[str, ...]) -> None:
    done = image.run(*command)
    assert done.returncode == 3
    error, note = done.stderr.splitlines()[-2:]
    assert re.fullmatch(r"Error: `faq-deploy (\w+)` needs torch, which is not installed\. \[not-installed\]", error)
    assert note.startswith("Note: pip install 'faq-deploy[torch]'")
    assert "Traceback" not in done.stderr
    if command[0] != "demo":  # whose first step is the one that needs torch
        assert len(done.stderr.splitlines()) == 2
        assert not image.path("run").exists()


def test_eval_without_torch_names_the_way_that_needs_none(image: Image) -> None:
    assert "`faq-deploy eval --bundle FILE`" in image.run("eval", "run").stderr


def test_recipes_and_help_need_no_torch(image: Image) -> None:
    assert "faq-4bit" in image.run("recipes").stdout
    assert image.run("recipes", "show", "faq-4bit").stdout.startswith("#")
    for verb in ("quantize", "train", "inspect", "export", "build", "eval", "bundle", "verify", "lint", "snap", "demo"):
        done = image.run(verb, "--help")
        assert (done.returncode, done.stderr) == (0, ""), verb
