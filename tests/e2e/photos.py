"""Small folders of images, and networks in a user's file that tell their colours apart."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from click.testing import Result
from PIL import Image

if TYPE_CHECKING:
    from tests.e2e.conftest import Call  # whose fixtures are made of what is here

__all__ = ["COLOURS", "SIZE", "colour_folder", "line_of", "quantize_photos", "write_nets"]

SIZE = 16
COLOURS = [(r, g, b) for r in (32, 224) for g in (32, 224) for b in (32, 128, 224)]  # 12, far apart

_NETS = f'''\
"""Networks for tests."""
import torch
from torch import nn

COLOURS = torch.tensor({COLOURS!r}) / 127.5 - 1


class Net(nn.Module):
    def __init__(self, channels=3, classes=3):
        super().__init__()
        self.conv, self.linear = nn.Conv2d(channels, 8, 3), nn.Linear(8, classes)

    def forward(self, x):
        return self.linear(torch.relu(self.conv(x)).mean((2, 3)))


class Branch(Net):
    def forward(self, x):
        if x.sum() > 0:  # the branch
            x = -x
        return super().forward(x)


class Softmax(Net):
    def forward(self, x):
        return self.linear(torch.softmax(self.conv(x), 1).mean((2, 3)))  # the softmax


class Broken(Net):
    def forward(self, x):
        return self.linear(self.missing(x))  # the missing layer


class Two(Net):
    def forward(self, x):
        return super().forward(x), x


class Nearest(nn.Module):
    """The nearest of the first colours: 2 c.x - c.c is largest there."""

    def __init__(self, classes):
        super().__init__()
        self.conv, self.linear = nn.Conv2d(3, 3, 1, groups=3, bias=False), nn.Linear(3, classes)
        nn.init.ones_(self.conv.weight)
        colours = COLOURS[:classes]
        self.linear.weight = nn.Parameter(2 * colours)
        self.linear.bias = nn.Parameter(-colours.square().sum(1))

    def forward(self, x):
        return self.linear(self.conv(x).mean((2, 3)))


def net(num_classes=3):
    return Net(3, num_classes)


def grey():
    return Net(1)


def nearest(num_classes=3):
    return Nearest(num_classes)


def branch():
    return Branch()


def softmax():
    return Softmax()


def broken():
    return Broken()


def two():
    return Two()


def image():
    return nn.Conv2d(3, 3, 3)


def scripted():
    return torch.jit.script(Net())


def number():
    return 3


def fails():
    raise RuntimeError("no luck today")  # the failure
'''


def write_nets(folder: Path) -> Path:
    """`nets.py` with the factories net, grey, nearest, branch, softmax, broken, two, image, scripted, number, fails."""
    file = folder / "nets.py"
    file.write_text(_NETS)
    return file


def colour_folder(root: Path, names: Sequence[str] = ("a", "b", "c"), each: int = 4) -> Path:
    """train/ and val/ with one folder per class; class i is plain `COLOURS[i]`.

    Args:
        root: made.
        names: of the classes, in the order of the colours.
        each: images a class and split.
    """
    for split in ("train", "val"):
        for name, colour in zip(names, COLOURS, strict=False):
            (root / split / name).mkdir(parents=True)
            pixels = np.full((SIZE, SIZE, 3), colour, np.uint8)
            for index in range(each):
                Image.fromarray(pixels).save(root / split / name / f"{index}.png")
    return root


def line_of(file: Path, text: str) -> str:
    """`file.py:LINE` of the one line that holds `text`."""
    (number,) = [i for i, line in enumerate(file.read_text().splitlines(), 1) if text in line]
    return f"{file.name}:{number}"


def quantize_photos(call: Call, model: str, data: Path | str, output: Path, *options: object) -> Result:
    """`quantize MODEL --data DATA -o OUTPUT`, calibrating only, with images as they are and values from -1 to 1."""
    plain = ("--resize", 0, "--crop", SIZE, "--mean", 0.5, "--std", 0.5, "--epochs", 0)
    return call("quantize", model, "--data", data, "-o", output, *plain, *options)
