"""The verb `build`: which engines are made, refused or failed, and what becomes of the others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from engines import build, engine_folder, onnx_facts
from engines.build import BuildEvent, BuildResult, build_engines, build_onnx_file, exit_code
from engines.engine_manifest import EngineManifest, check
from engines.errors import CannotRunHere, InputError
from engines.files import sha256_of
from engines.host import Gpu, Host, RuntimeName, this_host
from engines.profile import Profile
from engines.run_folder import RunFolder
from engines.tensorrt import BuiltEngine, build_rtx
from tests.engine_nets import DEFAULTS, VERSION, built, classifier, exported_run, needs_rtx, statuses


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return exported_run(tmp_path / "run")


@needs_rtx
def test_each_architecture_gets_an_engine_a_manifest_and_a_record(run: RunFolder) -> None:
    results = built(run, ["tensorrt-rtx"], [75, 86, 89, 120])
    onnx = sha256_of(run / "model.onnx")
    assert list(results) == [f"tensorrt-rtx-sm{sm}" for sm in (75, 86, 89, 120)]
    for sm in (75, 86, 89, 120):
        name = f"tensorrt-rtx-sm{sm}"
        manifest = check(run / "engines" / name, onnx)
        assert results[name] == BuildResult(name, "built", manifest)
        assert (manifest.runtime, manifest.sm, manifest.gpu, manifest.target) == ("tensorrt-rtx", sm, None, "tensorrt")
        assert manifest.profile == {"input": ((1, 3, 16, 16), (8, 3, 16, 16), (32, 3, 16, 16))}
        assert manifest.versions == {"tensorrt-rtx": this_host().versions["tensorrt-rtx"], "faq-deploy": VERSION}
        step = run.manifest().steps[f"build/{name}"]
        assert step.inputs == {"model.onnx": onnx}
        assert step.outputs[f"engines/{name}/model.engine"] == manifest.sha256
        assert step.facts["bytes"] == manifest.bytes == (run / "engines" / name / "model.engine").stat().st_size
        assert run.require(f"build/{name}", f"engines/{name}/manifest.json").is_file()
    assert exit_code(list(results.values())) == 0


def test_without_tensorrt_and_gpu_the_default_is_onnxruntime(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "this_host", lambda: Host(None, {}))
    assert statuses(built(run, [])) == {"onnxruntime": "built"}


@pytest.mark.parametrize(
    ("sm", "importable", "signed", "runtime"),
    [
        (86, True, True, "tensorrt"),
        (61, True, True, "onnxruntime"),
        (86, False, True, "onnxruntime"),
        (86, True, False, "onnxruntime"),
        (None, True, True, "onnxruntime"),
    ],
)
def test_default_runtime_needs_package_gpu_and_a_file_that_suits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sm: int | None, importable: bool, signed: bool, runtime: str
) -> None:
    def load(name: str) -> None:
        if not importable:
            raise CannotRunHere("tensorrt is not installed.", "install it.")

    monkeypatch.setattr(build, "load", load)
    model = classifier(tmp_path / "model.onnx", zero_point=np.int8(0) if signed else np.uint8(128))
    host = Host(None if sm is None else Gpu("GPU", sm, 1 << 30), {})
    assert build.default_runtime(onnx_facts.read(model), host) == runtime


@needs_rtx
def test_one_failing_architecture_keeps_the_others_and_a_rerun_builds_only_it(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails_for_86(onnx_path: Path, sm: int, profile: Profile, output: Path) -> BuiltEngine:
        if sm == 86:
            raise InputError("model.onnx could not be built for SM 86: a compiler message.", "leave it out.")
        return build_rtx(onnx_path, sm, profile, output)

    monkeypatch.setattr(engine_folder, "build_rtx", fails_for_86)
    results = built(run, ["tensorrt-rtx"], [75, 86, 89, 120])
    assert statuses(results) == {
        "tensorrt-rtx-sm75": "built",
        "tensorrt-rtx-sm86": "failed",
        "tensorrt-rtx-sm89": "built",
        "tensorrt-rtx-sm120": "built",
    }
    assert results["tensorrt-rtx-sm86"].reason == "model.onnx could not be built for SM 86: a compiler message."
    assert exit_code(list(results.values())) == 1
    assert not (run / "engines/tensorrt-rtx-sm86/manifest.json").exists()
    assert "build/tensorrt-rtx-sm86" not in run.manifest().steps
    monkeypatch.setattr(engine_folder, "build_rtx", build_rtx)
    again = built(run, ["tensorrt-rtx"], [75, 86, 89, 120])
    assert [result.status for result in again.values()] == ["kept", "built", "kept", "kept"]


@needs_rtx
def test_architectures_without_int8_and_unknown_ones_are_refused_beside_good_ones(run: RunFolder) -> None:
    results = built(run, ["tensorrt-rtx"], [61, 86, 999])
    assert [result.status for result in results.values()] == ["refused", "built", "refused"]
    assert results["tensorrt-rtx-sm61"].reason.startswith("INT8 needs SM 7.5 or newer")
    assert results["tensorrt-rtx-sm999"].reason == "SM 999 is unknown to this TensorRT-RTX."
    assert exit_code(list(results.values())) == 1
    assert exit_code([results["tensorrt-rtx-sm61"], results["tensorrt-rtx-sm999"]]) == 2
    assert sorted(path.name for path in (run / "engines").iterdir()) == ["tensorrt-rtx-sm86"]


@pytest.mark.parametrize("runtime", ["tensorrt", "tensorrt-rtx"])
def test_file_for_onnxruntime_is_refused_before_tensorrt_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runtime: RuntimeName
) -> None:
    def never(*arguments: object, **options: object) -> BuiltEngine:
        raise AssertionError("the parser was called")

    monkeypatch.setattr(engine_folder, "build_rtx", never)
    monkeypatch.setattr(engine_folder, "build_tensorrt", never)
    metadata = {"target": "onnxruntime", "recipe": {"bits": 8}}
    run = exported_run(tmp_path / "run", zero_point=np.uint8(128), metadata=metadata)
    results = built(run, [runtime, "onnxruntime"], [86] if runtime == "tensorrt-rtx" else [])
    refused, kept = results.values()
    assert (refused.status, refused.remedy) == ("refused", "make the run with --target tensorrt.")
    assert "was made for target onnxruntime, and TensorRT has no uint8 codes" in refused.reason
    assert kept.status == "built"


def test_tensorrt_without_package_or_gpu_is_unavailable_and_exits_3(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*arguments: object, **options: object) -> BuiltEngine:
        raise CannotRunHere("The Python package tensorrt is not installed.", "pip install 'faq-deploy[tensorrt]'.")

    monkeypatch.setattr(engine_folder, "build_tensorrt", missing)
    results = built(run, ["tensorrt", "onnxruntime"])
    assert statuses(results) == {"tensorrt": "unavailable", "onnxruntime": "built"}
    assert results["tensorrt"].remedy == "pip install 'faq-deploy[tensorrt]'."
    assert exit_code([results["tensorrt"]]) == 3
    assert exit_code(list(results.values())) == 1


def test_force_builds_again_and_progress_is_told(run: RunFolder) -> None:
    def build_once(force: bool) -> list[BuildEvent]:
        events: list[BuildEvent] = []
        build_engines(run, ["onnxruntime"], [], DEFAULTS, version=VERSION, on_event=events.append, force=force)
        return events

    start, stop = build_once(force=False)
    assert start == BuildEvent("onnxruntime", "start")
    assert (stop.name, stop.phase, stop.status) == ("onnxruntime", "stop", "built")
    assert stop.seconds > 0
    assert build_once(force=False) == []
    assert [event.status for event in build_once(force=True)] == [None, "built"]


def test_stale_model_is_refused(run: RunFolder) -> None:
    (run / "quantized.pt").write_bytes(b"other weights")
    run.record("quantize", version=VERSION, outputs=["quantized.pt"])
    with pytest.raises(InputError, match=r"model\.onnx is stale: it was made from another quantized\.pt"):
        built(run, ["onnxruntime"])


def test_run_before_export_is_refused(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.record("quantize", version=VERSION)
    with pytest.raises(InputError, match=r"has no model\.onnx yet"):
        built(run, ["onnxruntime"])


def test_edited_model_is_refused(run: RunFolder) -> None:
    classifier(run / "model.onnx", seed=5)
    with pytest.raises(InputError, match=r"model\.onnx was changed after `faq-deploy export` wrote it"):
        built(run, ["onnxruntime"])
    assert not (run / "engines").exists()


def test_sm_without_rtx_is_bad_usage(run: RunFolder) -> None:
    with pytest.raises(InputError, match="--sm chooses GPUs for tensorrt-rtx"):
        built(run, ["onnxruntime"], [86])


def test_file_that_the_linter_finds_wrong_is_not_built(tmp_path: Path) -> None:
    model = classifier(tmp_path / "model.onnx", flaw="negative scale")
    with pytest.raises(InputError, match=r"model\.onnx would not give the right engine: .*scale") as caught:
        build_onnx_file(model, tmp_path / "engines", ["onnxruntime"], [], DEFAULTS, version=VERSION)
    assert caught.value.remedy
    assert not (tmp_path / "engines").exists()


def test_onnx_file_alone_builds_without_aexported_run(tmp_path: Path) -> None:
    model = classifier(tmp_path / "given" / "net.onnx")
    (result,) = build_onnx_file(model, tmp_path / "engines", ["onnxruntime"], [], DEFAULTS, version=VERSION)
    assert result.manifest == check(tmp_path / "engines/onnxruntime", sha256_of(model))
    assert result.manifest is not None
    assert (result.manifest.target, result.manifest.notes) == (None, ())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["engines", "given"]


def test_architectures_default_to_the_gpu_here_or_else_to_the_usual_ones(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def note(folder: Path, wanted: engine_folder.WantedEngine, *arguments: object) -> EngineManifest:
        asked.append(wanted.sm or 0)
        raise CannotRunHere("Only noted.", "nothing.")

    monkeypatch.setattr(engine_folder, "build", note)
    monkeypatch.setattr(build, "check_sm", lambda sm: None)
    monkeypatch.setattr(build, "this_host", lambda: Host(Gpu("NVIDIA L4", 89, 1 << 30), {}))
    built(run, ["tensorrt-rtx"])
    assert asked == [89]
    monkeypatch.setattr(build, "this_host", lambda: Host(None, {}))
    built(run, ["tensorrt-rtx"])
    assert asked == [89, 75, 80, 86, 89, 120]


@pytest.mark.parametrize(
    ("found", "code"),
    [
        (["built", "kept"], 0),
        (["refused", "refused"], 2),
        (["unavailable"], 3),
        (["unavailable", "refused"], 3),
        (["built", "unavailable"], 1),
        (["built", "refused"], 1),
        (["failed"], 1),
        (["failed", "unavailable"], 1),
    ],
)
def test_exit_code_is_0_only_if_every_engine_is_there(found: list[build.Status], code: int) -> None:
    assert exit_code([BuildResult(str(i), status) for i, status in enumerate(found)]) == code
