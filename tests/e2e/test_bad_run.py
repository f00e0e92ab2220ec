"""Run folders that are incomplete, damaged, stale or on a full disk: one sentence, and what was there stays."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from engines.files import sha256_of
from engines.run_folder import RunFolder
from tests.e2e.conftest import Call
from tests.e2e.refusals import contents, refusal

pytestmark = pytest.mark.xdist_group("digits")


def change(run: Path, edit: Callable[[dict[str, object]], object]) -> None:
    """Edit the manifest."""
    file = run / "manifest.json"
    manifest = json.loads(file.read_text())
    edit(manifest)
    file.write_text(json.dumps(manifest))


@pytest.fixture
def calibrated(call: Call, float_weights: Path, tmp_path: Path) -> Path:
    """A run without fine-tuning."""
    run = tmp_path / "calibrated"
    command = ("quantize", "builtin:digits-resnet", "--weights", float_weights, "--data", "digits", "--epochs", 0)
    assert call(*command, "-o", run).exit_code == 0
    return run


def test_verbs_out_of_order_say_which_comes_first(call: Call, calibrated: Path, tmp_path: Path) -> None:
    for verb in ("export", "build", "eval"):
        message = refusal(call(verb, tmp_path / "nothing"))
        assert f"{tmp_path / 'nothing'} holds no run" in message
        assert f"faq-deploy quantize MODEL --data DIR -o {tmp_path / 'nothing'}" in message
    for verb in ("build", "eval"):
        message = refusal(call(verb, calibrated))
        assert f"{calibrated} has no model.onnx yet" in message
        assert f"run `faq-deploy export {calibrated}` first" in message
    change(calibrated, lambda m: m["steps"].pop("quantize"))  # type: ignore[attr-defined]
    message = refusal(call("export", calibrated))
    assert f"{calibrated} has no quantized.pt yet" in message
    assert f"faq-deploy quantize --resume -o {calibrated}" in message


def test_folder_of_a_float_training_is_not_a_quantized_run(call: Call, float_weights: Path) -> None:
    message = refusal(call("export", float_weights.parent))
    assert "has no quantized.pt yet" in message
    assert f"pass {float_weights} to `faq-deploy quantize --weights`" in message


def test_run_of_a_newer_version_is_refused(call: Call, run_copy: Path) -> None:
    change(run_copy, lambda m: m.update(format=99))
    before = contents(run_copy)
    for command in (("export",), ("build",), ("eval",), ("quantize", "--resume", "-o")):
        message = refusal(call(*command, run_copy))
        assert "was made by a newer faq-deploy (run format 99, this one reads up to 1)" in message
        assert "upgrade faq-deploy" in message
    assert contents(run_copy) == before


def test_net_of_a_newer_version_is_refused(call: Call, run_copy: Path) -> None:
    file = run_copy / "quantized.pt"
    torch.save(torch.load(file, weights_only=True) | {"format": 99}, file)
    change(run_copy, lambda m: m["steps"]["quantize"]["outputs"].update({"quantized.pt": sha256_of(file)}))  # type: ignore[index]
    change(run_copy, lambda m: m["steps"]["export"]["inputs"].update({"quantized.pt": sha256_of(file)}))  # type: ignore[index]
    for verb in ("export", "eval"):
        assert "quantized.pt was made by a newer faq-deploy (format 99" in refusal(call(verb, run_copy))


@pytest.mark.parametrize(
    "text", ["", '{"format": 1', "[]", '{"format": "x"}', '{"steps": [1], "faq_deploy": "1"}', "\xff"]
)
def test_damaged_manifest_is_named(call: Call, run_copy: Path, text: str) -> None:
    (run_copy / "manifest.json").write_bytes(text.encode("latin1"))
    for command in (("export",), ("build",), ("eval",), ("quantize", "--resume", "-o")):
        message = refusal(call(*command, run_copy))
        assert f"{run_copy / 'manifest.json'} is damaged: " in message
        assert "validation error" not in message


def test_manifest_without_its_facts_is_damaged(call: Call, run_copy: Path) -> None:
    change(run_copy, lambda m: m["steps"]["calibrate"]["facts"].clear())  # type: ignore[index]
    for command in (("eval",), ("quantize", "--resume", "-o")):
        assert "doesn't say which images the run was made from" in refusal(call(*command, run_copy))


@pytest.mark.parametrize(
    ("name", "verbs", "remedy"),
    [
        ("model.onnx", ("build", "eval"), "run `faq-deploy export {run}` again"),
        ("quantized.pt", ("export", "build", "eval"), "write it again with `faq-deploy quantize --resume -o {run}`"),
        ("float.pt", ("export", "eval"), "make the run again with `faq-deploy quantize MODEL --data DIR -o {run}"),
        ("samples.npz", ("export",), "make the run again with `faq-deploy quantize MODEL --data DIR -o {run}"),
    ],
)
def test_changed_or_missing_file_is_named(
    call: Call, run_copy: Path, name: str, verbs: tuple[str, ...], remedy: str
) -> None:
    file = run_copy / name
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    for what in ("was changed after `faq-deploy ", "is missing although the manifest lists it"):
        before = contents(run_copy)
        for verb in verbs:
            message = refusal(call(verb, run_copy))
            assert f"{file} {what}" in message
            assert remedy.format(run=run_copy) in message
        assert contents(run_copy) == before
        file.unlink(missing_ok=True)


def test_changed_model_is_exported_again_and_changed_weights_are_written_again(call: Call, run_copy: Path) -> None:
    before = contents(run_copy)
    (run_copy / "model.onnx").write_bytes(b"edited")
    assert call("export", run_copy).exit_code == 0
    assert contents(run_copy)["model.onnx"] == before["model.onnx"]
    (run_copy / "quantized.pt").write_bytes(b"edited")
    assert call("quantize", "--resume", "-o", run_copy).exit_code == 0
    assert contents(run_copy)["quantized.pt"] == before["quantized.pt"]


def test_engine_of_an_earlier_export_is_stale(call: Call, run_copy: Path) -> None:
    assert call("quantize", "--resume", "--epochs", 2, "-o", run_copy).exit_code == 0
    for verb in ("build", "eval"):
        assert f"run `faq-deploy export {run_copy}` first" in refusal(call(verb, run_copy))
    manifest = RunFolder(run_copy).manifest()
    assert set(manifest.steps) == {"calibrate", "begin", "quantize"}  # export and build have lost their say
    assert call("export", run_copy).exit_code == 0
    assert call("eval", run_copy).exit_code == 3  # the old engine is not among the run's
    assert call("build", run_copy, "--runtime", "onnxruntime").exit_code == 0
    assert call("eval", run_copy).exit_code == 0


@pytest.mark.parametrize("content", [b"", b"nonsense", None])
def test_damaged_engine_is_named_before_a_runtime_sees_it(call: Call, run_copy: Path, content: bytes | None) -> None:
    engine = run_copy / "engines" / "onnxruntime" / "model.onnx"
    engine.unlink()
    if content is not None:
        engine.write_bytes(content)
    message = refusal(call("eval", run_copy))
    assert str(engine) in message
    assert "faq-deploy build" in message
    assert call("build", run_copy, "--runtime", "onnxruntime").exit_code == 0  # it sees that there is something to do
    assert call("eval", run_copy).exit_code == 0


def test_build_refuses_what_makes_no_sense_in_one_sentence(
    call: Call, run_copy: Path, make_run: Callable[..., Path]
) -> None:
    for sm, what in ((61, "INT8 needs SM 7.5 or newer"), (999, "SM 999 is unknown")):
        if sm == 999 and find_spec("tensorrt_rtx") is None:
            continue
        result = call("build", run_copy, "--runtime", "tensorrt-rtx", "--sm", sm)
        assert result.exit_code == 2, result.output
        assert f"tensorrt-rtx-sm{sm}: {what}" in result.stdout
        assert "Note: " in result.stdout
        assert not (run_copy / "engines" / f"tensorrt-rtx-sm{sm}").exists()
    run = make_run("--target", "onnxruntime", "--epochs", 0)
    assert call("export", run).exit_code == 0
    result = call("build", run, "--runtime", "tensorrt-rtx", "--sm", 86)
    assert result.exit_code == 2, result.output
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("tensorrt-rtx-sm86: ")]
    assert "uint8" in line or "unsigned" in line
    assert "--target tensorrt" in result.stdout
    assert "--sm chooses GPUs for tensorrt-rtx" in refusal(call("build", run, "--runtime", "onnxruntime", "--sm", 75))
    assert "--batch 3:2:1 is not MIN:OPT:MAX" in refusal(call("build", run, "--batch", "3:2:1"))


def test_lost_training_record_is_a_warning(call: Call, run_copy: Path) -> None:
    (run_copy / "metrics.jsonl").write_text('{"kind": "epoch", "epo')
    for what in ("metrics.jsonl was changed", "metrics.jsonl is missing"):
        result = call("eval", run_copy)
        assert result.exit_code == 0, result.output
        assert what in result.stderr
        assert "The report shows no training curve." in result.stderr
        assert json.loads((run_copy / "report.json").read_text())["training"] == []
        (run_copy / "metrics.jsonl").unlink(missing_ok=True)


def test_eval_judges_twice_alike_and_refuses_a_limit_that_is_none(call: Call, run_copy: Path) -> None:
    verdicts = []
    for _ in range(2):
        assert call("eval", run_copy).exit_code == 0
        report = json.loads((run_copy / "report.json").read_text())
        verdicts.append((report["verdict"], report["gates"], [s["codes_compared"] for s in report["stages"]]))
    assert verdicts[0] == verdicts[1]
    assert "max_drop = nan can't be" in refusal(call("eval", run_copy, "--max-drop", "nan"))


@contextlib.contextmanager
def file_limit(size: int) -> Iterator[None]:
    """No file may grow past `size` bytes: a write error of the system, without a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_write_error_leaves_what_was_there(call: Call, float_weights: Path, run_copy: Path) -> None:
    before = contents(run_copy)
    weights = ("--weights", float_weights, "--data", "digits")
    with file_limit(20_000):
        result = call("quantize", "builtin:digits-resnet", *weights, "--force", "-o", run_copy)
        assert f"{run_copy / 'float.pt'} could not be written: File too large." in refusal(result)
        assert f"{run_copy / 'model.onnx'} could not be written: File too large." in refusal(call("export", run_copy))
        assert contents(run_copy) == before
        result = call("quantize", "builtin:digits-resnet", *weights, "-o", run_copy.parent / "new")
        assert "could not be written" in refusal(result)
        assert contents(run_copy.parent / "new") == {}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MB of its own."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", disk], capture_output=True, check=False)
    if mounted.returncode != 0:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.decode().strip()}")
    yield disk
    subprocess.run(["umount", disk], check=True)


def leave(disk: Path, free: int) -> None:
    """Fill a disk but for some bytes."""
    filler = disk / "filler"
    filler.unlink(missing_ok=True)
    status = os.statvfs(disk)
    filler.write_bytes(bytes(status.f_bavail * status.f_frsize - free))


def test_full_disk_leaves_what_was_there(call: Call, float_weights: Path, exported: Path, small_disk: Path) -> None:
    run = small_disk / "run"
    model = ("quantize", "builtin:digits-resnet", "--weights", float_weights, "--data", "digits", "-o", run)
    command = (*model, "--recipe", "digits-8bit", "--epochs", 1)
    leave(small_disk, 100_000)
    message = refusal(call(*command))
    assert f"{run / 'float.pt'} could not be written: No space left on device." in message
    assert "free some disk space" in message
    assert contents(run) == {}
    leave(small_disk, 500_000)  # enough for the calibrated net and for the checkpoint of an epoch begun
    assert f"{run / 'checkpoint.pt'} could not be written" in refusal(call(*command))
    assert not [name for name in contents(run) if "tmp" in name]
    (small_disk / "filler").unlink()
    assert call("quantize", "--resume", "-o", run).exit_code == 0
    assert contents(run)["quantized.pt"] == contents(exported)["quantized.pt"]  # as if nothing had happened
    leave(small_disk, 20_000)
    before = contents(run)
    message = refusal(call("export", run))
    assert f"{run / 'model.onnx'} could not be written: No space left on device." in message
    assert contents(run) == before
    (small_disk / "filler").unlink()
    assert call("export", run).exit_code == 0
    shutil.rmtree(run / "engines", ignore_errors=True)
    leave(small_disk, 20_000)
    before = contents(run)
    assert f"{run / 'float.pt'} could not be written" in refusal(call(*command, "--force"))
    assert "/report." in (message := refusal(call("eval", run))) and "could not be written" in message
    for name in ("report.json", "predictions.csv"):
        (run / name).unlink(missing_ok=True)
    assert contents(run) == before
