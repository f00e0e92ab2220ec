"""Quantization-aware training with Brevitas: scales that are powers of two, or learned floats as in LSQ.

Install: pip install brevitas==0.13.4 (it asks for setuptools<81; an environment of its own is best)

python benchmarks/peers/brevitas_qat.py --weights float.pth --data DIR --scales po2 --bits 4 --epochs 8 --seed 0
python benchmarks/peers/brevitas_qat.py --weights float.pth --data DIR --scales float --bits 4 --epochs 8 --seed 0
"""

from __future__ import annotations

import sys
import warnings
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # else the script finds neither benchmarks nor engines

from typing import Any, Literal

import torch
from torch import nn

from benchmarks.peers.peer_net import peer_resnet
from benchmarks.peers.peer_run import Method, keep_record, make_parser, open_setup, train
from engines.errors import CannotRunHere

__all__ = ["main"]


class _BrevitasLayers:
    """Brevitas' layers: weight scales by channel, started from the least squared error; activation scales by tensor.

    Args:
        scales: powers of two (`*FixedPoint*` quantizers), or floats (`*Float*`).
        percentiles: where activation scales start, by bits; None takes Brevitas' own.
    """

    def __init__(self, scales: Literal["po2", "float"], percentiles: dict[int, float] | None) -> None:
        try:
            self.layers: Any = import_module("brevitas.nn")
            fixed_point: Any = import_module("brevitas.quant.fixed_point")
            scaled_int: Any = import_module("brevitas.quant.scaled_int")
        except ImportError as error:
            raise CannotRunHere("This script needs Brevitas.", "pip install brevitas==0.13.4") from error
        self.percentiles = percentiles
        if scales == "po2":
            self.weight: Any = fixed_point.Int8WeightPerChannelFixedPointMSE
            self.signed: Any = fixed_point.Int8ActPerTensorFixedPoint
            self.unsigned: Any = fixed_point.Uint8ActPerTensorFixedPoint
        else:
            self.weight = scaled_int.Int8WeightPerChannelFloatMSE
            self.signed, self.unsigned = scaled_int.Int8ActPerTensorFloat, scaled_int.Uint8ActPerTensorFloat

    def conv(self, layer: nn.Conv2d, bits: int) -> nn.Module:
        made: nn.Module = self.layers.QuantConv2d(
            layer.in_channels,
            layer.out_channels,
            layer.kernel_size,
            stride=layer.stride,
            padding=layer.padding,
            bias=False,
            weight_quant=self.weight,
            weight_bit_width=bits,
        )
        return _filled(made, layer)

    def linear(self, layer: nn.Linear, bits: int) -> nn.Module:
        sizes = layer.in_features, layer.out_features
        made = self.layers.QuantLinear(*sizes, bias=True, weight_quant=self.weight, weight_bit_width=bits)
        return _filled(made, layer)

    def relu(self, bits: int) -> nn.Module:
        made: nn.Module = self.layers.QuantReLU(act_quant=self.unsigned, bit_width=bits, **self._start(bits))
        return made

    def identity(self, bits: int, signed: bool) -> nn.Module:
        quantizer = self.signed if signed else self.unsigned
        made: nn.Module = self.layers.QuantIdentity(act_quant=quantizer, bit_width=bits, **self._start(bits))
        return made

    def _start(self, bits: int) -> dict[str, float]:
        return {} if self.percentiles is None else {"high_percentile_q": self.percentiles[bits]}


def main() -> None:
    """Calibrate, train, and write the record."""
    parser = make_parser("Quantization-aware training with Brevitas.", trains=True)
    parser.add_argument("--scales", choices=["po2", "float"], default="po2", help="powers of two, or learned floats")
    parser.add_argument("--start", choices=["own", "ours"], default="ours", help="percentiles of activation scales")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", category=UserWarning)  # torch.jit's and named tensors' deprecations
    setup = open_setup(arguments)
    float_top1 = setup.top1(setup.net)
    percentiles = {8: 99.99, arguments.bits: 99.9 if arguments.bits <= 4 else 99.99}
    layers = _BrevitasLayers(arguments.scales, percentiles if arguments.start == "ours" else None)
    net = peer_resnet(setup.net, layers, arguments.bits)
    calibrate(net, setup.calibration())
    scales = [weight for name, weight in net.named_parameters() if ".scaling_impl." in name]
    outcome = train(net, setup, scales, float_top1)
    epochs = setup.recipe.training.epochs
    learned = "power-of-two" if arguments.scales == "po2" else "float"
    method = Method(
        name=f"brevitas-{arguments.scales}-qat-{arguments.bits}bit-{epochs}-epochs",
        method=f"QAT, learned {learned} scales",
        library="brevitas",
        version=version("brevitas"),
        scales=arguments.scales,
        script="brevitas_qat.py",
        options=("--scales", arguments.scales),
        notes="Batch norms stay float layers, so that their multipliers are floats; the last ReLU has 8 bits.",
    )
    keep_record(arguments, setup, method, outcome)


def calibrate(net: nn.Module, batches: Any) -> None:
    """Let activation scales start from what these images give."""
    mode: Any = import_module("brevitas.graph.calibrate").calibration_mode
    net.eval()
    with torch.no_grad(), mode(net):
        for images in batches:
            net(images)


def _filled(made: Any, layer: nn.Conv2d | nn.Linear) -> nn.Module:
    made.weight.data.copy_(layer.weight.data)
    if layer.bias is not None:
        made.bias.data.copy_(layer.bias.data)
    result: nn.Module = made
    return result


if __name__ == "__main__":
    main()
