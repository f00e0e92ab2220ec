"""Matrix products written in other operators: with a constant as a 1x1 convolution, of two activations as a sum."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

import numpy as np
import onnx

from engines.errors import InputError
from engines.graph_edit import Arrange, GraphEdit, layer_name
from engines.qdq_graph import Attribute, Constant, attributes
from engines.tensor_kinds import FLOAT32, element_type

__all__ = ["is_product", "rewrite_product"]

_MOST_PRODUCTS: Final = 2**22  # of an image; each may lie in memory: 16 MiB
_ROWS, _COLUMNS = {0: 0}, {1: 0}  # where a matrix may keep a scale for each output


def is_product(kinds: Mapping[str, onnx.TypeProto], node: onnx.NodeProto) -> bool:
    """Whether a node is a matrix product in float32, as far as is known."""
    return node.op_type in ("Gemm", "MatMul") and element_type(kinds, node.input[0]) in FLOAT32


def rewrite_product(edit: GraphEdit, node: onnx.NodeProto) -> None:
    """Write a Gemm or MatMul as operators that every GPU has; no code changes.

    A product with a constant matrix becomes a 1x1 convolution over a batch of rows (or of columns), one of two
    activations becomes products and their sum.

    Args:
        edit: of the model.
        node: for which `is_product` is true.

    Raises:
        InputError: a product whose shape is not known, or too large for a sum.
    """
    (_gemm if node.op_type == "Gemm" else _matmul)(edit, node)


def _gemm(edit: GraphEdit, node: onnx.NodeProto) -> None:
    settings, title = attributes(node), node.name or node.output[0]
    alpha, beta = settings.get("alpha", 1.0), settings.get("beta", 1.0)
    left, right = node.input[:2]
    if settings.get("transA"):
        left = edit.add("Transpose", [left], f"{title}.transposed", perm=[1, 0])
    bias = node.input[2] if len(node.input) > 2 else ""
    weight, bias_value = edit.value(right), edit.value(bias) if bias else None
    outputs = edit.shape(node.output[0])
    size = outputs[1] if outputs is not None and len(outputs) == 2 else None
    # a bias with one number for each output goes into the layer, as the layer's own
    inside = alpha == beta == 1.0 and bias_value is not None and bias_value.size == size and weight is not None
    rest = bias and not inside
    last = None if rest or alpha != 1.0 else node.output[0]
    if weight is None:
        if settings.get("transB"):
            right = edit.add("Transpose", [right], f"{title}.turned", perm=[1, 0])
        made = _sum_of_products(edit, node, left, right, (None, _inner(edit, node), size), last)
    else:
        turned = weight if settings.get("transB") else weight.T
        axes = _ROWS if settings.get("transB") else _COLUMNS
        name = edit.rearranged(right, _kernels(bool(settings.get("transB"))), axes, f"{title}.kernels")
        rows = edit.reshaped(left, [-1, turned.shape[1], 1, 1], f"{title}.rows")
        inputs = [edit.requantized(rows, node.input[0], f"{title}.rows"), name]
        if inside:
            inputs.append(edit.rearranged(bias, lambda value: value.reshape(-1), {0: 0}, f"{title}.bias"))
        products = edit.add("Conv", inputs, title, output=f"{title}.sums", kernel_shape=[1, 1])
        made = edit.reshaped(products, [-1, len(turned)], f"{title}.flat", output=last)
    if alpha != 1.0:
        scaled = None if rest else node.output[0]
        made = edit.add("Mul", [made, _scalar(edit, alpha, f"{title}.alpha")], f"{title}.scaled", output=scaled)
    if rest:
        if beta != 1.0:
            bias = edit.add("Mul", [bias, _scalar(edit, beta, f"{title}.beta")], f"{title}.added")
        edit.add("Add", [made, bias], f"{title}.sum", output=node.output[0])


def _matmul(edit: GraphEdit, node: onnx.NodeProto) -> None:
    title = node.name or node.output[0]
    left, right = (edit.value(name) for name in node.input)
    shape = edit.shape(node.output[0])
    if shape is None or sum(size is None for size in shape) > 1:
        raise _refused(edit, node, "its shape is not fixed but for the batch")
    back = [-1 if size is None else size for size in shape]
    if right is not None and right.size == math.prod(right.shape[-2:]):
        shape_in, source, axes = [-1, right.shape[-2] if right.ndim > 1 else right.size, 1, 1], node.input[0], _COLUMNS
        name = edit.rearranged(node.input[1], _kernels(False), axes if right.ndim == 2 else {}, f"{title}.kernels")
    elif left is not None and left.size == math.prod(left.shape[-2:]):
        columns = edit.shape(node.input[1])
        if columns is None or columns[-1] is None:
            raise _refused(edit, node, "its shape is not fixed but for the batch")
        shape_in, source, axes = [-1, left.shape[-1], columns[-1], 1], node.input[1], _ROWS
        name = edit.rearranged(node.input[0], _kernels(True), axes if left.ndim == 2 else {}, f"{title}.kernels")
    else:
        sizes = (*shape[:-1], _inner(edit, node), *shape[-1:])
        _sum_of_products(edit, node, node.input[0], node.input[1], sizes, node.output[0])
        return
    images = edit.requantized(edit.reshaped(source, shape_in, f"{title}.images"), source, f"{title}.images")
    sums = edit.add("Conv", [images, name], title, output=f"{title}.sums", kernel_shape=[1, 1])
    edit.reshaped(sums, back, f"{title}.back", output=node.output[0])


def _sum_of_products(
    edit: GraphEdit, node: onnx.NodeProto, left: str, right: str, sizes: tuple[int | None, ...], output: str | None
) -> str:
    """Products of all pairs, then sums; `sizes` are rows, terms and columns, and stacks before them."""
    title = node.name or node.output[0]
    ranks = [len(edit.shape(name) or ()) for name in node.input[:2]]
    if min(ranks) < 2 or None in sizes[1:]:
        raise _refused(edit, node, "its shape is not fixed but for the batch")
    if math.prod(size or 1 for size in sizes) > _MOST_PRODUCTS:
        raise _refused(edit, node, f"as sums it would hold more than {_MOST_PRODUCTS:,} products for each image")
    across = edit.add("Unsqueeze", [left, edit.numbers([-1], f"{title}.last")], f"{title}.left")
    down = edit.add("Unsqueeze", [right, edit.numbers([-3], f"{title}.third")], f"{title}.right")
    products = edit.add("Mul", [across, down], f"{title}.products")
    axes = edit.numbers([-2], f"{title}.terms")
    return edit.add("ReduceSum", [products, axes], title, output=output or f"{title}.sums", keepdims=0)


def _kernels(is_turned: bool) -> Arrange:
    """A matrix as 1x1 kernels: (outputs, inputs, 1, 1); `is_turned` if its rows are the outputs already."""

    def arrange(value: Constant) -> Constant:
        matrix = value.reshape(value.shape[-2:] if value.ndim > 1 else (1, -1) if is_turned else (-1, 1))
        return (matrix if is_turned else matrix.T)[:, :, None, None]

    return arrange


def _inner(edit: GraphEdit, node: onnx.NodeProto) -> int | None:
    shape = edit.shape(node.input[0])
    axis = 0 if attributes(node).get("transA") else -1
    return shape[axis] if shape else None


def _scalar(edit: GraphEdit, value: Attribute, name: str) -> str:
    return edit.constant(np.asarray(value, np.float32), name)


def _refused(edit: GraphEdit, node: onnx.NodeProto, why: str) -> InputError:
    return InputError(
        f"{layer_name(edit.model, node)} is a matrix product in FP32, which TensorRT-RTX doesn't have on Turing "
        f"(SM 75), and it can't be written in other operators: {why}.",
        "leave SM 75 out, keep that layer out of the model, or run on that GPU with TensorRT or onnxruntime.",
    )
