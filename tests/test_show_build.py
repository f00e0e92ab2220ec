"""`faq-deploy build` and `doctor` as a user sees them: a table, notes once, one line a missing engine, JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from engines import build, engine_folder, show_build
from engines.build_options import BuildOptions
from engines.doctor import diagnose
from engines.errors import InputError
from engines.host import Gpu, Host
from engines.profile import Profile
from engines.run_folder import RunFolder
from engines.show_build import chosen_options
from engines.tensorrt import BuilderRefusal, BuiltEngine, build_rtx
from tests.engine_nets import classifier, exported_run, needs_rtx

SMS = (75, 86, 89, 120)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return exported_run(tmp_path / "run")


def _given(**changes: object) -> dict[str, Any]:
    """The command line's options by name."""
    return {"runtimes": (), "sms": (), "batch": "1:8:32", "dla": False, **changes}


@needs_rtx
def test_one_architecture_that_fails_is_told_per_sm_and_a_rerun_builds_only_it(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails_for_86(onnx_path: Path, sm: int, profile: Profile, output: Path) -> BuiltEngine:
        if sm == 86:
            raise BuilderRefusal(f"{onnx_path} could not be built for SM 86: node 'conv' is bad.", "leave it out.")
        return build_rtx(onnx_path, sm, profile, output)

    options = _given(runtimes=("tensorrt-rtx",), sms=(*SMS, 61))
    monkeypatch.setattr(engine_folder, "build_rtx", fails_for_86)
    assert show_build.build(run.path, None, options, force=False, as_json=False) == 1
    lines = capsys.readouterr().out.splitlines()
    rows = {words[0]: words[1] for words in (line.split() for line in lines) if words[:1] > ["tensorrt-rtx-sm"]}
    assert rows == {
        "tensorrt-rtx-sm75": "built",
        "tensorrt-rtx-sm86": "failed",
        "tensorrt-rtx-sm89": "built",
        "tensorrt-rtx-sm120": "built",
        "tensorrt-rtx-sm61": "refused",
        "tensorrt-rtx-sm86:": f"{run.path}/model.onnx",
        "tensorrt-rtx-sm61:": "INT8",
    }
    assert any("could not be built for SM 86: node 'conv' is bad." in line for line in lines)
    assert any("INT8 needs SM 7.5 or newer" in line for line in lines)
    assert any("it needs a GPU of SM 75, 89 or 120" in line for line in lines)  # one note for all three
    monkeypatch.setattr(engine_folder, "build_rtx", build_rtx)
    again = _given(runtimes=("tensorrt-rtx",), sms=SMS)
    assert show_build.build(run.path, None, again, force=False, as_json=False) == 0
    captured = capsys.readouterr()
    statuses = [line.split()[1] for line in captured.out.splitlines() if line.startswith("tensorrt-rtx-sm")]
    assert statuses == ["kept", "built", "kept", "kept"]
    assert captured.err == "building tensorrt-rtx-sm86 ...\n"


def test_json_holds_each_engine_with_its_manifest(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    assert show_build.build(run.path, None, _given(runtimes=("onnxruntime",)), force=False, as_json=True) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["exit_code"] == 0
    (engine,) = answer["engines"]
    assert (engine["name"], engine["status"], engine["reason"]) == ("onnxruntime", "built", "")
    assert engine["manifest"]["options"] == {}
    assert engine["manifest"]["baseline"] is False


def test_waiting_for_another_build_is_told_on_stderr(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gpu = Gpu("NVIDIA A10", 86, 24 << 30)

    def waits(onnx_path: Path, profile: Profile, output: Path, **settings: Any) -> BuiltEngine:
        settings["tell"]("another build holds the timing cache")
        output.parent.mkdir(parents=True)
        output.write_bytes(b"engine")
        return BuiltEngine(output, "10.13.3.9", 2.0, {"input": profile.shapes((-1, 3, 16, 16))}, (), gpu)

    monkeypatch.setattr(engine_folder, "build_tensorrt", waits)
    assert show_build.build(run.path, None, _given(runtimes=("tensorrt",)), force=False, as_json=False) == 0
    told = "building tensorrt ...\ntensorrt: another build holds the timing cache ...\n"
    assert capsys.readouterr().err == told


def test_dla_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there are no engines for a DLA"):
        show_build.build(tmp_path / "nothing", None, _given(dla=True), force=False, as_json=False)


@pytest.mark.parametrize(
    ("changes", "refused"),
    [
        ({"hardware": "same-cc"}, "--hardware is for tensorrt, which is not among the runtimes .onnxruntime."),
        ({"version_compatible": True}, "--version-compatible is for tensorrt"),
        ({"fp16_baseline": True}, "--fp16-baseline is for GPUs"),
    ],
)
def test_options_of_another_runtime_are_bad_usage(run: RunFolder, changes: dict[str, object], refused: str) -> None:
    options = _given(runtimes=("onnxruntime",), **changes)
    with pytest.raises(InputError, match=refused):
        show_build.build(run.path, None, options, force=False, as_json=False)
    assert not (run / "engines").exists()


def test_ampere_engines_on_turing_are_refused_beside_good_ones(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(build, "this_host", lambda: Host(Gpu("Tesla T4", 75, 16 << 30), {}))
    options = _given(runtimes=("tensorrt", "onnxruntime"), hardware="ampere+")
    assert show_build.build(run.path, None, options, force=False, as_json=False) == 1
    assert "tensorrt: --hardware ampere+ needs a build on Ampere or newer, and Tesla T4" in capsys.readouterr().out


def test_command_line_becomes_options() -> None:
    given = _given(batch="2:4:6", hardware="same-cc", version_compatible=True, fp16_rest=True, fp16_baseline=True)
    given |= {"int4_linear": True, "rebuilds": 3, "workspace_mib": 256, "unknown": 1}
    expected = BuildOptions(Profile(2, 4, 6), "same-cc", True, True, True, True, 3, 256)
    assert chosen_options(given) == expected
    assert chosen_options({"batch": "1:8:32"}) == BuildOptions()  # `verify` has fewer options


def test_onnx_file_builds_beside_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = classifier(tmp_path / "net.onnx")
    options = _given(runtimes=("onnxruntime",))
    assert show_build.build(model, None, options, force=False, as_json=False) == 0
    assert (tmp_path / "net.engines/onnxruntime/manifest.json").is_file()
    assert capsys.readouterr().out.rstrip().endswith("net.engines")


def test_doctor_prints_what_is_missing_and_how_to_get_it(capsys: pytest.CaptureFixture[str]) -> None:
    show_build.doctor(as_json=False)
    printed = capsys.readouterr().out
    assert "python" in printed
    show_build.doctor(as_json=True)
    assert json.loads(capsys.readouterr().out)[0]["name"] == "python"


def test_doctor_breaks_no_path_where_nobody_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "a folder whose name is long" / "so that it fills a line of a terminal by itself" / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    show_build.doctor(as_json=False)
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("ok  timing cache") and f"{folder}/faq-deploy/timing, empty" in line for line in lines)
    for check in diagnose():
        assert any(line.split()[1:2] == check.name.split()[:1] and check.remedy in line for line in lines), check


@needs_rtx
def test_engines_whose_layers_became_the_same_share_one_block(
    run: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    options = _given(runtimes=("tensorrt-rtx", "onnxruntime"), sms=(86, 89))
    assert show_build.build(run.path, None, options, force=False, as_json=False) == 0
    lines = capsys.readouterr().out.splitlines()
    start = lines.index("Layers of tensorrt-rtx-sm86, tensorrt-rtx-sm89")
    assert lines[start + 1].startswith("  Predicted from the graph, not measured: 2 of 2 convolutions in INT8")
    assert sum(line.startswith("Layers of ") for line in lines) == 1
    assert show_build.build(run.path, None, options, force=False, as_json=True) == 0
    plans = [engine["manifest"]["plan"] for engine in json.loads(capsys.readouterr().out)["engines"]]
    assert [plan and plan["source"] for plan in plans] == ["predicted", "predicted", None]
