"""Quantized nets of one or two layers with chosen integers, for tests: no model, no calibration."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from onnx import helper
from torch import Tensor

from faq_deploy.batch_norm import BatchNormMode
from faq_deploy.emit import emit_graph
from faq_deploy.fixed_point import FixedPoint
from faq_deploy.graph import Graph, Kind, Node, Setting
from faq_deploy.layers import WeightedLayer
from faq_deploy.net import QuantizedNet, WeightRules
from faq_deploy.place import Target

__all__ = ["WEIGHT_EXPONENT", "build", "conv", "freeze", "input_nodes", "quantizer", "save_onnx"]

WEIGHT_EXPONENT = -7


def quantizer(name: str, source: str, grid: FixedPoint, *, relu: bool = False) -> Node:
    """A `quantize` node as `place_quantizers` makes them."""
    settings: dict[str, Setting] = {
        "bits": grid.bits,
        "signed": grid.signed,
        "narrow": grid.narrow,
        "clip": "relu" if relu else "none",
        "cap": None,
        "group": None,
        "pooled_from": None,
    }
    return Node(name, "quantize", (source,), settings)


def input_nodes(shape: list[int], grid: FixedPoint) -> list[Node]:
    """The input and its quantizer `codes`, whose step is 1: values are codes."""
    return [Node("input", "input", (), {"shape": shape}), quantizer("codes", "input", grid)]


def conv(name: str, source: str, *, groups: int = 1, kind: Kind = "conv", dimensions: int = 2) -> Node:
    """A weighted node with 8-bit weights, no padding and stride 1."""
    if kind == "linear":
        return Node(name, kind, (source,), {"weight_bits": 8})
    zeros, ones = [0] * dimensions, [1] * dimensions
    settings: dict[str, Setting] = {
        "stride": ones,
        "padding": zeros,
        "dilation": ones,
        "groups": groups,
        "weight_bits": 8,
    }
    if kind == "conv_transpose":
        settings["output_padding"] = zeros
    return Node(name, kind, (source,), settings)


def build(
    nodes: list[Node],
    codes: Mapping[str, tuple[npt.NDArray[np.int64], npt.NDArray[np.int64] | None]],
    *,
    state: Mapping[str, Tensor] = {},
    batch_norm: BatchNormMode = "fold",
    per_channel: bool = True,
    certify: bool = False,
) -> QuantizedNet:
    """A net in quantized mode whose layers have these weight and bias codes, all with step 2^-7.

    Args:
        nodes: the last one is the output.
        codes: weight and bias codes of every weighted node.
        state: parameters of other nodes.
        batch_norm, per_channel, certify: as in `QuantizedNet`.
    """
    parameters = dict(state)
    for name, (weight, bias) in codes.items():
        parameters[f"{name}.weight"] = torch.from_numpy(weight * 2.0**WEIGHT_EXPONENT).float()
        if bias is not None:
            parameters[f"{name}.bias"] = torch.from_numpy(bias * 2.0**WEIGHT_EXPONENT).float()
    net = QuantizedNet(
        Graph(tuple(nodes), (nodes[-1].name,)),
        parameters,
        per_channel=per_channel,
        batch_norm=batch_norm,
        rules=WeightRules({4: "max", 8: "max"}),
        sigma_factor=4.12,
        certify=certify,
    )
    net.set_mode("quantize")
    net.link_exponents()
    for layer in net.weighted().values():
        freeze(layer)
    return net.eval()


def freeze(layer: WeightedLayer) -> None:
    """Give a layer back the exponent that makes its weights the codes they were made from."""
    layer.weight_exponent.fill_(WEIGHT_EXPONENT)


def save_onnx(net: QuantizedNet, outputs: int, folder: Path, target: Target = "paper") -> Path:
    """The net as an ONNX file in a folder."""
    model = helper.make_model(emit_graph(net, target), opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path
