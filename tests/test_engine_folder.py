"""An engine's folder: what is written into it, and when it is built again."""

from __future__ import annotations

import copy
import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from engines import build, engine_folder, engine_source, onnx_facts
from engines.build import build_onnx_file
from engines.build_options import BuildOptions
from engines.engine_manifest import check
from engines.errors import WriteError
from engines.files import sha256_of
from engines.host import Gpu, Host, RuntimeName
from engines.prepare import Prepared
from engines.profile import Profile
from engines.run_folder import RunFolder
from engines.tensorrt import BuilderRefusal, BuiltEngine
from tests.engine_nets import (
    DEFAULTS,
    VERSION,
    built,
    classifier,
    exported_run,
    needs_rtx,
    statuses,
    two_inputs,
)


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

    def on_gpu(onnx_path: Path, profile: Profile, output: Path, **settings: object) -> BuiltEngine:
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
        return built(run, [], [86], BuildOptions(profile))["tensorrt-rtx-sm86"].status

    assert [status(Profile()), status(Profile(1, 2, 4)), status(Profile(1, 2, 4))] == ["built", "built", "kept"]
    monkeypatch.setattr(build, "this_host", lambda: Host(None, {"tensorrt-rtx": "1.8.0.1"}))
    assert status(Profile(1, 2, 4)) == "built"
    monkeypatch.setattr(build, "this_host", lambda: Host(None, {}))  # nothing here that could build a better one
    assert status(Profile(1, 2, 4)) == "kept"


@needs_rtx
def test_other_options_need_a_new_engine(run: RunFolder) -> None:
    def status(**changes: bool) -> str:
        return built(run, [], [86], BuildOptions(**changes))["tensorrt-rtx-sm86"].status  # type: ignore[arg-type]

    assert [status(), status(), status(fp16_rest=True), status(fp16_rest=True)] == ["built", "kept", "built", "kept"]


@needs_rtx
@pytest.mark.parametrize("sm", [75, 86])
def test_baseline_is_an_engine_of_its_own_that_eval_does_not_see(run: RunFolder, sm: int) -> None:
    options = BuildOptions(fp16_baseline=True)
    results = built(run, ["tensorrt-rtx", "onnxruntime"], [sm], options)
    assert statuses(results) == dict.fromkeys(
        [f"tensorrt-rtx-sm{sm}", "onnxruntime", f"tensorrt-rtx-sm{sm}-fp16"], "built"
    )
    baseline = results[f"tensorrt-rtx-sm{sm}-fp16"].manifest
    assert baseline is not None
    assert baseline.baseline
    assert "never compared" in baseline.notes[1]
    assert f"build/tensorrt-rtx-sm{sm}-fp16" not in run.manifest().steps
    assert set(statuses(built(run, ["tensorrt-rtx", "onnxruntime"], [sm], options)).values()) == {"kept"}


def test_prepared_network_and_its_notes_reach_the_engine(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def renamed(model: onnx.ModelProto, *arguments: object) -> Prepared:
        other = onnx.ModelProto()
        other.CopyFrom(model)
        other.graph.name = "prepared"
        return Prepared(other, ("It was renamed.",))

    monkeypatch.setattr(engine_source, "prepare", renamed)
    manifest = built(run, ["onnxruntime"])["onnxruntime"].manifest
    assert manifest is not None
    assert onnx.load(run / "engines/onnxruntime/model.onnx").graph.name == "prepared"
    assert manifest.notes[-1] == "It was renamed."
    assert manifest.onnx_sha256 == sha256_of(run / "model.onnx") != manifest.sha256


def test_file_that_changes_during_the_build_is_refused(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def edit(*arguments: object) -> None:
        classifier(run / "model.onnx", seed=9)

    monkeypatch.setattr(engine_folder, "_check_session", edit)
    for prepared in (False, True):
        exported_run(run.path)
        if prepared:
            monkeypatch.setattr(engine_source, "prepare", lambda *arguments: Prepared(onnx.ModelProto()))
        (result,) = built(run, ["onnxruntime"]).values()
        assert (result.status, result.remedy) == ("failed", "build again.")
        assert "was changed during the build" in result.reason
        assert not (run / "engines/onnxruntime/model.onnx").exists()


@needs_rtx
def test_message_names_the_users_file_and_not_the_prepared_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = exported_run(tmp_path / "run", input_shape=("N", 3, "H", "W"))
    monkeypatch.setattr(engine_source, "prepare", lambda model, *arguments: Prepared(copy.deepcopy(model)))
    (result,) = built(run, [], [86]).values()
    assert result.reason.startswith(f"{run.path}/model.onnx: input 'input' has shape (-1, 3, -1, -1), dynamic in more")


@needs_rtx
def test_network_with_two_inputs_builds_for_both_runtimes(tmp_path: Path) -> None:
    model = two_inputs(tmp_path / "model.onnx")
    results = build_onnx_file(model, tmp_path / "engines", ["tensorrt-rtx", "onnxruntime"], [86], DEFAULTS, version="1")
    assert [result.status for result in results] == ["built", "built"]
    manifest = results[0].manifest
    assert manifest is not None
    assert manifest.profile == {
        "left": ((1, 3, 16, 16), (8, 3, 16, 16), (32, 3, 16, 16)),
        "right": ((1, 3, 16, 16),) * 3,
    }


def test_layers_that_the_inspector_told_are_kept_beside_the_engine(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = Gpu("NVIDIA A10", 86, 24 << 30)
    layers: list[str | None] = ['{"Layers": []}', None]

    def on_gpu(onnx_path: Path, profile: Profile, output: Path, **settings: object) -> BuiltEngine:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_bytes(b"engine")
        shapes = {"input": profile.shapes((-1, 3, 16, 16))}
        return BuiltEngine(output, "10.13.3.9", 2.0, shapes, (), gpu, ("A note.",), layers.pop(0))

    monkeypatch.setattr(engine_folder, "build_tensorrt", on_gpu)
    options = BuildOptions(hardware="same-cc")
    manifest = built(run, ["tensorrt"], [], options)["tensorrt"].manifest
    assert manifest is not None
    assert (run / "engines/tensorrt/layers.json").read_text() == '{"Layers": []}'
    assert manifest.notes[0].startswith("Runs on every GPU of this compute capability")
    assert manifest.notes[1] == "A note."
    (run / "engines/tensorrt/model.engine").unlink()
    built(run, ["tensorrt"], [], options)
    assert not (run / "engines/tensorrt/layers.json").exists()  # they were those of the first engine


@pytest.mark.parametrize(
    ("engines", "said"), [(b"aaa", "each time the same file"), (b"aba", "2 different files"), (b"abc", "3 different")]
)
def test_rebuilds_say_how_many_engines_differ(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, engines: bytes, said: str
) -> None:
    left = list(engines)

    def on_gpu(onnx_path: Path, profile: Profile, output: Path, **settings: object) -> BuiltEngine:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_bytes(bytes([left.pop(0)]))
        gpu = Gpu("NVIDIA A10", 86, 24 << 30)
        return BuiltEngine(output, "10.13.3.9", 2.0, {"input": profile.shapes((-1, 3, 16, 16))}, (), gpu)

    monkeypatch.setattr(engine_folder, "build_tensorrt", on_gpu)
    manifest = built(run, ["tensorrt"], [], BuildOptions(rebuilds=3))["tensorrt"].manifest
    assert manifest is not None
    assert manifest.notes[0].startswith(f"Built 3 times: {said}")
    assert (run / "engines/tensorrt/model.engine").read_bytes() == engines[-1:]
    assert left == []


def test_full_disk_ends_the_build_with_nothing_half_written(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: Path, target: Path) -> None:
        Path(target).write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(WriteError, match=r"onnxruntime/model\.onnx could not be written: No space left on device"):
        built(run, ["onnxruntime"])
    assert list((run / "engines/onnxruntime").iterdir()) == []


@needs_rtx
def test_refused_network_leaves_its_smallest_failing_part(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    classifier(run / "model.onnx", gemm=True, metadata={"modules": {"classifier": "head.fc"}})
    facts = onnx_facts.read(run / "model.onnx")
    wanted = engine_folder.WantedEngine("tensorrt-rtx-sm75", "tensorrt-rtx", 75)
    folder = run / "engines/tensorrt-rtx-sm75"
    with monkeypatch.context() as patch:  # as of a form that no pass knows
        patch.setattr(engine_source, "prepare", lambda model, *arguments: Prepared(model))
        with pytest.raises(BuilderRefusal, match=r"Gemm classifier \(module head\.fc\)"):
            engine_folder.build(folder, wanted, facts, DEFAULTS, VERSION)
    assert [file.name for file in folder.iterdir()] == ["failing.onnx"]
    engine_folder.build(folder, wanted, facts, DEFAULTS, VERSION)
    assert sorted(file.name for file in folder.iterdir()) == ["manifest.json", "model.engine"]


def test_kept_engine_gets_back_a_record_that_export_dropped(run: RunFolder) -> None:
    built(run, ["onnxruntime"])
    run.record("export", version=VERSION, inputs=["quantized.pt"], outputs=["model.onnx"], after=["build"])
    assert "build/onnxruntime" not in run.manifest().steps
    assert built(run, ["onnxruntime"])["onnxruntime"].status == "kept"
    assert run.require("build/onnxruntime", "engines/onnxruntime/model.onnx").is_file()
