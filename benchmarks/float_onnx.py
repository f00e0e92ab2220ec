"""The float ONNX file of a ResNet with its batch norms folded: what INT8 inference is compared with."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from engines.errors import InputError
from engines.files import atomic_path
from faq_deploy.graph import Node
from faq_deploy.net import QuantizedNet

__all__ = ["write_float_onnx"]

# as in our quantized files, so that the two differ in nothing but their arithmetic
_OPSET: Final = 13
_IR_VERSION: Final = 8


def write_float_onnx(net: QuantizedNet, example: Tensor, path: Path) -> None:
    """Write `path`: input `input` (N, C, H, W), output `logits` (N, classes), all float32.

    Args:
        net: of batch norm mode `fold`; its float weights are taken, and its quantizers left out.
        example: float32, shape (N, C, H, W).
        path: of the ONNX file.

    Raises:
        InputError: the net has an operation that this small writer doesn't know.
    """
    with torch.inference_mode():
        constants: dict[str, Tensor] = {}
        for name, layer in net.weighted().items():
            weight, bias = layer.folded()
            assert bias is not None, name  # `fold` gives every layer one
            constants |= {f"{name}.weight": weight, f"{name}.bias": bias}
        classes = net(example).shape[1]
    graph = net.graph
    nodes = [_onnx_node(node, constants) for node in graph if node.kind != "input"]
    nodes.append(helper.make_node("Identity", [graph.outputs[0]], ["logits"]))
    shape = graph.by_name()["input"].integers("shape")
    proto = helper.make_model(
        helper.make_graph(
            nodes,
            "float",
            [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", *shape])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", classes])],
            [numpy_helper.from_array(value.detach().numpy(), name) for name, value in constants.items()],
        ),
        opset_imports=[helper.make_opsetid("", _OPSET)],
        ir_version=_IR_VERSION,
    )
    onnx.checker.check_model(proto, full_check=True)
    with atomic_path(path) as temporary:
        temporary.write_bytes(proto.SerializeToString())


def _onnx_node(node: Node, constants: dict[str, Tensor]) -> onnx.NodeProto:
    own = [f"{node.name}.weight", f"{node.name}.bias"] if node.kind in {"conv", "linear"} else []
    kind, attributes = _operator(node, constants)
    made = helper.make_node(kind, [*node.inputs, *own], [node.name], name=node.name)
    made.attribute.extend(helper.make_attribute(name, value) for name, value in attributes.items())
    return made


def _operator(node: Node, constants: dict[str, Tensor]) -> tuple[str, dict[str, int | list[int]]]:
    match node.kind:
        case "conv":
            kernel = list(constants[f"{node.name}.weight"].shape[2:])
            return "Conv", {"kernel_shape": kernel, "group": node.integer("groups"), **_window(node)}
        case "linear":
            return "Gemm", {"transB": 1}
        case "quantize" if node.text("clip") == "none":
            return "Identity", {}
        case "quantize" | "relu" if node.settings["cap"] is None:
            return "Relu", {}
        case "add":
            return "Add", {}
        case "max_pool":
            ceil_mode = int(bool(node.settings["ceil_mode"]))
            return "MaxPool", {"kernel_shape": node.integers("kernel"), "ceil_mode": ceil_mode, **_window(node)}
        case "global_avg_pool":
            return "GlobalAveragePool", {}
        case "flatten":
            return "Flatten", {"axis": 1}
    raise InputError(
        f"the benchmark's float ONNX file can't hold {node.describe()}.", "take one of torchvision's ResNets."
    )


def _window(node: Node) -> dict[str, int | list[int]]:
    stride, padding, dilation = (node.integers(key) for key in ("stride", "padding", "dilation"))
    return {"strides": stride, "pads": padding * 2, "dilations": dilation}
