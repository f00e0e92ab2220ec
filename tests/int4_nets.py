"""Nets with 4-bit weights for tests: exported ones, and single layers as any tool may write them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from faq_deploy.onnx_export import export_onnx
from faq_deploy.recipe import override
from tests.nets import Small, with_statistics
from tests.quantized import images, make_recipe, quantized_net

__all__ = ["Array", "batch_of", "exported", "four_bit", "plain_net", "types", "unoptimized"]

Array = npt.NDArray[np.generic]


def exported(folder: Path, target: str = "tensorrt", bits: int = 8, *, int4_linear: bool = True) -> Path:
    recipe = override(make_recipe(target, bits), {"layers.int4_linear": int4_linear})
    path = folder / "model.onnx"
    export_onnx(
        quantized_net(with_statistics(Small()), recipe), path, images(4).numpy(), versions={}, checkpoint_sha256=""
    )
    return path


def unoptimized(model: onnx.ModelProto, batch: npt.NDArray[np.float32]) -> Array:
    """What onnxruntime itself makes of a model, all optimizations off."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    result: Array = session.run(None, {session.get_inputs()[0].name: batch})[0]
    return result


def types(model: onnx.ModelProto) -> dict[str, int]:
    return {tensor.name: tensor.data_type for tensor in model.graph.initializer}


def plain_net(
    kind: str,
    codes: Array,
    *,
    scale: npt.ArrayLike | None = None,
    axis: int | None = None,
    point: npt.ArrayLike | None = None,
    transposed: bool = False,
    block: int = 0,
    inputs: int = 0,
    opset_version: int = 21,
) -> onnx.ModelProto:
    """Quantize, dequantize, then one Gemm or MatMul with dequantized codes, as any tool may write it."""
    names: dict[str, npt.ArrayLike] = {"grid": np.float32(0.25), "zero": np.int8(0), "codes": codes}
    names["scale"] = np.float32(0.5)
    if scale is not None:
        names["scale"] = scale
    if point is not None:
        names["point"] = point
    points = ["point"] if point is not None else []
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "grid", "zero"], ["x.codes"], "q"),
        helper.make_node("DequantizeLinear", ["x.codes", "grid", "zero"], ["x.values"], "dq"),
        helper.make_node("DequantizeLinear", ["codes", "scale", *points], ["w"], "w"),
        helper.make_node(kind, ["x.values", "w"], ["y"], "fc"),
    ]
    settings = {"axis": axis, "block_size": block or None}
    nodes[2].attribute.extend(helper.make_attribute(key, n) for key, n in settings.items() if n is not None)
    if transposed:
        nodes[3].attribute.append(helper.make_attribute("transB", 1))
    width = inputs or codes.shape[1 if transposed else 0]
    graph = helper.make_graph(
        nodes,
        "plain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", width])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in names.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset_version)], ir_version=10)


def four_bit(shape: tuple[int, ...], seed: int = 0) -> npt.NDArray[np.int8]:
    return np.random.default_rng(seed).integers(-8, 8, shape, dtype=np.int8)


def batch_of(model: onnx.ModelProto) -> npt.NDArray[np.float32]:
    width = model.graph.input[0].type.tensor_type.shape.dim[1].dim_value
    return np.random.default_rng(1).normal(size=(3, width)).astype(np.float32)
