"""Lint rules about the file as a whole: its versions, where its weights are, and whether it is quantized at all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath, PureWindowsPath
from typing import Final

import onnx

from engines.lint_view import Hit, hit
from engines.qdq_graph import QdqGraph, label, opset

__all__ = [
    "external_data",
    "ir_version_too_new",
    "missing_opset",
    "needed_ir_version",
    "not_quantized",
    "operator_format",
]

_OLDEST_IR: Final = 8  # enough for every opset up to 18
_IR_OF_OPSET: Final[Mapping[int, int]] = {19: 9, 20: 9, 21: 10, 22: 10, 23: 11, 24: 12, 25: 13, 26: 13, 27: 13, 28: 14}
_LINEAR: Final = "QLinear"  # QLinearConv, QLinearMatMul, ... compute on codes
_INTEGER: Final = frozenset({"ConvInteger", "MatMulInteger", "DynamicQuantizeLinear"})


def external_data(graph: QdqGraph) -> Iterator[Hit]:
    """Weights in a file that is not below the folder of the ONNX file: not read by us, nor by careful runtimes.

    Looks at a model whose weights were not loaded yet.
    """
    for tensor in graph.model.graph.initializer:
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        location = next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
        if _leaves_the_folder(location):
            yield Hit(
                tensor.name,
                f"the weight {tensor.name} lies in {location or 'a file without a name'}, outside the folder of the "
                "file: nothing else was checked.",
                "save the model with its data beside it, and copy both.",
            )


def missing_opset(graph: QdqGraph) -> Iterator[Hit]:
    """Without the version of an operator set nobody knows what the operators mean."""
    given = {_domain(entry.domain) for entry in graph.model.opset_import}
    missing: dict[str, onnx.NodeProto] = {}
    for node in graph.model.graph.node:
        if _domain(node.domain) not in given:
            missing.setdefault(_domain(node.domain), node)
    for domain, node in missing.items():
        name = domain or "ai.onnx (the default one)"
        yield hit(
            node,
            f": the file does not say which version of the operator set {name} it asks for.",
            "add it to model.opset_import, or export the file again; nothing else was checked.",
        )


def ir_version_too_new(graph: QdqGraph) -> Iterator[Hit]:
    """A file stamped with a newer IR version than it needs is refused by the runtime on the box (C36)."""
    version, needed = graph.model.ir_version, needed_ir_version(graph.model)
    if needed is not None and version > needed:
        yield Hit(
            "",
            f"the file has IR version {version}, but opset {opset(graph.model)} needs only {needed}: "
            "older runtimes will refuse it.",
            f"set model.ir_version = {needed}.",
        )


def needed_ir_version(model: onnx.ModelProto) -> int | None:
    """The lowest IR version that goes with a model's operator set; None for one that isn't known yet."""
    version = opset(model)
    return None if version > max(_IR_OF_OPSET) else _IR_OF_OPSET.get(version, _OLDEST_IR)


def operator_format(graph: QdqGraph) -> Iterator[Hit]:
    """A file that computes on codes: no rule about QuantizeLinear and DequantizeLinear has a hold on it."""
    node = next((node for node in graph.nodes if _on_codes(node.op_type)), None)
    if node is not None:
        yield Hit(
            node.name or node.output[0],
            f"{label(node)}: the file is in operator format, which onnxruntime alone reads.",
            "export it in QDQ format (QuantizeLinear and DequantizeLinear around float operators).",
        )


def not_quantized(graph: QdqGraph) -> Iterator[Hit]:
    """A float file."""
    kinds = {node.op_type for node in graph.nodes}
    if kinds.isdisjoint({"QuantizeLinear", "DequantizeLinear"}) and not any(map(_on_codes, kinds)):
        yield Hit(
            "",
            "There is no QuantizeLinear or DequantizeLinear in the file: nothing is quantized.",
            "every engine runs it in float; `faq-deploy quantize` and `export` make a quantized one.",
        )


def _on_codes(kind: str) -> bool:
    return kind.startswith(_LINEAR) or kind in _INTEGER


def _domain(name: str) -> str:
    return "" if name == "ai.onnx" else name


def _leaves_the_folder(location: str) -> bool:
    """Judged by the text alone; links are looked at when the data is read."""
    paths = (PurePosixPath(location), PureWindowsPath(location))
    return not location or any(path.is_absolute() or path.drive or ".." in path.parts for path in paths)
