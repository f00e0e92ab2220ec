"""Engines that also give the codes inside the net, to find the layer where one goes another way.

Marking a tensor as an output can change which layers a builder fuses. So what such an engine shows is evidence about
the layers, and the shipped engine's own logits are compared beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import onnx

from engines.build_options import BuildOptions
from engines.engine_source import temporary_onnx
from engines.errors import InputError
from engines.host import RuntimeName
from engines.ort import OrtRunner
from engines.parity import logit_bits
from engines.prepare import prepare
from engines.profile import DEFAULT_PROFILE, Profile
from engines.qdq_graph import constant, load_model, read_graph
from engines.runner import CodeRunner, FloatArray
from engines.tensorrt import build_rtx, build_tensorrt, gpu_for_tensorrt
from engines.tensorrt_package import TensorRTName, load
from engines.tensorrt_runner import TensorRTRunner

__all__ = ["NO_CODE", "TensorRTCodeRunner", "codes_of", "open_code_engine", "with_code_outputs"]

_SUFFIX: Final = ".shown"
NO_CODE: Final = -(1 << 15)  # of 16 bits, as samples keep codes, and none of a network


def open_code_engine(onnx_path: Path, runtime: RuntimeName, profile: Profile = DEFAULT_PROFILE) -> CodeRunner:
    """Build an engine whose codes can be read, and load it.

    Args:
        onnx_path: the file that the shipped engine was built from.
        runtime: that runs it.
        profile: batch sizes, for TensorRT.

    Returns:
        A runner with `codes`; close it after use.

    Raises:
        InputError: the file is refused.
        CannotRunHere: the runtime or a GPU is missing.
    """
    if runtime == "onnxruntime":
        return OrtRunner(onnx_path, with_codes=True)
    return TensorRTCodeRunner(onnx_path, runtime, profile)


def with_code_outputs(model: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, float]]:
    """A copy of a model that also gives the values of every tensor of codes.

    Values rather than codes, since a code times a power of two is exact in float32 and every runtime can return it.

    Args:
        model: a QDQ graph.

    Returns:
        The copy, whose outputs NAME.shown hold values in float32, and the step size of each by the codes' name.

    Raises:
        InputError: a tensor of codes that no DequantizeLinear with one constant scale reads.
    """
    graph = read_graph(model)
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    steps: dict[str, float] = {}
    for name in graph.code_names:
        reader = next((n for n in graph.consumers.get(name, ()) if n.op_type == "DequantizeLinear"), None)
        scale = None if reader is None else constant(graph, reader, 1)
        if reader is None or scale is None or scale.size != 1:
            raise InputError(f"{name} is read by no DequantizeLinear with one scale.", "export the model again.")
        steps[name] = float(scale.reshape(()))
        # an Identity, since a tensor that is read on may lose its name in the builder
        shown = onnx.helper.make_node("Identity", [reader.output[0]], [f"{name}{_SUFFIX}"], f"{name}{_SUFFIX}")
        copy.graph.node.append(shown)
        value = onnx.helper.make_tensor_value_info(f"{name}{_SUFFIX}", onnx.TensorProto.FLOAT, None)
        copy.graph.output.append(value)
    return copy, steps


def codes_of(values: FloatArray, step: float) -> npt.NDArray[np.int64]:
    """The codes of values on a grid; NO_CODE where a value is no whole number of steps, which no code equals.

    Args:
        values: float32, any shape.
        step: of the grid; dividing by a power of two is exact.
    """
    steps = values.astype(np.float64) / step
    whole = np.isfinite(steps) & (steps == np.rint(steps))
    return np.where(whole, np.where(whole, steps, 0), NO_CODE).astype(np.int64)


class TensorRTCodeRunner:
    """An engine of TensorRT or TensorRT-RTX with its codes as outputs (a CodeRunner), built in a temporary folder.

    Args:
        onnx_path: a QDQ file of target `tensorrt`.
        runtime: `tensorrt` or `tensorrt-rtx`.
        profile: batch sizes.

    Raises:
        InputError: the file is refused.
        CannotRunHere: the package or a GPU is missing.
    """

    def __init__(self, onnx_path: Path, runtime: RuntimeName, profile: Profile = DEFAULT_PROFILE) -> None:
        self.name: str = runtime
        package: TensorRTName = "tensorrt" if runtime == "tensorrt" else "tensorrt-rtx"
        load(package)
        sm = gpu_for_tensorrt(package).sm
        prepared = prepare(load_model(onnx_path), runtime, sm, BuildOptions(profile=profile))
        model, self._steps = with_code_outputs(prepared.model)
        self.code_names: Sequence[str] = tuple(self._steps)
        with temporary_onnx(model) as source:
            engine = source.with_suffix(".engine")
            if package == "tensorrt":
                build_tensorrt(source, profile, engine)
            else:
                build_rtx(source, sm, profile, engine)
            self._runner = TensorRTRunner(engine, package)

    def __call__(self, batch: FloatArray) -> FloatArray:
        """Logits of a batch; see `Runner`."""
        return self._runner(batch)

    def outputs(self, batch: FloatArray) -> dict[str, FloatArray]:
        """Every float output by name; see `Runner`."""
        return {name: value for name, value in self._runner.outputs(batch).items() if not name.endswith(_SUFFIX)}

    def codes(self, batch: FloatArray) -> dict[str, npt.NDArray[np.int64]]:
        """Codes of every tensor, and the bits of the outputs; see `CodeRunner`."""
        found = self._runner.outputs(batch)
        codes = {name: codes_of(found[f"{name}{_SUFFIX}"], step) for name, step in self._steps.items()}
        bits = {name: logit_bits(value) for name, value in found.items() if not name.endswith(_SUFFIX)}
        return {**codes, **(bits if len(bits) > 1 else {}), "logits": bits[self._runner.logits_name]}

    def close(self) -> None:
        """Free the engine."""
        self._runner.close()
