"""The README's commands run as they are printed, on small data; its transcript and links are true."""

from __future__ import annotations

import re
import shlex
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from faq_deploy import demonstration
from tests.e2e.conftest import Call

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
pytestmark = pytest.mark.xdist_group("readme")


def block_with(text: str) -> list[list[str]]:
    """The commands of the fenced block that contains `text`."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    (found,) = [block for block in blocks if text in block]
    return [shlex.split(line)[1:] for line in found.splitlines() if line.startswith("faq-deploy")]


def write_images(folder: Path, classes: int, each: int, size: int) -> None:
    rng = np.random.default_rng(len(folder.name))
    for label in range(classes):
        (folder / f"class{label}").mkdir(parents=True)
        for index in range(each):
            pixels = rng.integers(0, 256, (size, size, 3), np.uint8)
            pixels[..., label % 3] //= 4
            Image.fromarray(pixels).save(folder / f"class{label}" / f"{index}.png")


def run_all(call: Call, commands: list[list[str]]) -> str:
    output = ""
    for command in commands:
        result = call(*command)
        assert result.exit_code == 0, f"{command}\n{result.output}"
        output = result.output
    return output


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.skipif(find_spec("tensorrt_rtx") is None, reason="tensorrt-rtx is not installed")
def test_resnet18_goes_through_the_four_verbs(call: Call, here: Path) -> None:
    write_images(here / "DIR" / "train", classes=2, each=5, size=256)
    write_images(here / "DIR" / "val", classes=2, each=3, size=300)
    torch.manual_seed(0)
    torch.save(torchvision.models.resnet18(num_classes=2).state_dict(), here / "r18.pth")
    output = run_all(call, block_with("torchvision:resnet18"))
    assert "The same integers in all that ran here: 0 of" in output
    assert {p.name for p in (here / "runs" / "r18" / "engines").iterdir()} == {
        "onnxruntime",
        *[f"tensorrt-rtx-sm{sm}" for sm in (75, 86, 89, 120)],
    }


def test_published_weights_are_where_the_readme_says() -> None:
    published = torchvision.models.ResNet18_Weights.IMAGENET1K_V1
    assert f"{published.url}, which `--weights {published.name}` downloads" in " ".join(README.split())


def test_cifar_resnet18_goes_through_all_verbs(call: Call, here: Path) -> None:
    write_images(here / "cifar10" / "train", classes=10, each=4, size=32)
    write_images(here / "cifar10" / "test", classes=10, each=1, size=32)
    commands = block_with("resnet18-cifar")
    commands[0] += ["--epochs", "1"]  # shortened
    assert [command[0] for command in commands] == ["train", "quantize", "export", "build", "eval"]
    assert "The same integers everywhere: 0 of" in run_all(call, commands)


def test_transcript_is_of_the_demos_own_commands() -> None:
    shown = re.findall(r"^\$ faq-deploy (.*)$", README, re.MULTILINE)
    assert shown
    known = {shlex.join(command) for command in demonstration.commands(Path("runs/demo"))}
    assert set(shown) <= known


def test_links_lead_somewhere() -> None:
    targets = [t for t in re.findall(r"\]\(([^)#]+)", README) if not t.startswith("http")]
    assert len(targets) > 3
    missing = [target for target in targets if not (ROOT / target).exists()]
    assert missing == []


VERBS = ("init", "quantize", "train", "export", "build", "eval", "doctor", "recipes", "completion", "demo")


@pytest.mark.parametrize("verb", VERBS)
def test_help_has_an_example(call: Call, verb: str) -> None:
    result = call(verb, "--help")
    assert result.exit_code == 0
    assert f"faq-deploy {verb}" in result.output
    assert "Example" in result.output
