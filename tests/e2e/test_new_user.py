"""What somebody meets who tries the tool for the first time: it says what it takes, and keeps nothing to itself."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from engines.run_folder import RunFolder
from faq_deploy.stored_net import load_net
from tests.e2e.conftest import Call
from tests.e2e.photos import SIZE, quantize_photos
from tests.e2e.refusals import contents, refusal
from tests.e2e.test_interruption import assert_same_weights, start, steps_in, stop_when

pytestmark = [pytest.mark.xdist_group("digits"), pytest.mark.filterwarnings("always::UserWarning")]

PLAIN = ("--resize", 0, "--crop", SIZE, "--mean", 0.5, "--std", 0.5)
IN_WORDS = f"no resize, center crop {SIZE}x{SIZE}, RGB, mean 0.5,0.5,0.5, std 0.5,0.5,0.5"


@pytest.fixture(scope="module")
def trained(call: Call, nets: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A float training of `net` with preprocessing of its own."""
    folder = tmp_path_factory.mktemp("trained") / "float"
    result = call("train", f"{nets}:net", "--data", photos, *PLAIN, "--epochs", 2, "--batch-size", 4, "-o", folder)
    assert result.exit_code == 0, result.output
    assert f"preprocessing: {IN_WORDS}" in result.stderr
    return folder


def test_weights_of_a_training_are_quantized_with_its_preprocessing(
    call: Call, nets: Path, photos: Path, trained: Path, tmp_path: Path
) -> None:
    command = ("quantize", f"{nets}:net", "--data", photos, "--epochs", 0)
    result = call(*command, "--weights", trained / "float.pth", "-o", tmp_path / "run")
    assert result.exit_code == 0, result.output
    assert f"preprocessing (as the weights were trained): {IN_WORDS}\n" in result.stderr
    found = load_net(tmp_path / "run" / "quantized.pt").facts.preprocessing
    assert (found.resize, found.crop, found.mean, found.std) == (None, (SIZE, SIZE), (0.5,) * 3, (0.5,) * 3)
    shutil.copy(trained / "float.pth", tmp_path / "w.pth")  # now nobody knows how it was trained
    result = call(*command, "--weights", tmp_path / "w.pth", "--crop", SIZE, "-o", tmp_path / "other")
    assert "preprocessing: resize 256 (bilinear), center crop 16x16, RGB, mean 0.485,0.456,0.406" in result.stderr
    (tmp_path / "manifest.json").write_text("[]")  # another program's
    assert call(*command, "--weights", tmp_path / "w.pth", "--crop", SIZE, "-o", tmp_path / "third").exit_code == 0
    assert call("export", tmp_path / "run").exit_code == 0
    assert f"preprocessing: {IN_WORDS}\n" in call("eval", tmp_path / "run", "--allow-skip").stdout
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["preprocessing"] == IN_WORDS
    assert report["weights"].startswith(f"{trained / 'float.pth'} (sha256 ")


def test_factory_without_weights_is_told_that_its_own_are_taken(
    call: Call, nets: Path, photos: Path, trained: Path, tmp_path: Path
) -> None:
    said = f"no --weights: {nets}:net is taken with the weights that its factory gives it"
    assert said in quantize_photos(call, f"{nets}:net", photos, tmp_path / "own").stderr
    result = quantize_photos(call, f"{nets}:net", photos, tmp_path / "given", "--weights", trained / "float.pth")
    assert result.exit_code == 0
    assert "no --weights" not in result.stderr


def test_folder_of_images_is_never_taken_for_a_run(call: Call, nets: Path, photos: Path) -> None:
    before = contents(photos)
    for options in ((), ("--force",)):
        message = refusal(quantize_photos(call, f"{nets}:net", photos, photos, *options))
        assert f"{photos} is no run and holds other files (train, ...)." in message
    assert "holds other files" in refusal(call("train", f"{nets}:net", "--data", photos, *PLAIN, "-o", photos))
    assert contents(photos) == before


def test_evaluating_the_training_images_is_warned_of(call: Call, nets: Path, photos: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert quantize_photos(call, f"{nets}:nearest", photos, run).exit_code == 0
    assert call("export", run).exit_code == 0
    (tmp_path / "link").symlink_to(photos / "train")
    for place in (photos / "train", tmp_path / "link"):
        result = call("eval", run, "--allow-skip", "--data", place)
        assert f"warning: {place} holds the images that this run was trained on" in result.stderr
        assert "trained on" in json.loads((run / "report.json").read_text())["warnings"][0]
    for options in ((), ("--data", photos), ("--data", photos / "val")):
        assert "trained on" not in call("eval", run, "--allow-skip", *options).stderr


def test_recipe_at_another_precision_is_named_for_what_it_is(call: Call, make_run: Callable[..., Path]) -> None:
    run = make_run("--bits", 4, "--epochs", 0)
    stored = load_net(run / "quantized.pt")
    assert (stored.recipe.name, stored.recipe.bits) == ("digits-8bit with --bits 4", 4)
    assert call("quantize", "--resume", "--recipe", "digits-8bit", "--bits", 4, "-o", run).exit_code == 0


def test_step_recipe_trains_for_any_number_of_epochs(call: Call, nets: Path, photos: Path, tmp_path: Path) -> None:
    command = ("train", f"{nets}:net", "--data", photos, *PLAIN, "--batch-size", 4, "-o", tmp_path / "run")
    result = call(*command, "--epochs", 3)
    assert result.exit_code == 0, result.output
    assert "falls after epoch 1 and 2 of 3, in proportion to 30 and 60 of 90 in recipe float" in result.stderr
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["lr"] for line in lines if line["kind"] == "epoch"] == pytest.approx([0.1, 0.01, 0.001])


def test_float_training_is_resumed_by_its_folder_alone(call: Call, tmp_path: Path) -> None:
    train = ("train", "builtin:digits-resnet", "--data", "digits", "--recipe", "digits-float", "--device", "cpu")
    options = ("--epochs", 2, "--batch-size", 16)
    assert call(*train, *options, "-o", tmp_path / "whole").exit_code == 0
    run = tmp_path / "run"
    program = start(*train, *options, "-o", run)
    said = stop_when(program, lambda: steps_in(run) > 0, signal.SIGINT)
    assert program.returncode == 130, said
    assert f"continue with `faq-deploy train --resume -o {run}`." in said
    assert f"`faq-deploy train --resume -o {run}` goes on with it" in refusal(call("quantize", "--resume", "-o", run))
    assert f"finish it with `faq-deploy train --resume -o {run}`" in refusal(call("export", run))
    message = refusal(call("train", "--resume", "--lr", 0.5, "-o", run))
    assert "was begun in another way (training.lr: 0.1 became 0.5)" in message
    assert call("train", "--resume", "-o", run).exit_code == 0
    assert_same_weights(run / "float.pth", tmp_path / "whole" / "float.pth")


def test_resuming_needs_a_manifest_and_is_not_advised_without(
    call: Call, nets: Path, photos: Path, trained: Path, exported: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    (run / "manifest.json").unlink()
    message = refusal(call("train", f"{nets}:net", "--data", photos, *PLAIN, "-o", run))
    assert "already holds metrics.jsonl, but no whole run" in message
    assert "--resume" not in message
    assert "holds no run (manifest.json is missing)" in refusal(call("train", "--resume", "-o", run))
    assert "holds no float training that can be resumed" in refusal(call("train", "--resume", "-o", exported))
    assert "No MODEL was named" in refusal(call("train", "--data", photos, "-o", tmp_path / "new"))


def test_fine_tuning_that_only_made_it_worse_is_not_kept_and_that_is_said(
    call: Call, make_run: Callable[..., Path], float_weights: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    command = ("quantize", "builtin:digits-resnet", "--weights", float_weights, "--data", "digits", "-o", run)
    result = call(*command, "--recipe", "digits-8bit", "--epochs", 1, "--lr", 3.0)
    assert result.exit_code == 0, result.output
    assert "every epoch of fine-tuning was worse than calibration alone" in result.stderr
    assert "quantized, fine-tuned (last epoch, not kept)" in result.stdout
    calibrated = load_net(make_run("--epochs", 0) / "quantized.pt")
    kept = load_net(run / "quantized.pt")
    assert (kept.facts.kept, kept.facts.epoch) == ("best", 0)
    for name, value in calibrated.net.state_dict().items():
        assert torch.equal(kept.net.state_dict()[name], value), name
    assert call("export", run).exit_code == 0
    result = call("eval", run, "--allow-skip")
    assert "The weights are the calibrated ones: every epoch of fine-tuning was worse." in result.stdout


def test_last_weights_stay_chosen_when_a_run_is_resumed(call: Call, make_run: Callable[..., Path]) -> None:
    run = make_run("--keep", "last")
    for options, kept in (((), "last"), (("--epochs", 2), "last"), (("--keep", "best"), "best"), ((), "best")):
        assert call("quantize", "--resume", "-o", run, *options).exit_code == 0
        assert load_net(run / "quantized.pt").facts.kept == kept


def test_training_on_tells_that_the_model_is_of_the_weights_before(call: Call, run_copy: Path) -> None:
    said = f"{run_copy / 'model.onnx'}, its engines and its report are of the weights before"
    assert said not in call("quantize", "--resume", "-o", run_copy).stderr  # nothing to do
    result = call("quantize", "--resume", "--epochs", 2, "-o", run_copy)
    assert result.exit_code == 0, result.output
    assert said in result.stderr
    assert "export" not in RunFolder(run_copy).manifest().steps


def test_ema_without_a_checkpoint_is_refused(call: Call, nets: Path, photos: Path, tmp_path: Path) -> None:
    for options in ((), ("--weights", "random")):
        message = refusal(quantize_photos(call, f"{nets}:net", photos, tmp_path / "run", "--ema", *options))
        assert "no checkpoint file was named" in message
        assert "--weights FILE" in message


def test_engines_of_a_file_lie_beside_it_under_its_name(call: Call, exported: Path, tmp_path: Path) -> None:
    model = tmp_path / "net.onnx"
    message = refusal(call("build", model))
    assert f"{model} does not exist." in message
    shutil.copy(exported / "model.onnx", model)
    assert call("build", model, "--runtime", "onnxruntime").exit_code == 0
    assert {path.name for path in tmp_path.iterdir()} == {"net.onnx", "net.engines"}
    assert (tmp_path / "net.engines" / "onnxruntime" / "manifest.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "what", "command"),
    [
        (("--nothing",), "No such option", "faq-deploy"),
        (("nothing",), "No such command 'nothing'", "faq-deploy"),
        (("build",), "Missing argument 'RUN|FILE.onnx'", "faq-deploy build"),
        (
            ("quantize", "--target", "gpu"),
            "'gpu' is not one of 'tensorrt', 'onnxruntime', 'paper'",
            "faq-deploy quantize",
        ),
        (("recipes", "show"), "Missing argument 'NAME'", "faq-deploy recipes show"),
        (("train", "net.py:net", "--bits", "4", "-o", "run"), "No such option '--bits'", "faq-deploy train"),
        (("train", "net.py:net", "--keep", "last", "-o", "run"), "No such option '--keep'", "faq-deploy train"),
    ],
)
def test_wrong_usage_is_two_lines_as_all_else(call: Call, arguments: tuple[str, ...], what: str, command: str) -> None:
    result = call(*arguments)
    assert result.exit_code == 2
    error, note = result.stderr.splitlines()
    assert error.startswith("Error: ") and what in error and error.endswith(" [usage]")
    assert note == f"Note: see `{command} --help`."


def test_program_without_arguments_shows_its_help(call: Call) -> None:
    result = call()
    assert "Usage: " in result.output and "Error" not in result.output


@pytest.mark.parametrize("verb", ["", "quantize", "train", "export", "build", "eval", "doctor", "recipes", "demo"])
def test_examples_in_help_fit_a_narrow_terminal(call: Call, monkeypatch: pytest.MonkeyPatch, verb: str) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = call(*([verb] if verb else []), "--help").output.splitlines()
    examples = [i for i, line in enumerate(lines) if line.strip().startswith("faq-deploy ")]
    assert examples
    for index in examples:
        goes_on = lines[index].rstrip().endswith("\\")
        following = lines[index + 1]
        assert following.strip().startswith("--") == goes_on, (lines[index], following)
