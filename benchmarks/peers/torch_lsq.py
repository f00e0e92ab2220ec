"""Learned step sizes (LSQ) with the learnable fake quantizer that ships with torch: float scales.

Nothing to install beyond torch; `torch.ao.quantization._learnable_fake_quantize` is no public module, and its gradients
are those of the paper "Learned Step Size Quantization" (Esser et al., 2019), with its gradient scale.

python benchmarks/peers/torch_lsq.py --weights float.pth --data DIR --bits 4 --epochs 8 --seed 0
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # else the script finds neither benchmarks nor engines

from collections.abc import Iterable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.peers.peer_net import peer_resnet
from benchmarks.peers.peer_run import Method, keep_record, make_parser, open_setup, train
from engines.errors import CannotRunHere

__all__ = ["main"]


class _Activation(nn.Module):
    """A ReLU, if `clip`, and a quantizer whose scale starts at 2·mean|x|/√(top code) of calibration images."""

    def __init__(self, bits: int, *, signed: bool, clip: bool) -> None:
        super().__init__()
        self.clip, self.sums = clip, torch.zeros(2)
        self.observing = False
        self.quantizer = _quantizer(bits, signed=signed)
        self.quantizer.zero_point.requires_grad = False

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(x) if self.clip else x
        if self.observing:
            self.sums += torch.stack([y.abs().sum(), torch.tensor(float(y.numel()))])
            return y
        quantized: Tensor = self.quantizer(y)
        return quantized

    @torch.no_grad()
    def start(self) -> None:
        """Take the scale from what was observed."""
        mean = self.sums[0] / self.sums[1]
        self.quantizer.scale.fill_(float(2 * mean / self.quantizer.quant_max**0.5))
        self.observing = False


class _Weighted(nn.Module):
    """A convolution or linear layer with a learned scale for each output channel."""

    def __init__(self, layer: nn.Conv2d | nn.Linear, bits: int) -> None:
        super().__init__()
        self.layer = layer
        weight = layer.weight.detach()
        self.quantizer = _quantizer(bits, signed=True, channels=len(weight))
        self.quantizer.zero_point.requires_grad = False
        with torch.no_grad():
            self.quantizer.scale.copy_(2 * weight.abs().flatten(1).mean(1) / self.quantizer.quant_max**0.5)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.quantizer(self.layer.weight)
        if isinstance(self.layer, nn.Linear):
            return F.linear(x, weight, self.layer.bias)
        stride, padding = cast(int, self.layer.stride), cast(int, self.layer.padding)
        return F.conv2d(x, weight, self.layer.bias, stride, padding)


class _LsqLayers:
    def conv(self, layer: nn.Conv2d, bits: int) -> nn.Module:
        return _Weighted(layer, bits)

    def linear(self, layer: nn.Linear, bits: int) -> nn.Module:
        return _Weighted(layer, bits)

    def relu(self, bits: int) -> nn.Module:
        return _Activation(bits, signed=False, clip=True)

    def identity(self, bits: int, signed: bool) -> nn.Module:
        return _Activation(bits, signed=signed, clip=False)


def main() -> None:
    """Take start values from calibration images, train, and write the record."""
    arguments = make_parser("Learned step sizes with torch's own quantizer.", trains=True).parse_args()
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    setup = open_setup(arguments)
    float_top1 = setup.top1(setup.net)
    net = peer_resnet(setup.net, _LsqLayers(), arguments.bits)
    calibrate(net, setup.calibration())
    scales = [weight for name, weight in net.named_parameters() if name.endswith("quantizer.scale")]
    outcome = train(net, setup, scales, float_top1)
    epochs = setup.recipe.training.epochs
    method = Method(
        name=f"torch-lsq-{arguments.bits}bit-{epochs}-epochs",
        method="QAT, learned step sizes (LSQ)",
        library="torch",
        version=torch.__version__,
        scales="float",
        script="torch_lsq.py",
        notes="Batch norms stay float layers; the last ReLU has 8 bits.",
    )
    keep_record(arguments, setup, method, outcome)


def calibrate(net: nn.Module, batches: Iterable[Tensor]) -> None:
    """Let activation scales start from what these images give in float.

    Args:
        net: of this script's layers; left in eval mode.
        batches: float32 images, shape (N, C, H, W).
    """
    quantizers = [module for module in net.modules() if isinstance(module, _Activation)]
    for quantizer in quantizers:
        quantizer.observing = True
    net.eval()
    with torch.no_grad():
        for images in batches:
            net(images)
    for quantizer in quantizers:
        quantizer.start()


def _quantizer(bits: int, *, signed: bool, channels: int = -1) -> Any:
    try:
        from torch.ao.quantization import MinMaxObserver, PerChannelMinMaxObserver
        from torch.ao.quantization._learnable_fake_quantize import _LearnableFakeQuantize
    except ImportError as error:
        raise CannotRunHere("This torch has no learnable fake quantizer.", "take another version.") from error
    per_channel = channels > 0
    made: Any = _LearnableFakeQuantize(  # type: ignore[no-untyped-call]
        PerChannelMinMaxObserver if per_channel else MinMaxObserver,
        quant_min=-(2 ** (bits - 1)) if signed else 0,
        quant_max=2 ** (bits - 1) - 1 if signed else 2**bits - 1,
        channel_len=channels,
        use_grad_scaling=True,
        dtype=torch.qint8 if signed else torch.quint8,
        qscheme=torch.per_channel_symmetric if per_channel else torch.per_tensor_symmetric,
    )
    return made.enable_param_learning()


if __name__ == "__main__":
    main()
