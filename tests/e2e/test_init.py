"""`init` looks at a model and at images, and writes a recipe that `quantize` takes as it is."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
import tomllib
from PIL import Image

from engines.engine_commands import build_words
from engines.host import Host, this_host
from faq_deploy import starter
from faq_deploy.recipe import load_recipe
from tests.e2e.conftest import Call
from tests.e2e.photos import SIZE, colour_folder
from tests.e2e.refusals import contents, refusal

pytestmark = pytest.mark.xdist_group("digits")

FLAT = """\
from torch import nn


def flat():  # takes 1x32x32 and nothing else
    return nn.Sequential(nn.Conv2d(1, 4, 3, stride=4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 8 * 8, 3))
"""

SMALL = """\
from torch import nn


def net(num_classes=10):
    pool = nn.AdaptiveAvgPool2d(1)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), pool, nn.Flatten(), nn.Linear(8, num_classes))
"""


def test_recipe_is_taken_as_it_is_and_the_printed_commands_reach_a_verdict(
    call: Call, nets: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = call("init", f"{nets}:nearest", "--data", photos, "--mean", 0.5, "--std", 0.5, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["path"] == "recipe.toml"
    assert found["tried"] | {"seconds": 0} == {"right": 12, "images": 12, "seconds": 0}
    assert (found["images"]["smallest"], found["images"]["grey"], found["model"]["classes"]) == ([SIZE, SIZE], False, 3)
    assert found["preprocessing"].startswith(
        f"no resize, center crop {SIZE}x{SIZE}, RGB, mean 0.5,0.5,0.5, std 0.5,0.5,0.5"
    )
    recipe = load_recipe("recipe.toml")
    assert (recipe.name, recipe.training.epochs, recipe.training.batch_size) == ("recipe", 3, 2)
    assert (recipe.calibration.batches, recipe.calibration.batch_size) == (5, 2)
    quantize, *others = found["commands"]
    assert quantize[1:5] == ["quantize", f"{nets}:nearest", "--data", str(photos)]
    assert call(*quantize[1:], "--epochs", 1).exit_code == 0
    assert [words[1] for words in others] == ["export", "build", "eval"]
    assert others[1:] == [list(build_words("runs/nearest", recipe.target, this_host())), others[2]]
    for words, following in zip(others, (*others[1:], None), strict=True):
        result = call(*words[1:])
        assert result.exit_code == 0, (words, result.output)
        assert following is None or f"Next: {shlex.join(following)}\n" in result.stdout
    assert "preprocessing: no resize, center crop" in call("eval", "runs/nearest").stdout


def test_where_only_tensorrt_rtx_is_installed_its_engines_are_what_the_commands_build(
    call: Call, nets: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(starter, "this_host", lambda: Host(None, {"tensorrt-rtx": "1.7"}))
    result = call("init", f"{nets}:nearest", "--data", photos, "-o", tmp_path / "mine.toml")
    assert result.exit_code == 0, result.output
    build, judge = result.stdout.splitlines()[-2:]
    assert build == "  faq-deploy build runs/nearest --runtime tensorrt-rtx"
    assert judge == "  faq-deploy eval runs/nearest --allow-skip"


def test_each_value_of_the_file_stands_under_its_reason(call: Call, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    result = call("init", "builtin:digits-resnet", "--data", "digits", "--target", "tensorrt", "-o", path)
    assert result.exit_code == 0, result.output
    text = path.read_text()
    assert '# asked for with --target.\ntarget = "tensorrt"\n' in text
    lines = text.splitlines()
    values = [index for index, line in enumerate(lines) if " = " in line and not line.startswith("#")]
    assert len(values) == 10
    assert all(lines[index - 1].startswith("# ") for index in values)
    assert max(map(len, (line for line in lines if "faq-deploy" not in line))) <= 116
    raw = tomllib.loads(text)
    assert raw["training"] | raw["calibration"] == {
        **{"epochs": 3, "batch_size": 256, "lr": 3e-4, "schedule": "constant", "weight_decay": 1e-4, "augment": "auto"},
        **{"batches": 5},
    }
    train = "faq-deploy train builtin:digits-resnet --data digits --recipe digits-float -o runs/digits-resnet-float"
    assert f"#   {train}\n" in text
    assert (
        f"Next:\n  {train}\n  faq-deploy quantize builtin:digits-resnet --weights runs/digits-resnet-float/float.pth"
        in (result.stdout)
    )
    assert "validation images right" not in text  # there are no weights


def test_net_without_weights_gets_the_datas_classes(call: Call, photos: Path, tmp_path: Path) -> None:
    command = ("init", "builtin:resnet18-cifar", "--data", photos, "-o", tmp_path / "r.toml", "--json")
    found = json.loads(call(*command).stdout)
    assert found["model"]["classes"] == 3
    assert found["commands"][0][1] == "train"


def test_folder_without_a_validation_part_is_split_and_the_size_is_what_the_net_takes(
    call: Call, tmp_path: Path
) -> None:
    (tmp_path / "flat.py").write_text(FLAT)
    for name in "abc":
        (tmp_path / "data" / name).mkdir(parents=True)
        for index in range(5):
            Image.fromarray(np.full((16, 20), 50 * index, np.uint8)).save(tmp_path / "data" / name / f"{index}.png")
    model = f"{tmp_path / 'flat.py'}:flat"
    result = call("init", model, "--data", tmp_path / "data", "-o", tmp_path / "r.toml", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert (found["images"]["train"], found["images"]["val"], found["images"]["grey"]) == (12, 3, True)
    assert found["model"]["input_shape"] == [1, 32, 32]
    augment = next(choice["reason"] for choice in found["choices"] if choice["key"] == "training.augment")
    assert augment == "here it means cifar, for images of this size"
    words = found["commands"][0]
    assert words[5:13] == ["--train-fraction", "0.8", "--resize", "32", "--crop", "32", "--color", "L"]
    assert call(*words[1:-1], tmp_path / "run", "--epochs", 1).exit_code == 0


def test_net_of_ones_own_with_random_weights_is_trained_first(
    call: Call, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "small.py").write_text(SMALL)
    monkeypatch.chdir(tmp_path)
    result = call("init", "small.py:net", "--data", photos, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert (found["tried"], found["model"]["classes"]) == (None, 3)
    assert "whose weights are drawn at random" in found["model"]["source"]
    train, quantize, *_ = found["commands"]
    assert train[1:4] == ["train", "small.py:net", "--data"]
    assert train[train.index("--recipe") + 1] == "cifar-quick"
    assert call(*train[1:], "--epochs", 1).exit_code == 0
    assert quantize[1:5] == ["quantize", "small.py:net", "--weights", "runs/net-float/float.pth"]
    assert call(*quantize[1:], "--epochs", 0).exit_code == 0
    again = call("init", "small.py:net", "--weights", "runs/net-float/float.pth", "--data", photos, "--force", "--json")
    assert json.loads(again.stdout)["commands"][0][1] == "quantize"


def test_recipe_that_is_there_is_only_replaced_when_forced(call: Call, tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text("mine")
    command = ("init", "builtin:digits-resnet", "--data", "digits", "-o", path)
    assert f"{path} exists already" in refusal(call(*command))
    assert contents(tmp_path) == {"recipe.toml": b"mine"}
    assert call(*command, "--force").exit_code == 0
    assert load_recipe(path).training.lr == 3e-4


@pytest.mark.parametrize(
    ("model", "data", "output", "said"),
    [
        ("net", "absent", "r.toml", "does not exist"),
        ("net", "empty", "r.toml", "holds no class folders"),
        ("net", None, "r.toml", "No images were named."),
        ("grey", "photos", "recipe", "is not named as a TOML file"),
        ("grey", "photos", "folder.toml", "is a folder"),
        ("image", "photos", "r.toml", "not logits"),
        ("broken", "photos", "r.toml", "broken"),
        ("scripted", "photos", "r.toml", "TorchScript"),
        ("fails", "photos", "r.toml", "no luck today"),
        ("absent", "photos", "r.toml", "has no 'absent'"),
    ],
)
def test_bad_input_is_refused_and_nothing_is_written(
    call: Call, nets: Path, tmp_path: Path, model: str, data: str | None, output: str, said: str
) -> None:
    colour_folder(tmp_path / "photos")
    (tmp_path / "empty").mkdir()
    (tmp_path / "folder.toml").mkdir()
    before = contents(tmp_path)
    images = () if data is None else ("--data", tmp_path / data)
    assert said in refusal(call("init", f"{nets}:{model}", *images, "-o", tmp_path / output))
    assert contents(tmp_path) == before


def test_classes_that_do_not_fit_are_refused_with_the_number(call: Call, nets: Path, tmp_path: Path) -> None:
    data = colour_folder(tmp_path / "photos", names=("a", "b"))
    message = refusal(call("init", f"{nets}:nearest", "--data", data, "-o", tmp_path / "r.toml"))
    assert "has 3 classes but the data has 2" in message


def test_names_with_line_breaks_stay_inside_the_comments(call: Call, nets: Path, tmp_path: Path) -> None:
    data = colour_folder(tmp_path / "two\nlines = 1\x07")
    result = call("init", f"{nets}:nearest", "--data", data, "-o", tmp_path / "r.toml")
    assert result.exit_code == 0, result.output
    assert load_recipe(tmp_path / "r.toml").bits == 8


def test_a_net_of_ones_own_that_guesses_may_lack_its_weights(call: Call, photos: Path, tmp_path: Path) -> None:
    file = tmp_path / "constant.py"
    file.write_text(
        "import torch\nfrom torch import nn\n\n\ndef net():\n    torch.manual_seed(0)\n"
        "    last = nn.Linear(3, 3)\n    nn.init.zeros_(last.weight)\n"
        "    pool = nn.AdaptiveAvgPool2d(1)\n    return nn.Sequential(nn.Conv2d(3, 3, 1), pool, nn.Flatten(), last)\n"
    )
    result = call("init", f"{file}:net", "--data", photos, "-o", tmp_path / "recipe.toml", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["commands"][0][1] == "quantize"  # they may be what it was trained to
    assert any(
        "pass --weights, or run `faq-deploy train` first" in said for said in json.loads(result.stdout)["cautions"]
    )
