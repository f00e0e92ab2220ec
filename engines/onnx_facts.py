"""What an ONNX file says of itself, read before any runtime sees it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from engines.errors import InputError
from engines.external_data import data_files, sha256_with_data
from engines.json_text import read_json
from engines.well_formed import parsed

__all__ = ["OnnxFacts", "read", "said_target"]


@dataclass(frozen=True)
class OnnxFacts:
    """Facts that decide which runtimes can take a file.

    Args:
        path: the file.
        sha256: of its bytes, and of its data files where it keeps weights in other files.
        target: "tensorrt", "onnxruntime" or "paper" for our files; None for others.
        bits: 8 or 4 for our files; None for others.
        inputs: shape of each input by name; -1 for a size that the file leaves open.
        unsigned_node: name of the first quantize or dequantize node with a uint8 zero point, if there is one.
        data: the other files that hold its weights.
    """

    path: Path
    sha256: str
    target: str | None
    bits: int | None
    inputs: Mapping[str, tuple[int, ...]]
    unsigned_node: str | None
    data: tuple[Path, ...] = ()


def read(path: Path) -> OnnxFacts:
    """Read the facts of an ONNX file.

    Args:
        path: the file.

    Returns:
        Its facts.

    Raises:
        InputError: the file, or one with its weights, is missing or was cut short, or is no ONNX file.
    """
    if not path.is_file():
        raise InputError(f"{path} does not exist.", "name an ONNX file that `faq-deploy export` wrote.")
    try:
        model = parsed(path)
    except (DecodeError, ValueError) as error:
        raise _not_onnx(path) from error
    if not model.graph.node or not model.graph.output:
        raise _not_onnx(path)
    data = data_files(model, path)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    recipe = _json(metadata.get("faq_deploy.recipe"))
    bits = recipe.get("bits") if isinstance(recipe, dict) else None
    return OnnxFacts(
        path=path,
        sha256=sha256_with_data(path, data),
        target=said_target(model),
        bits=bits if isinstance(bits, int) else None,
        inputs=_inputs(model.graph),
        unsigned_node=_unsigned_node(model.graph),
        data=data,
    )


def said_target(model: onnx.ModelProto) -> str | None:
    """The target that a file says it was made for; None where it says none."""
    said = next((entry.value for entry in model.metadata_props if entry.key == "faq_deploy.target"), None)
    target = _json(said)
    return target if isinstance(target, str) else None


def _inputs(graph: onnx.GraphProto) -> dict[str, tuple[int, ...]]:
    constants = {tensor.name for tensor in graph.initializer}
    return {
        value.name: tuple(d.dim_value if d.HasField("dim_value") else -1 for d in value.type.tensor_type.shape.dim)
        for value in graph.input
        if value.name not in constants
    }


def _unsigned_node(graph: onnx.GraphProto) -> str | None:
    unsigned = {tensor.name for tensor in graph.initializer if tensor.data_type == onnx.TensorProto.UINT8}
    for node in graph.node:
        if node.op_type == "Constant" and any(a.t.data_type == onnx.TensorProto.UINT8 for a in node.attribute):
            unsigned.add(node.output[0])
        elif node.op_type in ("QuantizeLinear", "DequantizeLinear") and unsigned.intersection(node.input[2:3]):
            return str(node.name or node.output[0])
    return None


def _json(text: str | None) -> object:
    """Our metadata values are JSON; another tool's need not be."""
    try:
        return read_json(text) if text is not None else None
    except ValueError:
        return text


def _not_onnx(path: Path) -> InputError:
    return InputError(
        f"{path} is not an ONNX file, or was cut short.",
        "name an ONNX file; if `faq-deploy export` wrote this one, export again.",
    )
