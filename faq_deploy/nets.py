"""Built-in networks: a small ResNet for 8x8 digits, and the ResNets of CIFAR-10 papers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["BUILTIN_NETS", "digits_resnet", "resnet14_cifar", "resnet18_cifar", "resnet18_cifar_w16"]


class _BasicBlock(nn.Module):
    """Two 3x3 convolutions and a skip, which is a 1x1 convolution where the shape changes."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = nn.Sequential()
        if stride != 1 or channels_in != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y)) + self.shortcut(x)
        return F.relu(y)


class _ResNet(nn.Module):
    """A 3x3 stem without pooling, stages of basic blocks, global average pool, one linear layer.

    Parameters are named as in the common CIFAR-10 code (layer1.0.conv1, shortcut.0, linear), so that its checkpoints
    load.

    Args:
        channels_in: of the images.
        stages: one (channels, blocks, stride of the first block) each.
        num_classes: outputs.
    """

    def __init__(self, channels_in: int, stages: tuple[tuple[int, int, int], ...], num_classes: int) -> None:
        super().__init__()
        channels = stages[0][0]
        self.conv1 = nn.Conv2d(channels_in, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.stage_names = [f"layer{number}" for number in range(1, len(stages) + 1)]
        for name, (width, blocks, stride) in zip(self.stage_names, stages, strict=True):
            stage = nn.Sequential()
            for block in range(blocks):
                stage.append(_BasicBlock(channels, width, stride if block == 0 else 1))
                channels = width
            self.add_module(name, stage)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        for name in self.stage_names:
            y = self.get_submodule(name)(y)
        logits: Tensor = self.linear(self.pool(y).flatten(1))
        return logits


def digits_resnet(num_classes: int = 10) -> nn.Module:
    """A ResNet for 8x8 grey images, with an identity skip and two convolutional ones: the net of `make demo`.

    Args:
        num_classes: outputs.

    Returns:
        A net with random weights: float32 (N, 1, 8, 8) to logits (N, num_classes); 47,050 parameters for 10 classes.
    """
    return _ResNet(1, ((16, 1, 1), (24, 1, 1), (48, 1, 2)), num_classes)


def resnet14_cifar(num_classes: int = 10) -> nn.Module:
    """ResNet-14 for 32x32 images: three stages of 16, 32 and 64 channels with two blocks each, for CPUs.

    Args:
        num_classes: outputs.

    Returns:
        A net with random weights: float32 (N, 3, 32, 32) to logits (N, num_classes); 175,258 parameters for 10 classes.

    Source:
        He et al., "Deep Residual Learning for Image Recognition", 2015, section 4.2 (6n + 2 layers, here n = 2), with
        1x1 convolutions where shapes change.
    """
    return _ResNet(3, ((16, 2, 1), (32, 2, 2), (64, 2, 2)), num_classes)


def resnet18_cifar(num_classes: int = 10, width: int = 64) -> nn.Module:
    """ResNet-18 for 32x32 images: 3x3 stem, no max pool, four stages of two blocks.

    Args:
        num_classes: outputs.
        width: channels of the first stage; each further one doubles them.

    Returns:
        A net with random weights: float32 (N, 3, 32, 32) to logits (N, num_classes); 11,173,962 parameters for width
        64 and 10 classes.

    Source:
        He et al., "Deep Residual Learning for Image Recognition", 2015, in the form that the FAQ paper (4.9) and
        others train on CIFAR-10.
    """
    return _ResNet(3, ((width, 2, 1), (2 * width, 2, 2), (4 * width, 2, 2), (8 * width, 2, 2)), num_classes)


def resnet18_cifar_w16(num_classes: int = 10) -> nn.Module:
    """`resnet18_cifar` a quarter as wide: 701,466 parameters for 10 classes, for CPUs.

    Args:
        num_classes: outputs.

    Returns:
        A net with random weights: float32 (N, 3, 32, 32) to logits (N, num_classes).
    """
    return resnet18_cifar(num_classes, width=16)


BUILTIN_NETS: Final[Mapping[str, Callable[[int], nn.Module]]] = {
    "digits-resnet": digits_resnet,
    "resnet14-cifar": resnet14_cifar,
    "resnet18-cifar": resnet18_cifar,
    "resnet18-cifar-w16": resnet18_cifar_w16,
}
