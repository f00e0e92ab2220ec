"""Small networks of tasks other than classification, with the parts that such networks have."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Detector", "Embedder", "Keypoints", "Segmenter"]


def _block(inputs: int, outputs: int, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, dilation, dilation, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    )


class Segmenter(nn.Module):
    """Atrous pyramid with an image level, and an auxiliary head: (N, 3, H, W) to dicts of (N, classes, H, W)."""

    def __init__(self, width: int = 8, classes: int = 4) -> None:
        super().__init__()
        self.stem, self.body = _block(3, width, 2), _block(width, width, 2)
        self.branches = nn.ModuleList([_block(width, width, 1, rate) for rate in (1, 2, 3)])
        self.image = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(width, width, 1), nn.ReLU())
        self.project = _block(4 * width, width)
        self.head, self.aux = nn.Conv2d(width, classes, 1), nn.Conv2d(width, classes, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Both heads, enlarged to the image."""
        early = self.stem(x)
        y = self.body(early)
        size = y.shape[-2:]
        level = F.interpolate(self.image(y), size, mode="bilinear", align_corners=False)
        y = self.project(torch.cat([*[branch(y) for branch in self.branches], level], 1))
        return {
            name: F.interpolate(found, x.shape[-2:], mode="bilinear", align_corners=False)
            for name, found in (("out", self.head(y)), ("aux", self.aux(early)))
        }


class Detector(nn.Module):
    """Backbone, feature pyramid and a head that all levels share: as RetinaNet and FCOS before their boxes."""

    def __init__(self, width: int = 8, classes: int = 3, norm: bool = True) -> None:
        super().__init__()
        self.stages = nn.ModuleList([_block(3, width, 4), _block(width, width, 2), _block(width, width, 2)])
        self.lateral = nn.ModuleList([nn.Conv2d(width, width, 1) for _ in range(3)])
        self.smooth = nn.ModuleList([nn.Conv2d(width, width, 3, padding=1) for _ in range(3)])
        self.further = nn.Conv2d(width, width, 3, 2, 1)
        between: list[nn.Module] = [nn.GroupNorm(2, width)] if norm else []
        self.tower = nn.Sequential(nn.Conv2d(width, width, 3, padding=1, bias=not norm), *between, nn.ReLU())
        self.classes, self.boxes = nn.Conv2d(width, classes, 3, padding=1), nn.Conv2d(width, 4, 3, padding=1)

    def forward(self, x: Tensor) -> dict[str, object]:
        """Scores (N, places, classes), and boxes (N, 4, h, w) level by level."""
        found = []
        for stage in self.stages:
            x = stage(x)
            found.append(x)
        levels = [self.lateral[2](found[2])]
        for place in (1, 0):
            above = F.interpolate(levels[0], size=found[place].shape[-2:], mode="nearest")
            levels.insert(0, self.lateral[place](found[place]) + above)
        levels = [smooth(level) for smooth, level in zip(self.smooth, levels, strict=True)]
        levels.append(self.further(F.relu(levels[-1])))
        towers = [self.tower(level) for level in levels]
        scores = [self.classes(y).permute(0, 2, 3, 1).flatten(1, 2) for y in towers]
        return {"scores": torch.cat(scores, 1), "boxes": [F.relu(self.boxes(y)) for y in towers]}


class Keypoints(nn.Module):
    """Heatmaps by a transposed convolution, and a score for the whole image: a tuple."""

    def __init__(self, width: int = 8, points: int = 3) -> None:
        super().__init__()
        self.body = nn.Sequential(_block(3, width, 2), _block(width, width, 2))
        self.up = nn.ConvTranspose2d(width, points, 4, 2, 1)
        self.score = nn.Linear(width, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, points, H, W) and (N, 1)."""
        y = self.body(x)
        maps = F.interpolate(self.up(y), scale_factor=2.0, mode="bilinear", align_corners=False)
        return maps, self.score(y.mean((2, 3)))


class Embedder(nn.Module):
    """Features of an image without classes: (N, size)."""

    def __init__(self, width: int = 8, size: int = 6) -> None:
        super().__init__()
        self.body = nn.Sequential(_block(3, width, 2), _block(width, 2 * width, 2))
        self.head = nn.Linear(2 * width, size)

    def forward(self, x: Tensor) -> Tensor:
        """The vector before it is normalized."""
        embedded: Tensor = self.head(self.body(x).mean((2, 3)))
        return embedded
