"""A QDQ file of ResNet-152's size, made without torch: every layer, shape and quantizer, with random codes."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

__all__ = ["resnet152"]

_BLOCKS = ((3, 64), (8, 128), (36, 256), (3, 512))  # of each stage: how many, and their inner channels
_EXPANSION = 4


def resnet152() -> onnx.ModelProto:
    """155 convolutions (60 million weights) in our form for TensorRT: powers of two, skips quantized."""
    net = _Net()
    x = net.quantized("input", "image", relu=False)
    x = net.quantized(net.conv(x, "stem", 3, 64, 7, stride=2), "stem.out")
    x = net.op("MaxPool", [x], "stem.pool", kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    channels = 64
    for stage, (blocks, width) in enumerate(_BLOCKS):
        for index in range(blocks):
            name, stride = f"layer{stage}.{index}", 2 if stage and not index else 1
            y = net.quantized(net.conv(x, f"{name}.conv1", channels, width, 1), f"{name}.out1")
            y = net.quantized(net.conv(y, f"{name}.conv2", width, width, 3, stride=stride), f"{name}.out2")
            y = net.conv(y, f"{name}.conv3", width, _EXPANSION * width, 1)
            if index == 0:
                skip = net.conv(x, f"{name}.down", channels, _EXPANSION * width, 1, stride=stride)
                x, channels = net.quantized(skip, f"{name}.skip", relu=False), _EXPANSION * width
            x = net.quantized(net.op("Add", [y, x], f"{name}.sum"), f"{name}.out")
    x = net.quantized(net.op("GlobalAveragePool", [x], "pool"), "pool.out", relu=False)
    x = net.conv(x, "fc", channels, 1000, 1)
    net.op("Flatten", [x], "logits")
    graph = helper.make_graph(
        net.nodes,
        "resnet152",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", 3, 224, 224])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 1000])],
        net.initializers,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


@dataclass
class _Net:
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: list[onnx.TensorProto] = field(default_factory=list)
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def constant(self, name: str, value: npt.ArrayLike) -> str:
        self.initializers.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def op(self, kind: str, inputs: list[str], name: str, **attributes: int | list[int]) -> str:
        node = helper.make_node(kind, inputs, [name], name)
        node.attribute.extend(helper.make_attribute(key, value) for key, value in attributes.items())
        self.nodes.append(node)
        return name

    def quantized(self, x: str, name: str, relu: bool = True) -> str:
        value = self.op("Relu", [x], f"{name}.relu") if relu else x
        scale, zero = self.constant(f"{name}.scale", np.float32(2**-4)), self.constant(f"{name}.zero", np.int8(0))
        codes = self.op("QuantizeLinear", [value, scale, zero], f"{name}.codes")
        return self.op("DequantizeLinear", [codes, scale, zero], f"{name}.values")

    def conv(self, x: str, name: str, inputs: int, outputs: int, kernel: int, stride: int = 1) -> str:
        codes = self.rng.integers(-127, 128, (outputs, inputs, kernel, kernel), np.int8)
        steps = np.exp2(self.rng.integers(-12, -8, outputs)).astype(np.float32)
        bias = self.rng.integers(-9999, 9999, outputs) * steps.astype(np.float64) * 2**-4
        names = [
            self.constant(f"{name}.weight_codes", codes),
            self.constant(f"{name}.weight_scale", steps),
            self.constant(f"{name}.weight_zero", np.zeros(outputs, np.int8)),
        ]
        weight = self.op("DequantizeLinear", names, f"{name}.weight", axis=0)
        sizes = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": [kernel // 2] * 4}
        return self.op("Conv", [x, weight, self.constant(f"{name}.bias", bias.astype(np.float32))], name, **sizes)
