"""The whole way through folders with blanks, accents and other scripts in their names, links, and no permission."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.conftest import Call, Program
from tests.e2e.photos import colour_folder, quantize_photos, write_nets
from tests.e2e.refusals import contents, refusal

NAMES = ["with blank", "Größe-é", "模型 ✓", 'it\'s "quoted" $HOME; `x`', "[bold]red", "-dash", "%s{0}"]


def whole_way(call: Call, root: Path) -> None:
    """quantize, export, build, eval, bundle, verify, lint; everything lies below `root`."""
    photos, nets = colour_folder(root / "my photos", ["a b", "ç", "猫"]), write_nets(root)
    run, packed = root / "my run", root / "my run.tgz"
    result = quantize_photos(call, f"{nets}:nearest", photos, run)
    assert result.exit_code == 0, result.output
    for verb in (
        ("export", run),
        ("build", run, "--runtime", "onnxruntime"),
        ("eval", run),
        ("bundle", run, "-o", packed),
        ("verify", packed, "--runtime", "onnxruntime", "-o", root / "kept"),
        ("lint", run / "model.onnx"),
    ):
        result = call(*verb)
        assert result.exit_code == 0, (verb, result.output)
        assert "Traceback" not in result.output
    assert (run / "report.html").is_file()
    assert (root / "kept" / "onnxruntime" / "model.onnx").read_bytes() == (run / "model.onnx").read_bytes()


@pytest.mark.parametrize("name", NAMES)
def test_the_whole_way_in_a_folder_with_an_odd_name(call: Call, tmp_path: Path, name: str) -> None:
    root = tmp_path / name
    root.mkdir()
    whole_way(call, root)
    assert (root / "kept" / "onnxruntime" / "manifest.json").is_file()


@pytest.mark.parametrize("name", NAMES)
def test_a_refusal_names_an_odd_path_as_it_is(call: Call, tmp_path: Path, name: str) -> None:
    run = tmp_path / name
    assert f"{run} holds no run" in refusal(call("export", run))
    shown = str(tmp_path / name / "model.onnx")
    assert shown in refusal(call("build", shown))


def test_a_name_that_is_not_utf8_is_no_traceback(program: Program, tmp_path: Path) -> None:
    run = os.fsdecode(bytes(tmp_path) + b"/run\xff")
    done = program("export", run)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "holds no run" in done.stderr


def test_the_whole_way_through_links(call: Call, tmp_path: Path) -> None:
    """The run, the photos, a class and a picture are links; what is behind them is read and written."""
    real = tmp_path / "real"
    photos, nets = colour_folder(real / "photos"), write_nets(real)
    shutil.move(photos / "val" / "a", real / "a")
    (photos / "val" / "a").symlink_to(real / "a")
    picture = photos / "val" / "b" / "0.png"
    shutil.move(picture, real / "picture.png")
    picture.symlink_to(real / "picture.png")
    (tmp_path / "photos").symlink_to(photos)
    (real / "run").mkdir()
    (tmp_path / "run").symlink_to(real / "run")
    result = quantize_photos(call, f"{nets}:nearest", tmp_path / "photos", tmp_path / "run")
    assert result.exit_code == 0, result.output
    for verb in ("export", "build", "eval"):
        assert call(verb, tmp_path / "run").exit_code == 0
    assert (tmp_path / "run").is_symlink()
    assert (real / "run" / "report.json").is_file()


def test_a_file_that_is_a_link_is_replaced_and_what_it_led_to_stays(call: Call, tmp_path: Path) -> None:
    photos, nets = colour_folder(tmp_path / "photos"), write_nets(tmp_path)
    assert quantize_photos(call, f"{nets}:nearest", photos, tmp_path / "run").exit_code == 0
    other = tmp_path / "precious.onnx"
    other.write_text("mine")
    (tmp_path / "run" / "model.onnx").symlink_to(other)
    assert call("export", tmp_path / "run").exit_code == 0
    assert not (tmp_path / "run" / "model.onnx").is_symlink()
    assert other.read_text() == "mine"


@pytest.fixture
def bound() -> Program:
    """The program as somebody whom permissions bind, which they do not bind root."""
    root = os.getuid() == 0
    bind = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if root else []
    if root and shutil.which("setpriv") is None:
        pytest.skip("root may write everywhere, and there is no setpriv to take that right away")

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [*bind, sys.executable, "-m", "cli", *map(str, arguments)]
        where = Path(__file__).parents[2]
        return subprocess.run(command, capture_output=True, text=True, cwd=where, check=False)

    return run


def test_folders_that_cannot_be_written_are_a_sentence_and_can_be_read(
    call: Call, tmp_path: Path, bound: Program
) -> None:
    photos, nets = colour_folder(tmp_path / "photos"), write_nets(tmp_path)
    run = tmp_path / "run"
    assert quantize_photos(call, f"{nets}:nearest", photos, run).exit_code == 0
    assert call("export", run).exit_code == 0
    assert call("build", run / "model.onnx", "-o", tmp_path / "engines").exit_code == 0
    for path in (*tmp_path.rglob("*"), tmp_path):
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = contents(tmp_path)
    for verb in (("export", run), ("build", run), ("eval", run), ("quantize", "--resume", "-o", run)):
        done = bound(*verb)
        assert done.returncode == 2, (verb, done.stderr)
        assert f"Error: {run} could not be written: Permission denied." in done.stderr, verb
        assert "Note: " in done.stderr
    done = bound("bundle", run, "-o", tmp_path / "new.tgz")
    assert done.returncode == 2
    assert f"Error: {tmp_path / 'new.tgz'} could not be written: Permission denied." in done.stderr
    done = bound("build", run / "model.onnx", "-o", tmp_path / "engines")
    assert done.returncode == 0, done.stderr
    assert "kept" in done.stdout
    assert bound("lint", run / "model.onnx").returncode == 0
    assert contents(tmp_path) == before
    tmp_path.chmod(0o755)
