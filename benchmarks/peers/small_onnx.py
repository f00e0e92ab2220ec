"""A small net exported by other tools, as files for the tests: tests/peer_files/brevitas.onnx and modelopt.onnx.

Install: pip install brevitas==0.13.4 onnxoptimizer, or nvidia-modelopt==0.47.0; best in an environment of its own

python benchmarks/peers/small_onnx.py brevitas tests/peer_files/brevitas.onnx
python benchmarks/peers/small_onnx.py modelopt tests/peer_files/modelopt.onnx
"""

from __future__ import annotations

import argparse
import sys
from importlib import import_module
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # else the script does not find engines

from collections.abc import Callable, Mapping
from typing import Any, Final

import torch
from torch import Tensor, nn

from engines.errors import CannotRunHere

__all__ = ["SmallNet", "main"]

_CHANNELS: Final = 4
_CLASSES: Final = 5
_OPSET: Final = 17
_SIZE: Final = 8


class SmallNet(nn.Module):
    """Two convolutions, a skip, an average and a linear layer.

    Args:
        conv: makes a convolution with a bias of given input and output channels.
        linear: makes the last layer.
        relu: makes the function behind a layer.
        identity: makes what stands before the first layer, and one for both inputs of the sum.
    """

    def __init__(
        self,
        conv: Callable[[int, int], nn.Module],
        linear: Callable[[int, int], nn.Module],
        relu: Callable[[], nn.Module],
        identity: Callable[[], nn.Module],
    ) -> None:
        super().__init__()
        self.start, self.first, self.relu = identity(), conv(3, _CHANNELS), relu()
        self.second, self.skip, self.last_relu = conv(_CHANNELS, _CHANNELS), identity(), relu()
        self.pool, self.head = nn.AdaptiveAvgPool2d(1), linear(_CHANNELS, _CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Logits, shape (N, 5), of images, shape (N, 3, 8, 8)."""
        x = self.relu(self.first(self.start(x)))
        x = self.last_relu(self.skip(self.second(x)) + self.skip(x))
        logits: Tensor = self.head(self.pool(x).flatten(1))
        return logits


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tool", choices=list(_TOOLS))
    parser.add_argument("output", type=Path)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    images = torch.randn(16, 3, _SIZE, _SIZE)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    _TOOLS[arguments.tool](images, arguments.output)


def _brevitas(images: Tensor, output: Path) -> None:
    layers, scaled = _module("brevitas.nn", "brevitas==0.13.4"), _module("brevitas.quant.scaled_int", "brevitas")
    export = _module("brevitas.export", "brevitas")

    def conv(inputs: int, outputs: int) -> nn.Module:
        weight, bias = scaled.Int8WeightPerChannelFloat, scaled.Int32Bias
        made: nn.Module = layers.QuantConv2d(
            inputs, outputs, 3, padding=1, bias=True, weight_quant=weight, bias_quant=bias
        )
        return made

    net = SmallNet(
        conv=conv,
        linear=lambda inputs, outputs: layers.QuantLinear(
            inputs, outputs, bias=True, weight_quant=scaled.Int8WeightPerTensorFloat
        ),
        relu=lambda: layers.QuantReLU(act_quant=scaled.Uint8ActPerTensorFloat, return_quant_tensor=True),
        identity=lambda: layers.QuantIdentity(act_quant=scaled.Int8ActPerTensorFloat, return_quant_tensor=True),
    )
    net.train()(images)  # statistics of the scales
    export.export_onnx_qcdq(net.eval(), args=images[:1], export_path=str(output), opset_version=_OPSET, dynamo=False)


def _modelopt(images: Tensor, output: Path) -> None:
    quantization = _module("modelopt.torch.quantization", "nvidia-modelopt==0.47.0")
    net = SmallNet(
        conv=lambda inputs, outputs: nn.Conv2d(inputs, outputs, 3, padding=1),
        linear=nn.Linear,
        relu=nn.ReLU,
        identity=nn.Identity,
    ).eval()
    net = quantization.quantize(net, quantization.INT8_DEFAULT_CFG, lambda model: model(images))
    torch.onnx.export(net, (images[:1],), str(output), opset_version=_OPSET, dynamo=False)


def _module(name: str, package: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise CannotRunHere(f"This needs {name}: {error}.", f"pip install {package}") from error


_TOOLS: Final[Mapping[str, Callable[[Tensor, Path], None]]] = {"brevitas": _brevitas, "modelopt": _modelopt}

if __name__ == "__main__":
    main()
