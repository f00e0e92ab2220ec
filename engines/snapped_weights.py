"""Constant weights of a QDQ file on power-of-two grids, rounded anew from the best numbers that the file holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper

from engines.model_edit import add_constant
from engines.power_of_two import exponent_of, fitting_exponent
from engines.qdq_graph import Constant, QdqGraph, attributes, constant
from engines.snapped_activations import Left, SnapTarget

__all__ = ["Weight", "bias_readers", "coarser_weight", "move_weight", "weights"]

_TOP: Final = 127  # the narrow grid: it holds -w wherever it holds w
_BIASED: Final = ("Conv", "ConvTranspose", "Gemm")

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Weight:
    """One quantized constant.

    Attributes:
        dequantize: its DequantizeLinear.
        scales: of the file's grid, flat.
        step_type: of the file's scale.
        codes: int8, from now on.
        exponents: of the steps from now on, one for each channel of the axis or one in all.
        axis: of the channels; None for one step in all.
        source: "floats" where the file holds the weight in float before its quantizer, else "codes".
    """

    dequantize: onnx.NodeProto
    scales: Doubles
    step_type: np.dtype[np.generic]
    codes: npt.NDArray[np.int8]
    exponents: tuple[int, ...]
    axis: int | None
    source: str

    @property
    def name(self) -> str:
        """Of its DequantizeLinear."""
        return str(self.dequantize.name or self.dequantize.output[0])


def bias_readers(graph: QdqGraph) -> Mapping[str, onnx.NodeProto]:
    """The layer that reads a tensor as its bias, by the tensor."""
    nodes = (node for node in graph.nodes if node.op_type in _BIASED and len(node.input) > 2 and node.input[2])
    return {node.input[2]: node for node in nodes}


def weights(graph: QdqGraph, target: SnapTarget) -> tuple[list[Weight], dict[str, str]]:
    """Every quantized constant that lies off the powers of two, or in a form that the target does not take.

    Args:
        graph: the file, INT4 unpacked.
        target: for "tensorrt", codes are int8 around 0, and the weight of a transposed convolution has one step.

    Returns:
        The weights on their next grids, and why others stay as they are, by the DequantizeLinear's name.
    """
    found, left = [], {}
    biases = bias_readers(graph)
    for node in graph.nodes:
        chain = _chain(graph, node) if node.op_type == "DequantizeLinear" and node.output[0] not in biases else None
        if chain is None:
            continue
        try:
            moved = _weight(graph, node, chain, target)
        except Left as reason:
            left[str(node.name or node.output[0])] = str(reason)
            continue
        found += [moved] if moved is not None else []
    return found, left


def move_weight(model: onnx.ModelProto, one: Weight) -> None:
    """Give a weight its next codes and scales; what made the old codes is left for others, or unread.

    Args:
        model: is changed; `one` is of its nodes.
        one: the weight.
    """
    node, name = one.dequantize, one.name
    steps = np.exp2(np.asarray(one.exponents, np.float64)).astype(one.step_type)
    shaped = steps if one.axis is not None else steps.reshape(())
    codes = add_constant(model, one.codes, f"{name}.po2_codes")
    scale = add_constant(model, shaped, f"{name}.po2_scale")
    point = add_constant(model, np.zeros(shaped.shape, np.int8), f"{name}.po2_zero_point")
    del node.input[:]
    node.input.extend([codes, scale, point])
    said = [attribute for attribute in node.attribute if attribute.name not in ("axis", "block_size")]
    del node.attribute[:]
    node.attribute.extend(said)
    if one.axis is not None:
        node.attribute.append(helper.make_attribute("axis", one.axis))


def coarser_weight(graph: QdqGraph, node: onnx.NodeProto, exponents: npt.NDArray[np.int64]) -> Weight:
    """A weight on larger steps.

    Args:
        graph: of a file whose weight scales are powers of two.
        node: the DequantizeLinear of int8 codes around 0.
        exponents: wanted, one for each of its scales.
    """
    codes, scale = constant(graph, node, 0), constant(graph, node, 1)
    assert codes is not None and scale is not None
    axis = _axis(node, codes.ndim) if scale.size > 1 else None
    flat = scale.astype(np.float64).reshape(-1)
    factor = _along(flat / np.exp2(exponents.astype(np.float64)), codes.ndim, axis)
    fewer = np.rint(codes.astype(np.float64) * factor).astype(np.int8)
    return Weight(node, flat, scale.dtype, fewer, tuple(int(e) for e in exponents), axis, "codes")


def _chain(graph: QdqGraph, node: onnx.NodeProto) -> list[onnx.NodeProto] | None:
    """DequantizeLinear, Clip and QuantizeLinear between a constant and its reader; None for an activation or a bias."""
    chain = [node]
    while chain[-1].input[0] not in graph.constants:
        maker = graph.producer.get(chain[-1].input[0])
        if maker is None or maker.op_type not in ("QuantizeLinear", "Clip") or len(chain) > 2:
            return None
        chain.append(maker)
    return None if graph.constants[chain[-1].input[0]].dtype == np.int32 else chain


def _weight(graph: QdqGraph, node: onnx.NodeProto, chain: list[onnx.NodeProto], target: SnapTarget) -> Weight | None:
    value, scale, point = graph.constants[chain[-1].input[0]], constant(graph, node, 1), constant(graph, node, 2)
    if scale is None or (point is None and len(node.input) > 2 and node.input[2]):
        raise Left("its scale is computed")
    if any(attributes(link).get("block_size") for link in chain if link.op_type != "Clip"):
        raise Left("it has a scale for each block")
    if (
        value.dtype.kind not in "iuf"
        or value.dtype.itemsize > 4
        or (point is not None and point.dtype.kind not in "iu")
    ):
        raise Left(f"its codes are {value.dtype if point is None else point.dtype}")
    if scale.size == 0 or not np.isfinite(scale.astype(np.float64)).all():
        raise Left("its scale is not finite")
    axis = _axis(node, value.ndim) if scale.size > 1 else None
    flat = scale.astype(np.float64).reshape(-1)
    is_transposed = any(
        reader.op_type == "ConvTranspose" and reader.input[1] == node.output[0]
        for reader in graph.consumers.get(node.output[0], ())
    )
    one_step = is_transposed and target == "tensorrt"
    if _is_there(chain, value, flat, point) and not (one_step and axis is not None):
        return None
    floats = _values(graph, chain, value, _along(flat, value.ndim, axis), axis)
    axis = None if one_step else axis
    exponents = _exponents(floats, axis)
    codes = np.rint(floats / _along(np.exp2(exponents.astype(np.float64)), floats.ndim, axis))
    source = "floats" if value.dtype.kind == "f" else "codes"
    kept = tuple(int(exponent) for exponent in exponents)
    return Weight(node, flat, scale.dtype, codes.clip(-_TOP, _TOP).astype(np.int8), kept, axis, source)


def _is_there(chain: list[onnx.NodeProto], value: Constant, scales: Doubles, point: Constant | None) -> bool:
    """Whether it lies on powers of two in a form that every engine reads."""
    kind = value.dtype if point is None else point.dtype
    clipped = any(link.op_type == "Clip" for link in chain)
    centred = point is not None and not point.any()
    return (
        kind == np.int8 and centred and not clipped and all(exponent_of(float(scale)) is not None for scale in scales)
    )


def _values(graph: QdqGraph, chain: list[onnx.NodeProto], value: Constant, steps: Doubles, axis: int | None) -> Doubles:
    """The numbers that the layer was given, before rounding where the file has them so; never outside its grid."""
    point = constant(graph, chain[0], 2)
    quantized = chain[-1] if chain[-1].op_type == "QuantizeLinear" else None
    if point is None and quantized is not None:
        point = constant(graph, quantized, 2)
    kind = point.dtype if point is not None else np.dtype(np.uint8) if quantized is not None else value.dtype
    zero = np.zeros(1) if point is None else point.astype(np.float64).reshape(-1)
    zero = _along(zero, value.ndim, axis if zero.size > 1 else None)
    low, high = _code_limits(graph, chain, kind)
    if quantized is None:
        codes = value.astype(np.float64).clip(low, high)
        made: Doubles = (codes - zero) * steps
        return made
    ends = (low - zero) * steps, (high - zero) * steps
    kept: Doubles = value.astype(np.float64).clip(np.minimum(*ends), np.maximum(*ends))
    return kept


def _code_limits(graph: QdqGraph, chain: list[onnx.NodeProto], kind: np.dtype[np.generic]) -> tuple[float, float]:
    limits = np.iinfo(kind.name)
    low, high = float(limits.min), float(limits.max)
    for link in chain:
        if link.op_type == "Clip":
            least, greatest = constant(graph, link, 1), constant(graph, link, 2)
            low = low if least is None else max(low, float(least.reshape(())))
            high = high if greatest is None else min(high, float(greatest.reshape(())))
    return low, high


def _exponents(values: Doubles, axis: int | None) -> npt.NDArray[np.int64]:
    """One for each channel that holds its largest weight; a dead channel takes the largest of the others."""
    others = tuple(index for index in range(values.ndim) if index != axis)
    tops = (
        np.abs(values).max(axis=others).reshape(-1) if axis is not None else np.abs(values).max(initial=0).reshape(-1)
    )
    fitting = [fitting_exponent(float(top), _TOP) if top > 0 else None for top in tops]
    largest = max((exponent for exponent in fitting if exponent is not None), default=0)
    return np.array([largest if exponent is None else exponent for exponent in fitting], np.int64)


def _axis(node: onnx.NodeProto, rank: int) -> int:
    axis = attributes(node).get("axis", 1)
    assert isinstance(axis, int)
    return axis % rank


def _along(values: Doubles, rank: int, axis: int | None) -> Doubles:
    """One value for each channel, in a shape that goes with the whole constant."""
    return values.reshape([-1 if index == axis else 1 for index in range(rank)])
