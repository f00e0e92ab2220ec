"""Where a new run goes, and what it may remove there."""

from __future__ import annotations

from pathlib import Path

import pytest

from engines.errors import InputError
from engines.run_folder import RunFolder
from faq_deploy.output_folder import check_output, clear_output, remove_leftovers


def fill(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)


def files(folder: Path) -> set[str]:
    return {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}


def test_new_and_empty_folders_and_what_a_killed_command_left_are_taken(tmp_path: Path) -> None:
    fill(tmp_path / "left", ".float.pt.x1y2.tmp", "float.pth", "engines/mine.py")
    (tmp_path / "empty").mkdir()
    for name in ("new", "deep/er", "empty", "left"):
        assert check_output(tmp_path / name, force=False).path == tmp_path / name
    assert not (tmp_path / "new").exists()  # looking makes nothing


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("names", [("notes.txt",), ("train/cat/1.jpg", "val/cat/2.jpg"), ("manifest.json", "a.csv")])
def test_folder_of_other_files_is_never_taken(tmp_path: Path, names: tuple[str, ...], force: bool) -> None:
    fill(tmp_path, *names)  # a manifest.json may be another program's
    with pytest.raises(InputError, match="is no run and holds other files") as caught:
        check_output(tmp_path, force=force)
    assert "new or an empty folder" in caught.value.remedy
    assert files(tmp_path) == set(names)


def test_run_with_notes_in_it_may_be_replaced(tmp_path: Path) -> None:
    RunFolder(tmp_path).record("calibrate", version="0.1.0")
    fill(tmp_path, "notes.txt")
    with pytest.raises(InputError, match="already holds a run"):
        check_output(tmp_path, force=False)
    assert check_output(tmp_path, force=True).path == tmp_path


@pytest.mark.parametrize("name", ["recipe.toml", "float.pt", "checkpoint.pt", "model.onnx", "report.html"])
def test_folder_with_one_of_our_names_is_refused_unless_forced(tmp_path: Path, name: str) -> None:
    fill(tmp_path, name)
    with pytest.raises(InputError, match=f"already holds {name}, but no whole run") as caught:
        check_output(tmp_path, force=False)
    assert "--resume" not in caught.value.remedy  # a checkpoint is nothing without the manifest
    check_output(tmp_path, force=True)
    assert files(tmp_path) == {name}


def test_whole_run_may_be_resumed_or_replaced(tmp_path: Path) -> None:
    fill(tmp_path, "recipe.toml", "manifest.json")
    with pytest.raises(InputError, match="already holds a run") as caught:
        check_output(tmp_path, force=False)
    assert "--resume" in caught.value.remedy
    assert "--force" in caught.value.remedy


def test_clearing_removes_the_run_and_its_engines_only(tmp_path: Path) -> None:
    own = {"recipe.toml", "float.pt", "quantized.pt", "samples.npz", "metrics.jsonl", "checkpoint.pt", "model.onnx"}
    own |= {"report.json", "report.html", "manifest.json", "engines/tensorrt/model.engine"}
    own |= {"engines/tensorrt/manifest.json", "engines/tensorrt/timing.cache"}
    others = {"notes.txt", "float.pth", "engines/__init__.py", "engines/source/code.py"}
    fill(tmp_path, *own, *others)
    clear_output(RunFolder(tmp_path))
    assert files(tmp_path) == others
    clear_output(RunFolder(tmp_path), also=["float.pth"])
    assert files(tmp_path) == others - {"float.pth"}


def test_clearing_leaves_no_empty_engines_folder_and_needs_no_folder(tmp_path: Path) -> None:
    fill(tmp_path / "run", "engines/onnxruntime/manifest.json")
    clear_output(RunFolder(tmp_path / "run"))
    assert list((tmp_path / "run").iterdir()) == []
    clear_output(RunFolder(tmp_path / "absent"))
    remove_leftovers(RunFolder(tmp_path / "absent"))
    assert not (tmp_path / "absent").exists()


def test_leftovers_of_a_killed_command_are_removed_and_nothing_else(tmp_path: Path) -> None:
    others = {".model.onnx", ".mine.tmp", "model.onnx.tmp", "float.pt"}
    fill(tmp_path, ".float.pt.x1y2.tmp", ".model.onnx.abc.tmp", *others)
    remove_leftovers(RunFolder(tmp_path))
    assert files(tmp_path) == others
