"""Triton's config.pbtxt: one model's configuration as protobuf text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

__all__ = ["ServedModel", "Tensor", "model_config"]

Backend = Literal["onnxruntime", "tensorrt"]

_PLATFORMS: Final[dict[Backend, str]] = {"onnxruntime": "onnxruntime_onnx", "tensorrt": "tensorrt_plan"}
_FILES: Final[dict[Backend, str]] = {"onnxruntime": "model.onnx", "tensorrt": "model.plan"}
# onnxruntime on a GPU would take float kernels that were never compared with ours
_KINDS: Final[dict[Backend, str]] = {"onnxruntime": "KIND_CPU", "tensorrt": "KIND_GPU"}
_ALL_OFF: Final = 2  # Triton's onnxruntime backend: level 2 turns all graph optimizations off
_ESCAPES: Final = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"}


@dataclass(frozen=True)
class Tensor:
    """An input or output as Triton is told of it.

    Args:
        name: in the ONNX file.
        type: one of Triton's data types, such as TYPE_FP32.
        dims: sizes, without the batch where Triton makes the batches; -1 where any size will do.
        labels: file with a class name a line; empty where there is none.
    """

    name: str
    type: str
    dims: tuple[int, ...]
    labels: str = ""


@dataclass(frozen=True)
class ServedModel:
    """What Triton is told of a model.

    Args:
        name: of the model and of its folder.
        backend: "onnxruntime" or "tensorrt".
        inputs: all of them.
        outputs: all of them.
        best_batch: images in the batches that Triton should prefer.
        largest_batch: images in the largest batch; 0 where the model has a fixed batch, which Triton then leaves alone.
        optimized: let onnxruntime optimize the graph.
    """

    name: str
    backend: Backend
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    best_batch: int
    largest_batch: int
    optimized: bool = True

    @property
    def filename(self) -> str:
        """Of the model, in its version folder."""
        return _FILES[self.backend]


def model_config(model: ServedModel) -> str:
    """The text of config.pbtxt.

    Args:
        model: what to say.

    Returns:
        A ModelConfig in protobuf's text format.

    Source:
        triton-inference-server/common, protobuf/model_config.proto.
    """
    lines = [
        f"name: {_quoted(model.name)}",
        f"backend: {_quoted(model.backend)}",
        f"platform: {_quoted(_PLATFORMS[model.backend])}",
        f"default_model_filename: {_quoted(model.filename)}",
        f"max_batch_size: {model.largest_batch}",
        *_tensors("input", model.inputs),
        *_tensors("output", model.outputs),
        "version_policy { latest { num_versions: 1 } }",
        f"instance_group {{ kind: {_KINDS[model.backend]} count: 1 }}",
    ]
    if model.largest_batch > 1:
        lines.append(f"dynamic_batching {{ preferred_batch_size: {model.best_batch} }}")
    if not model.optimized:
        lines.append(f"optimization {{ graph {{ level: {_ALL_OFF} }} }}")
    return "\n".join(lines) + "\n"


def _tensors(field: str, tensors: Sequence[Tensor]) -> list[str]:
    lines = []
    for tensor in tensors:
        # a single number an image: Triton asks for at least one dimension, and reshapes
        dims = ", ".join(str(size) for size in tensor.dims or (1,))
        lines += [f"{field} {{", f"  name: {_quoted(tensor.name)}", f"  data_type: {tensor.type}", f"  dims: [{dims}]"]
        if not tensor.dims:
            lines.append("  reshape { shape: [] }")
        if tensor.labels:
            lines.append(f"  label_filename: {_quoted(tensor.labels)}")
        lines.append("}")
    return lines


def _quoted(text: str) -> str:
    """A string of protobuf's text format: UTF-8 as it is, quotes, backslashes and control characters escaped."""
    escaped = (_ESCAPES.get(c) or (c if c >= " " and c != "\x7f" else f"\\{ord(c):03o}") for c in text)
    return f'"{"".join(escaped)}"'
