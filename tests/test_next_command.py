"""What `doctor` says to type next, by what it found and by the newest run in the folder."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest
from click.testing import CliRunner

import cli
from engines.doctor import Check
from engines.engine_commands import build_words, eval_words
from engines.host import Gpu, Host
from engines.next_command import next_command
from engines.run_folder import RunFolder

TORCH = ("torch", "torchvision")
A10 = Gpu("NVIDIA A10", 86, 24 << 30)
BARE = Host(None, {})
RTX_ALONE = Host(None, {"tensorrt-rtx": "1.7"})


def command(folder: Path, *fine: str, host: Host = BARE) -> str:
    checks = [Check(name, "ok" if name in fine else "missing", "x", "" if name in fine else "x") for name in NAMES]
    found = next_command(checks, host, folder)
    assert found.why
    return found.command


NAMES = (*TORCH, "GPU", "tensorrt", "tensorrt-rtx")


@pytest.mark.parametrize(
    ("fine", "wanted"),
    [
        ((), "pip install 'faq-deploy[torch]'"),
        (("torch", "GPU"), "pip install 'faq-deploy[torch]'"),
        (TORCH, "faq-deploy demo"),
        ((*TORCH, "GPU"), "pip install 'faq-deploy[tensorrt]'"),
        ((*TORCH, "GPU", "tensorrt"), "faq-deploy demo"),
        ((*TORCH, "GPU", "tensorrt-rtx"), "faq-deploy demo"),
    ],
)
def test_in_an_empty_folder_it_is_what_is_missing_first_or_the_demo(
    tmp_path: Path, fine: tuple[str, ...], wanted: str
) -> None:
    assert command(tmp_path, *fine) == wanted


def test_without_scikit_learn_it_comes_before_the_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert command(tmp_path, *TORCH) == "pip install 'faq-deploy[demo]'"


def test_bundle_is_verified_where_there_is_no_torch(tmp_path: Path) -> None:
    (tmp_path / "my r18.tgz").touch()
    assert command(tmp_path) == "faq-deploy verify 'my r18.tgz'"
    assert command(tmp_path, *TORCH) == "faq-deploy demo"


def test_each_step_of_a_run_names_the_one_behind_it(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "runs" / "r 18")
    run.path.mkdir(parents=True)
    said = []
    for step in ("begin", "train", "calibrate", "quantize", "export", "build/onnxruntime", "eval"):
        run.record(step, version="0")
        said.append((command(tmp_path, *TORCH), command(tmp_path)))
    pip = "pip install 'faq-deploy[torch]'"
    assert said == [
        ("faq-deploy demo", pip),
        ("faq-deploy init MODEL --weights 'runs/r 18/float.pth' --data DIR", pip),
        ("faq-deploy quantize --resume -o 'runs/r 18'", pip),
        ("faq-deploy export 'runs/r 18'", pip),
        ("faq-deploy build 'runs/r 18'", "faq-deploy build 'runs/r 18'"),
        ("faq-deploy eval 'runs/r 18'", pip),
        ("faq-deploy bundle 'runs/r 18' -o 'runs/r 18.tgz'", pip),
    ]


@pytest.mark.parametrize(
    ("host", "build", "judge"),
    [
        (BARE, "faq-deploy build run", "faq-deploy eval run --allow-skip"),
        (RTX_ALONE, "faq-deploy build run --runtime tensorrt-rtx", "faq-deploy eval run --allow-skip"),
        (Host(A10, RTX_ALONE.versions), "faq-deploy build run --runtime tensorrt-rtx", "faq-deploy eval run"),
        (Host(A10, {"tensorrt": "11.4", "tensorrt-rtx": "1.7"}), "faq-deploy build run", "faq-deploy eval run"),
        (Host(Gpu("GTX 1080", 61, 8 << 30), RTX_ALONE.versions), "faq-deploy build run", "faq-deploy eval run"),
    ],
)
def test_engines_are_built_by_what_is_here_and_those_for_another_machine_are_skipped(
    tmp_path: Path, host: Host, build: str, judge: str
) -> None:
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    run.record("export", version="0", facts={"target": "tensorrt"})
    assert command(tmp_path, *TORCH, host=host) == build
    run.record("build/tensorrt-rtx-sm86", version="0")
    assert command(tmp_path, *TORCH, host=host) == judge


def test_run_of_another_target_is_built_as_it_is() -> None:
    assert build_words("run", "onnxruntime", RTX_ALONE) == ("faq-deploy", "build", "run")
    assert eval_words("run", ["build/onnxruntime"], RTX_ALONE) == ("faq-deploy", "eval", "run")


def test_newest_run_counts_and_other_manifests_do_not(tmp_path: Path) -> None:
    for age, (name, step) in enumerate((("new", "quantize"), ("old", "export"))):
        (tmp_path / name).mkdir()
        RunFolder(tmp_path / name).record(step, version="0")
        os.utime(tmp_path / name / "manifest.json", (1e9 - age, 1e9 - age))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "manifest.json").write_text("[]")
    assert command(tmp_path, *TORCH) == "faq-deploy export new"


def test_runs_of_the_demo_are_found_and_engines_are_no_runs(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "runs" / "demo" / "tensorrt-8bit")
    for folder in (run.path, tmp_path / "other" / "engines" / "onnxruntime"):
        folder.mkdir(parents=True)
    run.record("quantize", version="0")
    (tmp_path / "other" / "engines" / "onnxruntime" / "manifest.json").write_text('{"name": "onnxruntime"}')
    assert command(tmp_path, *TORCH) == "faq-deploy export runs/demo/tensorrt-8bit"


def test_doctor_ends_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    RunFolder(tmp_path / "run").record("export", version="0")
    result = CliRunner().invoke(cli.main, ["doctor"])
    assert result.stdout.splitlines()[-2:] == [
        "Next: faq-deploy build run",
        "  (run is exported and has no engine yet)",
    ]
