"""Beyond the paper: exponents learned by gradient as in TQT, in our folded net, against the paper's rule (`ours.py`).

Each weight exponent (of a channel) and each exponent of a ReLU of 4 bits or fewer gets a float parameter, which is
rounded; its gradient is that of the step's logarithm with rounding passed straight through, and Adam moves it.

python benchmarks/peers/learned_exponents.py --weights float.pth --data DIR --bits 4 --epochs 8 --seed 0

Source: Jain et al., "Trained Quantization Thresholds", 2019, 3.3 and 5.2.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # else the script finds neither benchmarks nor engines

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal
from unittest.mock import patch

import torch
from torch import Tensor, nn

import faq_deploy.net
from benchmarks.peers.peer_run import Method, keep_record, make_parser, open_setup, train
from faq_deploy import __version__
from faq_deploy.activation_exponents import calibrate
from faq_deploy.augment import batch_sizes
from faq_deploy.fixed_point import FixedPoint, quantize_activation, quantize_weight
from faq_deploy.layers import ActivationQuantizer, WeightedLayer
from faq_deploy.net import QuantizedNet
from faq_deploy.recipe import load_recipe, override
from faq_deploy.rewrite import rewrite

__all__ = ["LearnedExponents", "gradient_of_exponent", "learn", "main"]

_LN2: Final = math.log(2)

Part = Literal["weights", "activations", "both"]


def gradient_of_exponent(values: Tensor, quantized: Tensor, exponent: Tensor | float, grid: FixedPoint) -> Tensor:
    """d quantized / d exponent, element by element: ln 2 times q - x between the last codes, and q beyond them.

    Args:
        values: x, float32.
        quantized: q, the same shape.
        exponent: of the step, broadcastable.
        grid: the codes.
    """
    codes = values * torch.exp2(-torch.as_tensor(exponent, dtype=torch.float32))
    inside = (codes > grid.min_code - 0.5) & (codes < grid.max_code + 0.5)
    return torch.where(inside, quantized - values, quantized) * _LN2


class _Attach(torch.autograd.Function):
    """Passes quantized values on and gives the exponent its gradient, which `slope` was computed for."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, quantized: Tensor, exponent: Tensor, slope: Tensor) -> Tensor:
        ctx.save_for_backward(slope)
        ctx.shape = exponent.shape  # type: ignore[attr-defined]
        return quantized.view_as(quantized)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        (slope,) = ctx.saved_tensors  # type: ignore[attr-defined]
        product = slope * gradient
        (channels,) = ctx.shape  # type: ignore[attr-defined]
        return gradient, product.flatten(1).sum(1) if channels > 1 else product.sum().reshape(1), None


@dataclass(frozen=True)
class LearnedExponents:
    """The parameters behind a net's exponents, and how they get into the net.

    Attributes:
        net: whose layers ask for them.
        weights: one parameter a weighted layer, shape of its `weight_exponent`; empty if they follow the rule.
        quantizers: those with a parameter, and it, shape (1,).
        optimizer: Adam.
        decay: of its rate, a step.
    """

    net: QuantizedNet
    weights: Sequence[nn.Parameter]
    quantizers: Sequence[tuple[ActivationQuantizer, nn.Parameter]]
    optimizer: torch.optim.Optimizer
    decay: float

    def before_step(self) -> None:
        """Take the step that the last gradients ask for, and give layers the rounded exponents."""
        self.optimizer.step()
        self.optimizer.zero_grad()
        for group in self.optimizer.param_groups:
            group["lr"] *= self.decay
        for quantizer, exponent in self.quantizers:
            quantizer.set_exponent(round(float(exponent.detach())))
        self.net.link_exponents()
        if not self.weights:
            self.net.refresh()
            return
        rounded = [exponent.detach().round().to(torch.int32) for exponent in self.weights]
        # refresh as ever, with certificate and the biases' floor, but for the rule
        with patch.object(faq_deploy.net, "weight_exponents", lambda *args, **kwargs: rounded):
            self.net.refresh()


def learn(net: QuantizedNet, part: Part, rate: float, decay: float = 1.0) -> LearnedExponents:
    """Give a calibrated net's exponents parameters, which start from what they are.

    Args:
        net: its layers get another forward.
        part: whose exponents.
        rate: Adam's.
        decay: of that rate, a step.
    """
    weights = [_learned_weight(layer) for layer in net.weighted().values()] if part != "activations" else []
    few = [q for q in net.quantizers().values() if q.grid.bits <= 4 and not q.grid.signed and q.cap is None]
    quantizers = [(q, _learned_activation(q)) for q in few] if part != "weights" else []
    parameters = [*weights, *(exponent for _, exponent in quantizers)]
    return LearnedExponents(net, weights, quantizers, torch.optim.Adam(parameters, rate), decay)


def _learned_weight(layer: WeightedLayer) -> nn.Parameter:
    exponent = nn.Parameter(layer.weight_exponent.float())

    def used_weight() -> Tensor:
        weight, _ = layer.folded()
        used = layer.weight_exponent.reshape(-1, *[1] * (weight.dim() - 1))
        quantized = quantize_weight(weight, used, layer.grid)
        slope = gradient_of_exponent(weight.detach(), quantized.detach(), used, layer.grid)
        attached: Tensor = _Attach.apply(quantized, exponent, slope)
        return attached

    layer.used_weight = used_weight  # type: ignore[method-assign]
    return exponent


def _learned_activation(quantizer: ActivationQuantizer) -> nn.Parameter:
    exponent = nn.Parameter(torch.tensor([float(quantizer.exponent_number)]))

    def forward(x: Tensor) -> Tensor:
        used = quantizer.exponent_number
        quantized = quantize_activation(x, used, quantizer.grid)
        if not x.requires_grad:
            return quantized
        slope = gradient_of_exponent(x.detach(), quantized.detach(), used, quantizer.grid)
        attached: Tensor = _Attach.apply(quantized, exponent, slope)
        return attached

    quantizer.forward = forward  # type: ignore[method-assign]
    return exponent


def main() -> None:
    """Calibrate, train, and write the record."""
    parser = make_parser("Exponents learned by gradient, in our net.", trains=True)
    parser.add_argument("--part", choices=["weights", "activations", "both"], default="both", help="whose exponents")
    parser.add_argument("--exponent-lr", type=float, default=0.01, help="Adam's in the first step")
    arguments = parser.parse_args()
    setup = open_setup(arguments)
    recipe = override(load_recipe("faq-8bit"), {"bits": arguments.bits})
    float_top1 = setup.top1(setup.net)
    images = list(setup.calibration())
    net = rewrite(setup.net, images[0][:2], recipe)
    calibrate(net, images, recipe.calibration, recipe.target)
    steps = len(batch_sizes(len(setup.splits.train), setup.recipe.training.batch_size))
    learned = learn(net, arguments.part, arguments.exponent_lr, arguments.gamma ** (1 / steps))
    before = [parameter.detach().round() for parameter in learned.weights]
    outcome = train(net, setup, [], float_top1, before_step=learned.before_step)
    pairs = zip(before, learned.weights, strict=True)
    moved = sum(int((start != parameter.detach().round()).sum()) for start, parameter in pairs)
    print(f"{moved} of {sum(map(torch.numel, before))} weight exponents moved", file=sys.stderr)
    epochs = setup.recipe.training.epochs
    rate = f"{arguments.exponent_lr:g}"
    method = Method(
        name=f"learned-exponents-{arguments.part}-{rate}-{arguments.bits}bit-{epochs}-epochs",
        method=f"QAT, learned exponents (TQT-like), {arguments.part}",
        library="faq-deploy",
        version=__version__,
        scales="po2",
        script="learned_exponents.py",
        options=("--part", arguments.part, "--exponent-lr", rate),
        notes="As ours but for the exponents: a trial, not an option of quantize.",
    )
    keep_record(arguments, setup, method, outcome)


if __name__ == "__main__":
    main()
