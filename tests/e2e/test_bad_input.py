"""Models, weights and options that cannot be: one sentence, one remedy, exit code 2 or 3, and no run."""

from __future__ import annotations

import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch

from tests.e2e.conftest import Call, Program
from tests.e2e.photos import line_of, quantize_photos
from tests.e2e.refusals import contents, refusal

pytestmark = [pytest.mark.xdist_group("digits"), pytest.mark.filterwarnings("always::UserWarning")]


@pytest.mark.parametrize(
    ("factory", "what", "remedy"),
    [
        ("absent", "nets.py has no 'absent'", "it has "),
        ("neares", "nets.py has no 'neares'", "it has nearest"),
        ("number", "nets.py:number returned int, not a torch.nn.Module", "return the model"),
        ("scripted", "is a TorchScript module", "return the nn.Module that it was scripted"),
        ("image", "output of shape 3x14x14 per image, not logits", "classifier"),
        ("grey", "fails on images of shape 3x16x16", "--color L for a net that takes grey images"),
    ],
)
def test_user_model_that_cannot_be_is_named(
    call: Call, nets: Path, photos: Path, tmp_path: Path, factory: str, what: str, remedy: str
) -> None:
    error, note = refusal(quantize_photos(call, f"{nets}:{factory}", photos, tmp_path / "run")).splitlines()
    assert what in error
    assert remedy in note
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("factory", "line", "what"),
    [
        ("fails", "# the failure", "RuntimeError: no luck today"),
        ("broken", "# the missing layer", "has no attribute 'missing'"),
        ("branch", "# the branch", "can't be traced"),
        ("softmax", "# the softmax", "a softmax of other than two is not supported"),
    ],
)
def test_user_model_is_refused_with_the_line_of_its_file(
    call: Call, nets: Path, photos: Path, tmp_path: Path, factory: str, line: str, what: str
) -> None:
    message = refusal(quantize_photos(call, f"{nets}:{factory}", photos, tmp_path / "run"))
    assert line_of(nets, line) in message
    assert what in message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("model", "what", "remedy"),
    [
        ("resnet18", "'resnet18' is not of the form", "did you mean torchvision:resnet18?"),
        ("torchvision:resnet81", "no classification model 'resnet81'", "resnet18"),
        ("torchvision:resnet18", "torchvision:resnet18 has no weights", "--weights FILE"),
        ("builtin:digit-resnet", "no built-in model 'digit-resnet'", "digits-resnet"),
        ("gone.py:build", "gone.py does not exist", "path/file.py:factory"),
        ("nets.py", "'nets.py' is not of the form", "nets.py:factory"),
    ],
)
def test_unknown_model_names_the_nearest(
    call: Call, photos: Path, tmp_path: Path, model: str, what: str, remedy: str
) -> None:
    error, note = refusal(quantize_photos(call, model, photos, tmp_path / "run")).splitlines()
    assert what in error
    assert remedy in note


@pytest.mark.parametrize(
    ("options", "what", "remedy"),
    [
        (("--recipe", "faq-8bits"), "no recipe 'faq-8bits'", "did you mean faq-8bit?"),
        (("--set", "training.lrr=1"), "training.lrr is no key", "did you mean training.lr?"),
        (("--set", "lr=1"), "lr is no key", "did you mean training.lr?"),
        (("--set", "training.lr=fast"), "training.lr is 'fast': input should be a valid number", "over 0"),
        (("--set", "bits=5"), "bits is 5: input should be 8 or 4", "precision"),
        (("--set", "epochs"), "'epochs' sets nothing", "KEY=VALUE"),
        (("--cpu", "vnni"), "cpu is vnni, which target tensorrt has no use for", "target onnxruntime"),
        (("--mean", "a,b,c"), "--mean a,b,c is not a list of numbers", "--mean 0.485,0.456,0.406"),
        (("--std", "1,1,"), "--std 1,1, is not a list of numbers", "--std 0.229,0.224,0.225"),
        (("--mean", "1,2"), "--mean has 2 values, but --color RGB has 3 channels", "give 3 values"),
        (("--mean", "nan"), "nan is not a finite number", "trained with"),
        (("--std", "1,0,1"), "0 is not a positive, finite number", "trained with"),
        (("--color", "L", "--mean", "1,2,3"), "--mean has 3 values, but --color L has 1 channel.", "one value"),
        (("--device", "tpu"), "--device tpu is not known", "auto, cpu, cuda"),
        (("--num-classes", "4"), "nets.py:net has 4 classes but the data has 3", "let nets.py:net make 3 outputs"),
        (("--train-fraction", "0.5"), "brings its own validation images", "drop --train-fraction"),
    ],
)
def test_option_that_cannot_be_is_named(
    call: Call, nets: Path, photos: Path, tmp_path: Path, options: tuple[str, ...], what: str, remedy: str
) -> None:
    output = tmp_path / "run"
    message = refusal(quantize_photos(call, f"{nets}:net", photos, output, *options)).replace(f"{nets.parent}/", "")
    error, note = message.splitlines()
    assert what in error
    assert remedy in note
    assert not output.exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there_is_exit_code_3(call: Call, nets: Path, photos: Path, tmp_path: Path) -> None:
    result = quantize_photos(call, f"{nets}:net", photos, tmp_path / "run", "--device", "cuda")
    assert "finds no CUDA GPU" in refusal(result, code=3)


def test_command_without_model_or_data_says_which_is_missing(call: Call, nets: Path, tmp_path: Path) -> None:
    assert "No MODEL was named" in refusal(call("quantize", "--data", "digits", "-o", tmp_path / "run"))
    assert "No images were named" in refusal(call("quantize", f"{nets}:net", "-o", tmp_path / "run"))
    assert "No images were named" in refusal(call("quantize", f"{nets}:net", "--data", "", "-o", tmp_path / "run"))


def test_colour_net_on_grey_data_is_told_of_color(call: Call, nets: Path, tmp_path: Path) -> None:
    result = call("quantize", f"{nets}:net", "--num-classes", 10, "--data", "digits", "-o", tmp_path / "run")
    message = refusal(result)
    assert "fails on images of shape 1x8x8" in message
    assert "--color RGB for a net that takes colour images" in message
    again = ("--color", "RGB", "--epochs", 0)
    result = call(
        "quantize", f"{nets}:net", "--num-classes", 10, "--data", "digits", "-o", tmp_path / "run", *again, "--json"
    )
    assert result.exit_code == 0, result.output  # grey as three equal channels, with grey's mean and std


class Hostile:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.file),)


def test_hostile_checkpoint_is_refused_and_not_run(call: Call, nets: Path, photos: Path, tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    torch.save({"state_dict": {}, "extra": Hostile(trap)}, tmp_path / "new.pth")
    torch.save({"extra": Hostile(trap)}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Hostile(trap)))
    for name in ("new.pth", "old.pth", "plain.pth"):
        result = quantize_photos(call, f"{nets}:net", photos, tmp_path / "run", "--weights", tmp_path / name)
        assert name in refusal(result)
        assert not trap.exists()
        assert not (tmp_path / "run").exists()
    pickle.loads((tmp_path / "plain.pth").read_bytes())
    assert trap.exists()  # it works where somebody does unpickle


def test_weights_that_do_not_fit_are_named(call: Call, nets: Path, photos: Path, tmp_path: Path) -> None:
    good = {"conv.weight": torch.zeros(8, 3, 3, 3), "conv.bias": torch.zeros(8)}
    head = {"linear.weight": torch.zeros(3, 8), "linear.bias": torch.zeros(3)}
    five = {"linear.weight": torch.zeros(5, 8), "linear.bias": torch.zeros(5)}
    broken = {**good, **head, "linear.bias": torch.tensor([0.0, float("nan"), 0.0])}
    cases = [
        ({"stem.weight": torch.zeros(2, 2)}, "no name is the same in both", "name the model"),
        ({**good, **five}, "has 5 classes but the data has 3", "weights with that head"),
        (broken, "linear.bias holds NaN or Inf (1 of 3 values)", "an earlier checkpoint"),
        (good, "2 of the model's 4 entries are missing (linear.weight, linear.bias)", "train the rest"),
    ]
    for state, what, remedy in cases:
        torch.save(state, tmp_path / "w.pth")
        message = refusal(
            quantize_photos(call, f"{nets}:net", photos, tmp_path / "run", "--weights", tmp_path / "w.pth")
        )
        assert what in message
        assert remedy in message
        assert not (tmp_path / "run").exists()


def test_output_that_cannot_be_is_refused_before_anything_starts(
    call: Call, nets: Path, photos: Path, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    for output in (file, file / "run"):
        result = quantize_photos(call, f"{nets}:fails", photos, output)  # the model is not even built
        assert str(file) in refusal(result)
    assert file.read_text() == "mine"


def test_force_replaces_a_run_and_nothing_else(call: Call, nets: Path, photos: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert quantize_photos(call, f"{nets}:net", photos, run).exit_code == 0
    assert call("export", run).exit_code == 0
    (run / "engines").mkdir()
    (run / "engines" / "mine.py").write_text("mine")
    before = contents(run)
    message = refusal(quantize_photos(call, f"{nets}:net", photos, run))
    assert "already holds a run" in message
    assert "--force" in message
    assert "softmax" in refusal(quantize_photos(call, f"{nets}:softmax", photos, run, "--force"))
    assert contents(run) == before  # a run is given up only for one that is there
    assert quantize_photos(call, f"{nets}:net", photos, run, "--force").exit_code == 0
    assert "model.onnx" not in contents(run)
    assert contents(run)["engines/mine.py"] == b"mine"
    (run / "manifest.json").unlink()
    assert "already holds recipe.toml, but no whole run" in refusal(quantize_photos(call, f"{nets}:net", photos, run))


_NO_TORCH = """\
from importlib.machinery import PathFinder
find = PathFinder.find_spec
def find_spec(name, path=None, target=None):
    return None if name.partition(".")[0] in ("torch", "torchvision") else find(name, path, target)
PathFinder.find_spec = staticmethod(find_spec)
"""


def test_without_torch_its_verbs_say_what_to_install_and_the_others_work(
    program: Program, run_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(_NO_TORCH)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    shutil.rmtree(run_copy / "engines")
    for verb in (("quantize", "builtin:digits-resnet", "--data", "digits", "-o", tmp_path / "run"), ("eval", run_copy)):
        done = program(*verb)
        assert done.returncode == 3
        assert f"`faq-deploy {verb[0]}` needs torch, which is not installed." in done.stderr
        assert "pip install 'faq-deploy[torch]'" in done.stderr
    for arguments in (("build", run_copy, "--runtime", "onnxruntime"), ("doctor",), ("recipes",), ("--help",)):
        done = program(*arguments)
        assert done.returncode == 0, done.stderr
    assert (run_copy / "engines" / "onnxruntime" / "model.onnx").is_file()
