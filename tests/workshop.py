"""A folder with what the documentation's pages name, small: a run, its files, images, and a user's model."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import torch
from click.testing import CliRunner, Result
from PIL import Image
from sklearn.datasets import load_digits

__all__ = ["furnish", "small_cifar", "typed"]

CIFAR_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

_MY_NET = """\
import torch
from torch import nn


def build(num_classes: int = 10) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, num_classes),
    )
"""
_BRANCHING = """\
from torch import nn


class Branching(nn.Conv2d):
    def forward(self, x):
        if x.mean() > 0:
            x = -x
        return super().forward(x).mean((2, 3))


def build():
    return Branching(3, 10, 3)
"""
_SOFTMAX = """\
from torch import nn


class Attention(nn.Conv2d):
    def forward(self, x):
        y = super().forward(x).flatten(2)
        return (y.transpose(1, 2) @ y).mean(1)


def build():
    return Attention(3, 10, 3)
"""


def furnish(folder: Path) -> None:
    """Make everything there; takes seconds.

    Args:
        folder: empty, and the current folder from now on.
    """
    os.chdir(folder)
    for name, text in {"my_net.py": _MY_NET, "branching.py": _BRANCHING, "attention.py": _SOFTMAX}.items():
        Path(name).write_text(text, "utf-8")
    Path("wrong.toml").write_text("max_dorp = 0.1\n", "utf-8")
    pictures(Path("DIR"), 40)
    shutil.copytree("DIR/val", "photos")
    for words in (
        "quantize builtin:digits-resnet --weights random --data DIR --color L --resize 0 --crop 8 --epochs 0 "
        "-o runs/r18",
        "export runs/r18 --check-images 2",
        "build runs/r18 --runtime onnxruntime",
        "eval runs/r18 --max-fall 100",
    ):
        done = typed(words.split())
        assert done.exit_code == 0, done.output
    shutil.copy("runs/r18/model.onnx", "model.onnx")
    for name in ("cifar-8bit", "digits", "digits-4bit"):
        shutil.copytree("runs/r18", f"runs/{name}")
    assert typed(["bundle", "runs/r18", "-o", "r18.tgz"]).exit_code == 0
    shutil.copy("DIR/val/0/0.png", "photo.jpg")
    Path("mine.toml").write_text(typed(["recipes", "show", "faq-8bit"]).stdout, "utf-8")
    torch.save({"fc.weight": torch.zeros(10, 512)}, "other.pth")
    torch.onnx.export(torch.nn.Conv2d(3, 4, 3), (torch.zeros(1, 3, 8, 8),), "float.onnx", dynamo=False)


def pictures(root: Path, count: int) -> None:
    """The first digits as PNGs, in train/ and in val/, one folder a class."""
    digits = load_digits()
    for place in range(count):
        pixels = Image.fromarray((digits.images[place] * 255 / 16).astype(np.uint8))
        for part in ("train", "val"):
            folder = root / part / str(digits.target[place])
            folder.mkdir(parents=True, exist_ok=True)
            pixels.save(folder / f"{place}.png")


def small_cifar(folder: Path) -> None:
    """The float net of the experiments, and a folder of images of CIFAR-10's kind: three a class."""
    shutil.copy(Path(__file__).parents[1] / "experiments" / "float.pth", folder)
    random = np.random.default_rng(0)
    for part in ("train", "test"):
        for name in CIFAR_CLASSES:
            place = folder / "cifar10" / part / name
            place.mkdir(parents=True)
            for number in range(3):
                pixels = random.integers(0, 256, (32, 32, 3), np.uint8)
                Image.fromarray(pixels).save(place / f"{number}.png")


def typed(words: list[str]) -> Result:
    """`faq-deploy` with these words, in this process."""
    import cli

    return CliRunner().invoke(cli.main, words, catch_exceptions=False)
