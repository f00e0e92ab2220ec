"""Small float networks for tests: each shows one thing that a rewrite must get right."""

from __future__ import annotations

from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Block", "InPlaceSkip", "Inverted", "PreActivation", "Small", "with_statistics"]

_Net = TypeVar("_Net", bound=nn.Module)


class Block(nn.Module):
    """Residual block; a strided one has a convolution on its skip."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.down = (
            nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
            if stride != 1 or inputs != outputs
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        """Sum of both branches, then the ReLU that is called twice."""
        skip = x if self.down is None else self.down(x)
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        y += skip
        result: Tensor = self.relu(y)
        return result


class Small(nn.Module):
    """A ResNet of two blocks with max pool, on (N, 3, 16, 16)."""

    def __init__(self, width: int = 8, classes: int = 5) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.blocks = nn.Sequential(Block(width, width, 1), Block(width, 2 * width, 2))
        self.fc = nn.Linear(2 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        x = self.blocks(self.pool(F.relu(self.bn(self.stem(x)))))
        logits: Tensor = self.fc(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))
        return logits


class PreActivation(nn.Module):
    """DenseNet-like: concat chain, batch norm before convolution, average pool between."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.bn1, self.conv1 = nn.BatchNorm2d(6), nn.Conv2d(6, 4, 3, padding=1, bias=False)
        self.bn2, self.conv2 = nn.BatchNorm2d(10), nn.Conv2d(10, 4, 3, padding=1, bias=False)
        self.bn3, self.squeeze = nn.BatchNorm2d(14), nn.Conv2d(14, 8, 1, bias=False)
        self.bn4 = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        x = self.stem(x)
        x = torch.cat([x, self.conv1(F.relu(self.bn1(x)))], 1)
        x = torch.cat([x, self.conv2(F.relu(self.bn2(x)))], 1)
        x = F.avg_pool2d(self.squeeze(F.relu(self.bn3(x))), 2)
        logits: Tensor = self.fc(F.relu(self.bn4(x)).mean((2, 3)))
        return logits


class Inverted(nn.Module):
    """MobileNetV2-like: ReLU6, depthwise convolution, linear bottleneck with identity skip."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU6())
        self.reduce = nn.Sequential(nn.Conv2d(8, 6, 1, bias=False), nn.BatchNorm2d(6))
        self.expand = nn.Sequential(nn.Conv2d(6, 24, 1, bias=False), nn.BatchNorm2d(24), nn.ReLU6())
        self.depthwise = nn.Sequential(
            nn.Conv2d(24, 24, 3, padding=1, groups=24, bias=False), nn.BatchNorm2d(24), nn.ReLU6()
        )
        self.project = nn.Sequential(nn.Conv2d(24, 6, 1, bias=False), nn.BatchNorm2d(6))
        self.head = nn.Sequential(nn.Conv2d(6, 16, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU6())
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(16, 5))

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        x = self.reduce(self.stem(x))
        x = x + self.project(self.depthwise(self.expand(x)))
        logits: Tensor = self.classifier(F.adaptive_avg_pool2d(self.head(x), 1).flatten(1))
        return logits


class InPlaceSkip(nn.Module):
    """The skip is the activated tensor, because the ReLU wrote into it (C12)."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.stem = nn.Conv2d(3, 8, 1)
        self.relu = nn.ReLU(inplace=True)
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        x = self.stem(x)
        if self.kind == "module":
            y = self.conv(self.relu(x))
        elif self.kind == "method":
            y = self.conv(x.relu_())
        elif self.kind == "function":
            y = self.conv(F.relu(x, inplace=True))
        else:
            y = self.conv(x.clamp_(0))
        y += x
        logits: Tensor = self.fc(y.mean((2, 3)))
        return logits


def with_statistics(model: _Net, seed: int = 0, size: int = 16) -> _Net:
    """The model in eval mode with random affine constants (some negative) and measured statistics."""
    torch.manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            if module.affine:
                nn.init.normal_(module.weight, 0.8, 0.6)
                nn.init.normal_(module.bias, 0.0, 0.3)
            module.momentum = None
    model.train()
    with torch.no_grad():
        model(torch.randn(16, 3, size, size))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.1
    return model.eval()
