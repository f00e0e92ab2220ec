"""Calibration: run the float net on a few batches and fix every activation's exponent (paper 3.2)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from calibration import CalibrationError, RangeEstimator, make_estimator, power_of_two_ceiling, waste
from engines.errors import InputError
from faq_deploy.fixed_point import MAX_EXPONENT, MIN_EXPONENT
from faq_deploy.graph import Node
from faq_deploy.layers import ActivationQuantizer
from faq_deploy.net import QuantizedNet
from faq_deploy.place import Target
from faq_deploy.recipe import CalibrationSection

__all__ = ["ActivationRange", "calibrate"]


@dataclass(frozen=True)
class ActivationRange:
    """What calibration found for one activation tensor.

    Attributes:
        name: of its quantizer.
        bits, signed: of its grid.
        y: measured range, in the tensor's units.
        ymax: where the grid ends, a power of two.
        exponent: l; the step size is 2^l.
        waste: share of the range lost to rounding up to a power of two.
    """

    name: str
    bits: int
    signed: bool
    y: float
    ymax: float
    exponent: int
    waste: float

    def as_dict(self) -> dict[str, float | int | str | bool]:
        """For JSON."""
        return asdict(self)


def calibrate(
    net: QuantizedNet,
    batches: Iterable[Tensor],
    section: CalibrationSection,
    target: Target,
    name_of: Callable[[int], str] | None = None,
) -> list[ActivationRange]:
    """Measure ranges in float, fix all exponents, and switch the net to quantized mode.

    Args:
        net: its weights are still those of the float model.
        batches: float32 images, shape (N, C, H, W), normalized; not looked at by method `fixed`.
        section: method, percentiles and rounding of the recipe.
        target: `paper` gives pooled tensors the exponent of what they pool (A20).
        name_of: names the image that came as number 0, 1, ..., for errors.

    Returns:
        One record a quantizer, in graph order.

    Raises:
        InputError: no batch; NaN or Inf in an activation (the layer and the image are named).
    """
    nodes = {node.name: node for node in net.graph if node.kind == "quantize"}
    quantizers = net.quantizers()
    if section.method == "fixed":
        own = {name: _fixed_exponent(q) for name, q in quantizers.items()}
        y = {name: math.ldexp(q.grid.max_code, own[name]) for name, q in quantizers.items()}
    else:
        _observe(net, batches, section, name_of or (lambda position: f"number {position + 1}"))
        y = {name: _range(name, q) for name, q in quantizers.items()}
        own = {name: _exponent(y[name], q, section) for name, q in quantizers.items()}
    exponents = _settle(nodes, own, target)
    for name, quantizer in quantizers.items():
        quantizer.set_exponent(min(max(exponents[name], MIN_EXPONENT), MAX_EXPONENT))
        quantizer.observer = None
    net.link_exponents()
    net.set_mode("quantize")
    net.refresh()
    if target != "paper":  # its arithmetic is the paper's
        net.clear_means()
    return [_record(name, q, y[name]) for name, q in quantizers.items()]


def _observe(
    net: QuantizedNet, batches: Iterable[Tensor], section: CalibrationSection, name_of: Callable[[int], str]
) -> None:
    assert section.method != "fixed"  # which looks at nothing
    for name, quantizer in net.quantizers().items():
        grid = quantizer.grid
        percent = section.percentile_4 if grid.bits <= 4 else section.percentile_8
        estimator = make_estimator(section.method, bits=grid.bits, signed=grid.signed, percent=percent)
        quantizer.observer = _Named(estimator, name)
    net.eval()
    net.set_mode("observe")
    count = 0
    with torch.inference_mode():
        for batch in batches:
            try:
                net(batch)
            except _Stopped as error:
                raise error.at_image(name_of(count + _culprit(net, batch))) from error
            count += len(batch)
    if count == 0:
        raise InputError("there are no images to calibrate on.", "give at least one batch of training images.")


def _culprit(net: QuantizedNet, batch: Tensor) -> int:
    """The first image of a batch that stops calibration by itself."""
    for row in range(len(batch)):
        try:
            net(batch[row : row + 1])
        except _Stopped:
            return row
    return 0


class _Stopped(Exception):
    """An activation that has no range."""

    def __init__(self, layer: str, why: str) -> None:
        super().__init__(layer, why)
        self.layer, self.why = layer, why

    def at_image(self, image: str) -> InputError:
        """The error for the user."""
        return InputError(
            f"calibration stopped at layer {self.layer}, image {image}: {self.why}.",
            "look for broken weights or images, or give the input another normalization.",
        )


class _Named:
    """A range estimator that knows its layer's name, for errors."""

    def __init__(self, estimator: RangeEstimator, name: str) -> None:
        self.estimator, self.name = estimator, name

    def update(self, tensor: Tensor) -> None:
        try:
            self.estimator.update(tensor)
        except CalibrationError as error:
            raise _Stopped(self.name, str(error)) from error

    def result(self) -> float:
        return self.estimator.result()


def _range(name: str, quantizer: ActivationQuantizer) -> float:
    assert quantizer.observer is not None, name
    return quantizer.observer.result()


def _exponent(y: float, quantizer: ActivationQuantizer, section: CalibrationSection) -> int:
    return power_of_two_ceiling(y, section.round_up == "even") - quantizer.grid.magnitude_bits


def _fixed_exponent(quantizer: ActivationQuantizer) -> int:
    """The paper's control without calibration: l = -b/2, so that a ReLU's range ends at 2^(b/2) (3.2, A32).

    A ReLU of target tensorrt at 8 bits has codes of 7; its range ends where that of 8 does.
    """
    grid = quantizer.grid
    return -(grid.bits // 2) if grid.signed else -(-grid.bits // 2) - grid.bits


def _settle(nodes: dict[str, Node], own: dict[str, int], target: Target) -> dict[str, int]:
    """Exponents after sharing: one for all inputs of a concat, and pooled tensors no coarser than their input."""
    wanted, settled = dict(own), dict[str, int]()
    while True:
        groups: dict[str, int] = {}
        for name, node in nodes.items():
            group = str(node.settings["group"] or name)
            groups[group] = max(groups.get(group, wanted[name]), wanted[name])
        previous, settled = settled, {name: groups[str(node.settings["group"] or name)] for name, node in nodes.items()}
        if settled == previous:
            return settled
        for name, node in nodes.items():
            source = node.settings["pooled_from"]
            if isinstance(source, str):
                averaged = source if source in settled else f"{source}_quantizer"
                pooled = settled[averaged]
                # a mean stays inside the range of what it averages; a coarser grid could tie (design 4), and is there
                # only for codes of fewer bits
                spare = max(_magnitude_bits(nodes[averaged]) - _magnitude_bits(node), 0)
                wanted[name] = pooled if target == "paper" else min(own[name], pooled + spare)


def _magnitude_bits(node: Node) -> int:
    return node.integer("bits") - int(node.settings["signed"] is True)


def _record(name: str, quantizer: ActivationQuantizer, y: float) -> ActivationRange:
    exponent = int(quantizer.exponent)
    top = exponent + quantizer.grid.magnitude_bits
    ymax = 2.0**top
    lost = waste(y, top) if 0 < y <= ymax else 0.0
    return ActivationRange(name, quantizer.grid.bits, quantizer.grid.signed, y, ymax, exponent, lost)
