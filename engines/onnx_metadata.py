"""What `export` wrote into an ONNX file beside the network."""

from __future__ import annotations

from typing import Final

import onnx

from engines.json_text import read_json
from engines.qdq_graph import QdqGraph

__all__ = ["holds_float_weights", "metadata_of", "modules_of"]

_WEIGHTED: Final = frozenset({"Conv", "ConvTranspose", "Gemm"})  # constants of a MatMul only move codes


def metadata_of(model: onnx.ModelProto) -> dict[str, object]:
    """What export wrote into the file, by its name without `faq_deploy.`; entries of others are left out."""
    found: dict[str, object] = {}
    for entry in model.metadata_props:
        if entry.key.startswith("faq_deploy."):
            try:
                found[entry.key.removeprefix("faq_deploy.")] = read_json(entry.value)
            except ValueError:
                continue  # not what export writes: no fact
    return found


def modules_of(model: onnx.ModelProto) -> dict[str, str]:
    """Module path in the user's model by ONNX node name; empty for other tools' files."""
    found = metadata_of(model).get("modules")
    return {str(node): str(module) for node, module in found.items()} if isinstance(found, dict) else {}


def holds_float_weights(graph: QdqGraph) -> bool:
    """Whether a layer was left in float: behind it runtimes may round, each in its own way."""
    held = {tensor.name for tensor in graph.model.graph.initializer}
    return any(node.op_type in _WEIGHTED and node.input[1] in held for node in graph.nodes)
