"""Layers that TensorRT-RTX refuses, written in forms that it builds, to the same codes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import onnx

from engines.convolution_forms import has_dilated_stride, is_over_volumes, rewrite_depth, rewrite_dilated_stride
from engines.errors import InputError
from engines.graph_edit import GraphEdit, layer_name
from engines.products_as_convolutions import is_product, rewrite_product
from engines.tensor_kinds import FLOAT32, element_type, tensor_kinds

__all__ = ["TURING", "for_every_gpu", "for_turing"]

TURING: Final = 75

# products inside, which Turing lacks in FP32, and no form of ours
_NO_FORM: Final = frozenset({"Attention", "Einsum", "GRU", "LSTM", "RNN"})
_MOST_NAMES: Final = 3

_VOLUMES: Final = "Turing has no FP32 convolution over volumes: {} over images, the planes of the window as channels."
_PRODUCTS: Final = (
    "Turing has no FP32 matrix product: {} as a 1x1 convolution, or as a sum of products where nothing is constant."
)

Rewrite = Callable[[GraphEdit, onnx.NodeProto], None]


def for_every_gpu(model: onnx.ModelProto) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """Write transposed convolutions with both strides and dilations as ones without strides.

    TensorRT-RTX refuses them for every GPU ("Strided & Dilated Deconv are currently not supported").

    Args:
        model: any network.

    Returns:
        The model (the very object where nothing had to change) and what was done, a sentence each.

    Raises:
        InputError: a layer that can't be rewritten, by name.
    """
    sentence = (
        "TensorRT has no kernel for transposed convolutions with both strides and dilations: {} without strides, "
        "zeros between the inputs."
    )
    chosen = [node for node in model.graph.node if has_dilated_stride(node)]
    return _rewritten(model, chosen, rewrite_dilated_stride, sentence)


def for_turing(model: onnx.ModelProto) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """Write what Turing lacks in FP32 in forms that it has: matrix products, convolutions over volumes.

    TensorRT-RTX for SM 75 refuses them ("FP32 GEMM is not supported", "FP32 3D convolution is not supported"),
    quantized or not; in FP16 it has them.

    Args:
        model: any network.

    Returns:
        The model (the very object where nothing had to change) and what was done, a sentence each.

    Raises:
        InputError: a layer that can't be rewritten, by name.
    """
    kinds = tensor_kinds(model)
    for node in model.graph.node:
        if node.op_type in _NO_FORM and element_type(kinds, node.input[0]) in FLOAT32:
            raise InputError(
                f"{layer_name(model, node)} computes a matrix product in FP32, which TensorRT-RTX doesn't have on "
                "Turing (SM 75).",
                "leave SM 75 out, write the layer with MatMul, or run on that GPU with TensorRT or onnxruntime.",
            )
    volumes = [node for node in model.graph.node if is_over_volumes(kinds, node)]
    products = [node for node in model.graph.node if is_product(kinds, node)]
    model, first = _rewritten(model, volumes, rewrite_depth, _VOLUMES)
    model, second = _rewritten(model, products, rewrite_product, _PRODUCTS)
    return model, first + second


def _rewritten(
    model: onnx.ModelProto, chosen: Sequence[onnx.NodeProto], rewrite: Rewrite, sentence: str
) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    if not chosen:
        return model, ()
    edit = GraphEdit(model)
    edit.run(chosen, rewrite)
    names = [layer_name(model, node) for node in chosen[:_MOST_NAMES]]
    more = f" and {len(chosen) - len(names)} more" if len(chosen) > len(names) else ""
    written = "is written" if len(chosen) == 1 else "are written"
    return edit.model, (sentence.format(f"{', '.join(names)}{more} {written}"),)
