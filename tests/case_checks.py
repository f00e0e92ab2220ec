"""What the tests of known failures of such tools share: export with proof, and float equality."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from engines.runner import FloatArray
from faq_deploy.onnx_export import export_onnx
from faq_deploy.rewrite import rewrite
from faq_deploy.stored_net import StoredNet
from tests.quantized import images, make_recipe, quantized_net

__all__ = ["Exported", "agreeing", "all_levels", "codes_at_all_levels", "float_difference"]


class Exported:
    """A net in all its forms, once PyTorch, the reference and onnxruntime gave identical codes and logits."""

    def __init__(self, stored: StoredNet, path: Path, warnings: list[str]) -> None:
        self.stored, self.path, self.warnings = stored, path, warnings
        self.onnx = onnx.load(path)

    def operators(self) -> set[str]:
        """The operators of the file."""
        return {node.op_type for node in self.onnx.graph.node}


def agreeing(model: nn.Module, folder: Path, target: str = "tensorrt", data: Tensor | None = None) -> Exported:
    """Quantize on `data`, export, and assert identical codes in all stages."""
    data = images() if data is None else data
    stored = quantized_net(model, make_recipe(target), data)
    path = folder / "model.onnx"
    result = export_onnx(stored, path, data.numpy(), versions={}, checkpoint_sha256="")
    assert [agreement.equal for agreement in result.agreements] == [True, True]
    assert all(agreement.codes_compared for agreement in result.agreements)
    return Exported(stored, path, result.warnings)


def float_difference(model: nn.Module, data: Tensor | None = None) -> float:
    """The largest difference between a model and its net with quantizers off."""
    data = images() if data is None else data
    net = rewrite(model, data, make_recipe())
    with torch.inference_mode():
        return float((net(data) - model.eval()(data)).abs().max())


def all_levels(path: Path, batch: FloatArray) -> list[FloatArray]:
    """The first output of a file in onnxruntime at each of its four levels of optimization, from none to all."""
    return [outputs[0] for outputs in _at_all_levels(onnx.load(path), batch)]


def codes_at_all_levels(path: Path, batch: FloatArray, names: Sequence[str]) -> list[dict[str, FloatArray]]:
    """The codes (as stored, with their zero points) at each level of optimization."""
    model = onnx.load(path)
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    return [dict(zip(names, outputs, strict=True)) for outputs in _at_all_levels(model, batch)]


def _at_all_levels(model: onnx.ModelProto, batch: FloatArray) -> list[list[FloatArray]]:
    levels = onnxruntime.GraphOptimizationLevel
    found = []
    for level in (levels.ORT_DISABLE_ALL, levels.ORT_ENABLE_BASIC, levels.ORT_ENABLE_EXTENDED, levels.ORT_ENABLE_ALL):
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level, options.log_severity_level = level, 3
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        found.append(session.run(None, {session.get_inputs()[0].name: batch}))
    return found
