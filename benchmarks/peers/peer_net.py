"""A built-in CIFAR-10 ResNet with a peer's layers, quantized where ours is."""

from __future__ import annotations

from typing import Protocol, cast

from torch import Tensor, nn

__all__ = ["Layers", "peer_resnet"]


class Layers(Protocol):
    """A peer's layers; each is made once a place."""

    def conv(self, layer: nn.Conv2d, bits: int) -> nn.Module:
        """A convolution with the float layer's weights, quantized."""
        ...

    def linear(self, layer: nn.Linear, bits: int) -> nn.Module:
        """A linear layer with the float layer's weights, quantized; its bias stays in float."""
        ...

    def relu(self, bits: int) -> nn.Module:
        """A ReLU whose output is quantized."""
        ...

    def identity(self, bits: int, signed: bool) -> nn.Module:
        """A quantizer."""
        ...


class _Block(nn.Module):
    def __init__(self, block: nn.Module, layers: Layers, bits: int, out_bits: int) -> None:
        super().__init__()
        first, second = (cast(nn.Conv2d, block.get_submodule(name)) for name in ("conv1", "conv2"))
        self.conv1, self.bn1 = layers.conv(first, bits), block.get_submodule("bn1")
        self.relu1 = layers.relu(bits)
        self.conv2, self.bn2 = layers.conv(second, bits), block.get_submodule("bn2")
        self.shortcut: nn.Module = nn.Sequential()
        own = cast(nn.Sequential, block.get_submodule("shortcut"))
        if len(own):  # as in ours: the convolution's 8-bit output is what gets added
            convolution = layers.conv(cast(nn.Conv2d, own[0]), bits)
            self.shortcut = nn.Sequential(convolution, own[1], layers.identity(8, signed=True))
        self.relu2 = layers.relu(out_bits)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu1(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y)) + self.shortcut(x)
        out: Tensor = self.relu2(y)
        return out


class _Net(nn.Module):
    def __init__(self, net: nn.Module, layers: Layers, bits: int) -> None:
        super().__init__()
        self.input = layers.identity(8, signed=True)
        self.conv1 = layers.conv(cast(nn.Conv2d, net.get_submodule("conv1")), 8)
        self.bn1, self.relu1 = net.get_submodule("bn1"), layers.relu(bits)
        stages = [stage for name, stage in net.named_children() if name.startswith("layer")]
        blocks = [block for stage in stages for block in stage.children()]
        self.blocks = nn.Sequential(
            *[_Block(block, layers, bits, bits if block is not blocks[-1] else 8) for block in blocks]
        )
        self.pool, self.pooled = nn.AdaptiveAvgPool2d(1), layers.identity(8, signed=False)
        self.linear = layers.linear(cast(nn.Linear, net.get_submodule("linear")), 8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.blocks(self.relu1(self.bn1(self.conv1(self.input(x)))))
        logits: Tensor = self.linear(self.pooled(self.pool(y)).flatten(1))
        return logits


def peer_resnet(net: nn.Module, layers: Layers, bits: int) -> nn.Module:
    """The float net with a peer's quantizers; batch norms are taken over as they are and stay in float.

    Quantized are: the image (8 bits), every ReLU (`bits`; the last one 8), shortcut convolutions' outputs and the
    pooled features (8 bits), and all weights (`bits`; first and last layer 8). Sums of a residual block are not.

    Args:
        net: resnet14-cifar or a resnet18-cifar of any width, with its weights; its batch norms are shared, not copied.
        layers: makes the peer's layers.
        bits: of weights and activations between first and last layer.

    Returns:
        float32 (N, 3, 32, 32) to logits (N, classes).
    """
    return _Net(net, layers, bits)
