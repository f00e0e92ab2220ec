"""An engine's folder: what is written into it, and when it is built again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from engines import build, engine_folder
from engines.engine_manifest import check
from engines.files import sha256_of
from engines.host import Gpu, Host, RuntimeName
from engines.profile import Profile
from engines.run_folder import RunFolder
from engines.tensorrt import BuiltEngine
from tests.engine_nets import VERSION, built, exported_run, needs_rtx


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return exported_run(tmp_path / "run")


def test_onnxruntime_engine_is_the_checked_onnx_file(run: RunFolder) -> None:
    manifest = built(run, ["onnxruntime"])["onnxruntime"].manifest
    assert manifest is not None
    assert (run / "engines/onnxruntime/model.onnx").read_bytes() == (run / "model.onnx").read_bytes()
    assert manifest.sha256 == manifest.onnx_sha256
    assert manifest.sm is None
    assert "--target onnxruntime is faster here" in manifest.notes[0]


@pytest.mark.parametrize("runtime", ["onnxruntime", pytest.param("tensorrt-rtx", marks=needs_rtx)])
def test_four_bits_are_not_sold_as_int4(tmp_path: Path, runtime: RuntimeName) -> None:
    run = exported_run(tmp_path / "run", metadata={"target": "tensorrt", "recipe": {"bits": 4}})
    (result,) = built(run, [runtime], [86] if runtime == "tensorrt-rtx" else []).values()
    assert result.manifest is not None
    engine = "onnxruntime" if runtime == "onnxruntime" else "TensorRT"
    assert result.manifest.notes[0] == f"4-bit values in INT8 kernels: {engine} has no INT4 convolution."


@needs_rtx
def test_engine_built_ahead_of_time_says_that_it_did_not_run(run: RunFolder) -> None:
    manifest = built(run, [], [86])["tensorrt-rtx-sm86"].manifest
    assert manifest is not None
    assert manifest.notes[0].startswith("Built ahead of time and not run: it needs a GPU of SM 86")
    assert "INT8 only for weight-only GEMM" in manifest.notes[1]


def test_tensorrt_engine_is_recorded_with_its_gpu(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Gpu("NVIDIA A10", 86, 24 << 30)

    def on_gpu(onnx_path: Path, profile: Profile, output: Path, *, timing_cache: Path) -> BuiltEngine:
        output.parent.mkdir(parents=True)
        output.write_bytes(b"engine")
        return BuiltEngine(output, "10.13.3.9", 2.0, {"input": profile.shapes((-1, 3, 16, 16))}, ("Slow.",) * 2, gpu)

    monkeypatch.setattr(engine_folder, "build_tensorrt", on_gpu)
    manifest = built(run, ["tensorrt"])["tensorrt"].manifest
    assert manifest is not None
    assert (manifest.gpu, manifest.sm, manifest.notes) == ("NVIDIA A10", 86, ("Slow.",))
    assert manifest.versions["tensorrt"] == "10.13.3.9"


Change = Callable[[RunFolder], object]


def _edit_manifest(**changes: object) -> Change:
    def edit(run: RunFolder) -> None:
        file = run / "engines/onnxruntime/manifest.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return edit


@pytest.mark.parametrize(
    "change",
    [
        lambda run: (run / "engines/onnxruntime/model.onnx").write_bytes(b""),
        lambda run: (run / "engines/onnxruntime/model.onnx").unlink(),
        lambda run: (run / "engines/onnxruntime/manifest.json").write_text("{"),
        _edit_manifest(runtime="tensorrt"),
        _edit_manifest(onnx_sha256="0" * 64),
        lambda run: exported_run(run.path, seed=1),
    ],
    ids=["emptied", "removed", "record damaged", "another runtime", "another ONNX", "exported again"],
)
def test_engine_that_no_longer_fits_is_built_again(run: RunFolder, change: Change) -> None:
    assert built(run, ["onnxruntime"])["onnxruntime"].status == "built"
    assert built(run, ["onnxruntime"])["onnxruntime"].status == "kept"
    change(run)
    assert built(run, ["onnxruntime"])["onnxruntime"].status == "built"
    assert check(run / "engines/onnxruntime", sha256_of(run / "model.onnx")).file == "model.onnx"


@needs_rtx
def test_other_batch_sizes_or_version_need_a_new_engine(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def status(profile: Profile) -> str:
        return built(run, [], [86], profile)["tensorrt-rtx-sm86"].status

    assert [status(Profile()), status(Profile(1, 2, 4)), status(Profile(1, 2, 4))] == ["built", "built", "kept"]
    monkeypatch.setattr(build, "this_host", lambda: Host(None, {"tensorrt-rtx": "1.8.0.1"}))
    assert status(Profile(1, 2, 4)) == "built"
    monkeypatch.setattr(build, "this_host", lambda: Host(None, {}))  # nothing here that could build a better one
    assert status(Profile(1, 2, 4)) == "kept"


def test_kept_engine_gets_back_a_record_that_export_dropped(run: RunFolder) -> None:
    built(run, ["onnxruntime"])
    run.record("export", version=VERSION, inputs=["quantized.pt"], outputs=["model.onnx"], after=["build"])
    assert "build/onnxruntime" not in run.manifest().steps
    assert built(run, ["onnxruntime"])["onnxruntime"].status == "kept"
    assert run.require("build/onnxruntime", "engines/onnxruntime/model.onnx").is_file()
