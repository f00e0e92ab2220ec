"""`engines.load`: from an engine's folder or an ONNX file to a runner, without torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import engines
from engines.errors import InputError
from engines.run_folder import RunFolder
from tests.engine_nets import built, exported_run
from tests.onnx_nets import images, residual_net, saved

ROOT = Path(__file__).parents[1]

WITHOUT_TORCH = """
import sys

class KeepOut:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "torchvision", "faq_deploy"):
            raise ModuleNotFoundError(f"{name} is kept out by this test", name=name)

sys.meta_path.insert(0, KeepOut())
import numpy, engines
from engines import load
for runtime in ("onnxruntime", "oracle", "reference"):
    runner = load(sys.argv[1], runtime)
    logits = runner(numpy.zeros((2, *map(int, sys.argv[2:])), numpy.float32))
    assert logits.dtype == numpy.float32 and len(logits) == 2, logits
    runner.close()
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """Exported, with its onnxruntime engine."""
    run = exported_run(tmp_path_factory.mktemp("load") / "run")
    built(run, ["onnxruntime"])
    return run


def test_an_engines_folder_and_an_onnx_file_give_the_same_logits(run: RunFolder) -> None:
    batch = images(0, 3, 16)
    outputs = [
        engines.load(run / "engines" / "onnxruntime")(batch),
        engines.load(str(run / "model.onnx"))(batch),
        engines.load(run / "model.onnx", "oracle")(batch),
        engines.load(run / "model.onnx", "reference")(batch),
    ]
    assert all(np.array_equal(output, outputs[0]) for output in outputs)
    assert len(np.unique(outputs[0])) > 3


def test_runner_has_its_runtimes_name(tmp_path: Path) -> None:
    path = saved(residual_net("tensorrt", 0), tmp_path)
    names = [engines.load(path, runtime).name for runtime in ("onnxruntime", "oracle", "reference")]
    assert names == ["onnxruntime", "oracle", "reference"]


def test_a_run_is_refused_with_the_names_of_its_engines(run: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a run, not an engine") as caught:
        engines.load(run.path)
    assert caught.value.remedy == f"name one of its engines: {run / 'engines' / 'onnxruntime'}."
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "quantized.pt").touch()
    with pytest.raises(InputError, match="is a run, not an engine") as caught:
        engines.load(bare)
    assert f"faq-deploy build {bare}" in caught.value.remedy


def test_a_missing_file_and_an_empty_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"There is no .*absent\.onnx"):
        engines.load(tmp_path / "absent.onnx")
    with pytest.raises(InputError, match=str(tmp_path)):
        engines.load(tmp_path)


def test_an_onnx_file_is_not_run_by_tensorrt(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not run by tensorrt") as caught:
        engines.load(saved(residual_net("tensorrt", 0), tmp_path), "tensorrt")  # type: ignore[arg-type]
    assert "faq-deploy build" in caught.value.remedy


def test_it_needs_no_torch(tmp_path: Path) -> None:
    path = saved(residual_net("tensorrt", 0), tmp_path)
    shape = ["3", "33", "33"]
    command = [sys.executable, "-c", WITHOUT_TORCH, str(path), *shape]
    done = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
