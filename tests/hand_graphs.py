"""Nets written node by node, quantizers placed by hand, and what all targets demand of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import helper
from torch import Tensor

from engines.parity import logits_of_bits
from engines.reference import ReferenceRunner
from faq_deploy.activation_exponents import calibrate
from faq_deploy.batch_norm import BatchNormMode
from faq_deploy.emit import emit_graph
from faq_deploy.graph import Graph, Kind, Node, Setting
from faq_deploy.net import QuantizedNet, WeightRules
from faq_deploy.place import Target
from faq_deploy.recipe import CalibrationSection
from tests.cpu_kernels import VNNI

__all__ = ["TARGETS", "GraphBuilder", "assert_same_codes", "noise", "norm_statistics", "onnx_model", "run_onnx"]

TARGETS: tuple[Target, ...] = ("tensorrt", "onnxruntime", "paper")


def noise(*shape: int, seed: int = 0) -> Tensor:
    """Normal numbers, float32."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def norm_statistics(channels: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """γ, β, mean and variance of a batch norm, float32, shape (channels,)."""
    gamma, beta, mean, deviation = (noise(channels, seed=seed) for seed in (1, 2, 3, 4))
    return gamma * 2, beta, mean, deviation**2 + 0.1


class GraphBuilder:
    """Collects nodes and their parameters; methods return the name of the node they add."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.nodes: list[Node] = []
        self.state: dict[str, Tensor] = {}

    def node(
        self,
        kind: Kind,
        *inputs: str,
        name: str = "",
        state: Mapping[str, Tensor] | None = None,
        also: Mapping[str, Setting] | None = None,
        **settings: Setting,
    ) -> str:
        """Any node, with settings by keyword or in `also`; weighted ones get 8-bit weights unless they are float."""
        settings |= also or {}
        name = name or f"{kind}_{len(self.nodes)}"
        if kind in {"conv", "conv_transpose", "linear"} and not settings.get("float"):
            settings["weight_bits"] = 8
        self.nodes.append(Node(name, kind, inputs, settings))
        self.state |= {f"{name}.{key}": value for key, value in (state or {}).items()}
        return name

    def input(self, *shape: int, name: str = "input") -> str:
        """An input and its signed 8-bit quantizer."""
        self.node("input", name=name, shape=list(shape))
        return self.quantize(name)

    def quantize(self, source: str, *, relu: bool = False, group: str | None = None, name: str = "") -> str:
        """A quantizer as `place_quantizers` makes them: 7 bits behind a ReLU, else 8 bits and a sign."""
        unsigned = relu and self.target == "paper"
        settings: dict[str, Setting] = {
            "bits": 8 if unsigned or not relu else 7,
            "signed": not relu,
            "narrow": not relu and self.target == "paper",
            "clip": "relu" if relu else "none",
            "cap": None,
            "group": group,
            "pooled_from": None,
        }
        return self.node("quantize", source, name=name or f"{source}_quantizer", also=settings)

    def conv(
        self,
        source: str,
        weight: Tensor,
        bias: Tensor | None = None,
        name: str = "",
        also: Mapping[str, Setting] | None = None,
        **settings: Setting,
    ) -> str:
        """A convolution with stride 1 and no padding unless told otherwise."""
        one, zero = [1] * (weight.dim() - 2), [0] * (weight.dim() - 2)
        chosen: dict[str, Setting] = {"stride": one, "padding": zero, "dilation": one, "groups": 1}
        chosen |= settings | dict(also or {})
        bias = torch.zeros(len(weight)) if bias is None else bias
        return self.node("conv", source, name=name, state={"weight": weight, "bias": bias}, also=chosen)

    def net(
        self,
        outputs: Sequence[str],
        data: Sequence[Tensor],
        *,
        per_channel: bool = True,
        batch_norm: BatchNormMode = "fold",
    ) -> QuantizedNet:
        """The net, calibrated on one batch."""
        net = QuantizedNet(
            Graph(tuple(self.nodes), tuple(outputs)),
            self.state,
            per_channel=per_channel,
            batch_norm=batch_norm,
            rules=WeightRules({4: "mse", 8: "mse"}),
            sigma_factor=4.12,
        )
        section = CalibrationSection(percentile_8=100.0)
        calibrate(_Several(net, data) if len(data) > 1 else net, [data[0]], section, self.target)  # type: ignore[arg-type]
        return net.eval()


class _Several:
    """A net of several inputs that calibration can call with one batch."""

    def __init__(self, net: QuantizedNet, data: Sequence[Tensor]) -> None:
        self._net, self._data = net, data

    def __call__(self, first: Tensor) -> object:
        return self._net(*self._data)

    def __getattr__(self, name: str) -> object:
        return getattr(self._net, name)


def onnx_model(net: QuantizedNet, target: Target) -> onnx.ModelProto:
    """The exported file's model, checked."""
    with torch.inference_mode():
        graph = emit_graph(net, target)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model


def run_onnx(model: onnx.ModelProto, inputs: Sequence[Tensor], *, optimized: bool = False) -> dict[str, np.ndarray]:
    """Codes without zero points (`NAME.codes`) and outputs of onnxruntime."""
    extended = onnx.ModelProto()
    extended.CopyFrom(model)
    zeros = {node.output[0]: node.input[2] for node in model.graph.node if node.op_type == "DequantizeLinear"}
    values = {i.name: onnx.numpy_helper.to_array(i) for i in model.graph.initializer}
    points = {
        node.input[0]: values[zeros[node.output[0]]]
        for node in model.graph.node
        if node.op_type == "DequantizeLinear" and node.input[0].endswith(".codes")
    }
    for name, point in points.items():
        kind = helper.np_dtype_to_tensor_dtype(point.dtype)
        extended.graph.output.append(helper.make_tensor_value_info(name, kind, None))
    options = onnxruntime.SessionOptions()
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimized else levels.ORT_DISABLE_ALL
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(extended.SerializeToString(), options, ["CPUExecutionProvider"])
    names = [i.name for i in session.get_inputs()]
    found = session.run(None, {name: x.numpy() for name, x in zip(names, inputs, strict=True)})
    results = dict(zip([o.name for o in session.get_outputs()], found, strict=True))
    return {n: r.astype(np.int64) - points[n].astype(np.int64) if n in points else r for n, r in results.items()}


def assert_same_codes(
    net: QuantizedNet,
    target: Target,
    inputs: Sequence[Tensor],
    *,
    optimized: bool = True,
    folder: Path | None = None,
) -> onnx.ModelProto:
    """PyTorch and onnxruntime have the same integers for every tensor and the same bits in every output.

    Args:
        net: calibrated.
        target: whose file is written.
        inputs: a batch of each input; the first image alone must give the same as in the batch.
        optimized: whether onnxruntime's optimizations must not change anything either; asked on CPUs with VNNI only,
            since a graph made by hand may have codes of 8 bits.
        folder: for the file that the integer reference reads; None doesn't ask it.
    """
    model = onnx_model(net, target)
    for count in {1, len(inputs[0])}:
        batch = [x[:count] for x in inputs]
        with torch.inference_mode():
            codes, outputs = net.codes(*batch)
        wanted = {f"{name}.codes": value.numpy() for name, value in codes.items()}
        outputs = (outputs,) if isinstance(outputs, Tensor) else outputs
        names = [output.name for output in model.graph.output]
        for level in (False, True) if optimized and VNNI else (False,):
            found = run_onnx(model, batch, optimized=level)
            assert {n for n in found if n.endswith(".codes")} == set(wanted)
            for name, value in wanted.items():
                assert len(np.unique(value)) > 3 or value.size < 8, name  # a dead tensor would agree with anything
                assert np.array_equal(value.reshape(found[name].shape), found[name]), (name, level)
            for name, output in zip(names, outputs, strict=True):
                assert np.array_equal(output.numpy(), found[name]), (name, level)  # equal bits, but for -0
        if folder is not None:
            path = folder / "model.onnx"
            path.write_bytes(model.SerializeToString())
            runner = ReferenceRunner(path)
            exact = runner.codes(batch[0].numpy())
            for name, value in wanted.items():
                assert np.array_equal(value.reshape(exact[name].shape), exact[name]), name
            if len(outputs) == 1:
                assert np.array_equal(outputs[0].numpy(), logits_of_bits(exact["logits"]))
    return model
