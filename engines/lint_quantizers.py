"""Lint rules about single quantizers: scales, zero points, storage types, and the Clip beside them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
import numpy.typing as npt
import onnx

from engines.lint_view import (
    FUNCTIONS,
    Hit,
    grid_text,
    hit,
    is_weight,
    lone_codes,
    powers_of_two,
    quantizers,
    scale_of,
)
from engines.qdq_graph import QdqGraph, constant, opset

__all__ = [
    "clip_on_codes",
    "dynamic_scale",
    "explicit_zero_point",
    "half_precision_scale",
    "misplaced_float_clip",
    "nonzero_zero_point",
    "per_channel_activation",
    "rank_one_scale",
    "scale_positive",
    "scale_power_of_two",
    "unsigned_codes",
]

_SMALLEST: Final = float(np.finfo(np.float32).tiny)  # below it float32 is subnormal, and GPUs flush it to zero
_INT8: Final = (-128, 127)
_LARGEST_FACTOR: Final = 127  # of a dyadic scale in the batch-norm modes


def scale_positive(graph: QdqGraph) -> Iterator[Hit]:
    """TensorRT refuses scales that are not positive; zero, subnormal or infinite ones lose the channel anywhere."""
    for node in quantizers(graph):
        scale = scale_of(graph, node)
        flat = np.ones(1) if scale is None else scale.reshape(-1)
        bad = np.flatnonzero(~(np.isfinite(flat) & (flat >= _SMALLEST)))
        if bad.size:
            yield hit(
                node,
                f": the scale{_of_channel(flat.size, bad)} is {flat[bad[0]]:g}, not a positive normal float32.",
                "give a dead channel any positive step and zero codes.",
            )


def dynamic_scale(graph: QdqGraph) -> Iterator[Hit]:
    """Scales that are computed at run time, which TensorRT refuses and which no proof can use."""
    for node in quantizers(graph):
        for index, what in ((1, "scale"), (2, "zero point")):
            present = len(node.input) > index and node.input[index]
            if present and constant(graph, node, index) is None:
                yield hit(
                    node,
                    f": the {what} is computed, not a constant.",
                    "quantize statically, with a calibration, so that scales are initializers.",
                )


def scale_power_of_two(graph: QdqGraph) -> Iterator[Hit]:
    """Only with powers of two do all orders of an engine's arithmetic round alike."""
    for node in quantizers(graph):
        scale = scale_of(graph, node)
        flat = np.zeros(0) if scale is None else scale.reshape(-1)
        odd = np.flatnonzero((flat > 0) & np.isfinite(flat) & ~powers_of_two(flat))
        if not odd.size:
            continue
        text = grid_text(float(flat[odd[0]]))
        kind = f"dyadic (k x 2^l with k <= {_LARGEST_FACTOR})" if " x " in text else "no power of two"
        yield hit(
            node,
            f": the scale{_of_channel(flat.size, odd)} is {text}: {kind}.",
            "exact on every engine only where sums stay below 2^24; `fold` and `snap` give pure powers of two.",
        )


def half_precision_scale(graph: QdqGraph) -> Iterator[Hit]:
    """Half-precision scales are among what makes a file build for one GPU and not for another."""
    for node in quantizers(graph):
        scale = constant(graph, node, 1)
        if scale is not None and scale.dtype != np.float32:
            yield hit(node, f": the scale is {scale.dtype}, not float32.", "store scales as float32.")


def explicit_zero_point(graph: QdqGraph) -> Iterator[Hit]:
    """Without a zero point Q means uint8, and below opset 21 onnxruntime may turn negative codes into 0 (C24)."""
    if opset(graph.model) >= 21:
        return
    for node in quantizers(graph):
        data = graph.constants.get(node.input[0])
        if data is not None and data.dtype == np.int32:
            continue  # a bias: int32 has no zero point by definition
        if len(node.input) < 3 or not node.input[2]:
            yield hit(
                node,
                " has no zero point: runtimes take it for uint8, and negative codes become 0.",
                "add an int8 zero point of 0.",
            )


def nonzero_zero_point(graph: QdqGraph) -> Iterator[Hit]:
    """TensorRT's INT8 is symmetric."""
    for node in quantizers(graph):
        point = constant(graph, node, 2)
        bad = np.zeros(0, np.int64) if point is None else np.flatnonzero(point.reshape(-1))
        if point is not None and bad.size:
            yield hit(
                node,
                f": the zero point is {int(point.reshape(-1)[bad[0]])}; TensorRT takes 0 only.",
                "export with --target tensorrt; a file of another tool goes through `faq-deploy snap`.",
            )


def unsigned_codes(graph: QdqGraph) -> Iterator[Hit]:
    """TensorRT has no UINT8 codes; some versions read them as INT8, so that 128..255 saturate in silence (F2)."""
    for node in quantizers(graph):
        point, data = constant(graph, node, 2), constant(graph, node, 0)
        if any(array is not None and array.dtype == np.uint8 for array in (point, data)):
            yield hit(
                node,
                " works on uint8 codes, which TensorRT refuses or reads as int8.",
                "export with --target tensorrt: int8 codes 0..127 behind a ReLU; `faq-deploy snap` moves other files.",
            )


def clip_on_codes(graph: QdqGraph) -> Iterator[Hit]:
    """TensorRT's Clip takes floats only (F6)."""
    for node in graph.nodes:
        if not _clips_codes(graph, node):
            continue
        if node.input[0] in graph.constants:
            yield hit(
                node,
                " clips the codes of a constant; TensorRT's Clip takes floats only.",
                "clip the constant itself; `faq-deploy lint --fix` does.",
            )
        else:
            yield hit(
                node,
                " stands between Q and DQ; TensorRT's Clip takes floats only.",
                "clip the values before QuantizeLinear.",
            )


def misplaced_float_clip(graph: QdqGraph) -> Iterator[Hit]:
    """A tensor that fills int8 is clipped by its type; a Clip there only breaks fusion (S6). ReLU6 needs one."""
    for node in graph.nodes:
        source = graph.producer.get(node.input[0])
        if node.op_type != "Clip" or _clips_codes(graph, node):
            continue
        if _is_function_step(graph, node):
            continue
        readers = [reader for reader in graph.consumers.get(node.output[0], ()) if reader.op_type == "QuantizeLinear"]
        bounds = [constant(graph, node, i) for i in (1, 2)]
        scale = scale_of(graph, readers[0]) if readers else None
        if scale is None or scale.size != 1 or any(bound is None for bound in bounds):
            yield hit(
                node,
                " has no two constant bounds and a QuantizeLinear behind it.",
                "quantize what it returns, or leave the bound to the saturation of int8.",
            )
            continue
        low, high = (float(bound.reshape(())) / float(scale.reshape(())) for bound in bounds if bound is not None)
        after_relu = source is not None and source.op_type == "Relu"
        if high >= _INT8[1] and (low <= _INT8[0] or (after_relu and low <= 0)):
            yield hit(
                node,
                f" clips to codes {low:g}..{high:g}, where int8 saturates by itself.",
                "leave it out: int8 saturates at -128 and 127 by itself.",
            )


def _clips_codes(graph: QdqGraph, node: onnx.NodeProto) -> bool:
    """Whether a node is a Clip of integers: behind QuantizeLinear, or of a weight that is stored in codes."""
    if node.op_type != "Clip":
        return False
    value, source = graph.constants.get(node.input[0]), graph.producer.get(node.input[0])
    return (value is not None and value.dtype.kind in "iu") or (
        source is not None and source.op_type == "QuantizeLinear"
    )


def _is_function_step(graph: QdqGraph, node: onnx.NodeProto) -> bool:
    """Whether it belongs to a function of quantized values (hard swish, hard tanh): no layer is there to fuse with."""
    readers = {reader.op_type for reader in graph.consumers.get(node.output[0], ())}
    return readers <= FUNCTIONS | {"QuantizeLinear"} and lone_codes(graph, node.input[0]) is not None


def per_channel_activation(graph: QdqGraph) -> Iterator[Hit]:
    """Engines want one scale for an activation (U14)."""
    for node in quantizers(graph):
        scale = scale_of(graph, node)
        if scale is not None and scale.size > 1 and not is_weight(graph, node):
            yield hit(
                node,
                f" has {scale.size} scales for an activation; engines take one.",
                "quantize activations per tensor.",
            )


def rank_one_scale(graph: QdqGraph) -> Iterator[Hit]:
    """A scale of shape (1,) is valid ONNX, but onnxruntime then leaves every Add in float (T3)."""
    for node in quantizers(graph):
        if is_weight(graph, node):
            continue
        for index, what in ((1, "scale"), (2, "zero point")):
            value = constant(graph, node, index)
            if value is not None and value.ndim == 1 and value.size == 1:
                yield hit(
                    node,
                    f": the {what} has shape (1,) where a scalar is meant; onnxruntime will not fuse it.",
                    "store it with rank 0.",
                )


def _of_channel(size: int, bad: npt.NDArray[np.intp]) -> str:
    more = f" (and {bad.size - 1} more)" if bad.size > 1 else ""
    return f" of channel {bad[0]}{more}" if size > 1 else ""
