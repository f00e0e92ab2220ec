"""Why a runtime gives other codes than the net: a table of likely causes, each tried on what was seen of one image."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from engines.errors import NotInstalled
from engines.parity import Divergence, IntArray
from engines.qdq_graph import QdqGraph, constant, zero_points

__all__ = ["CAUSES", "Cause", "CauseName", "Evidence", "is_unsigned", "kernels_saturate", "layer_reach", "likely_cause"]

CauseName = Literal[
    "changed file",
    "stale engine",
    "saturating kernels",
    "unsigned codes",
    "long sums",
    "float parts",
    "shown codes agree",
    "epilogue rounding",
    "other kernels",
]
_SIGNED: Final = 128
_PAIR: Final = (1 << 15) - 1  # what u8 x s8 kernels hold a pair of products in on CPUs without VNNI


@dataclass(frozen=True)
class Evidence:
    """What is known about a stage that leaves the net.

    Attributes:
        runtime: of the stage: `reference`, `oracle`, or an engine's runtime.
        first: the first tensor whose codes differ on the failing image; None where only logits do.
        file_changes: sentences, one a constant of model.onnx that is not the net's.
        engine_changes: sentences, one a constant of the engine's own file that is not that of model.onnx.
        fresh_agrees: an engine built now from the file gives the net's codes; None where none was built.
        saturates: whether 8-bit kernels here overflow (see `kernels_saturate`).
        reach: the largest pair of products in the layer on this image; None where it is not known.
        unsigned: the tensor is stored as UINT8.
        proven: no sum of the layer can pass 2^24; None where it is not known.
        float_parts: parts of the net are in float.
    """

    runtime: str
    first: Divergence | None = None
    file_changes: Sequence[str] = ()
    engine_changes: Sequence[str] = ()
    fresh_agrees: bool | None = None
    saturates: bool = False
    reach: int | None = None
    unsigned: bool = False
    proven: bool | None = None
    float_parts: bool = False


@dataclass(frozen=True)
class Cause:
    """One row of the table.

    Attributes:
        name: for machines.
        fits: whether the evidence speaks for it.
        says: what is likely wrong, in one sentence.
        remedy: what to do.
    """

    name: CauseName
    fits: Callable[[Evidence], bool]
    says: Callable[[Evidence], str]
    remedy: str


def _tensorrt(seen: Evidence) -> bool:
    return seen.runtime.startswith("tensorrt")


# the first that fits is told: what was seen in the files comes before what kernels are known to do
CAUSES: Final = (
    Cause(
        "changed file",
        lambda seen: bool(seen.file_changes),
        lambda seen: f"model.onnx is not the net: {seen.file_changes[0]}{_more(seen.file_changes)}.",
        "export again, and build the engines again.",
    ),
    Cause(
        "stale engine",
        lambda seen: bool(seen.engine_changes),
        lambda seen: f"the engine is of another model.onnx: {seen.engine_changes[0]}{_more(seen.engine_changes)}.",
        "build it again with --force.",
    ),
    Cause(
        "float parts",
        lambda seen: seen.float_parts,
        lambda seen: "parts of the net are kept in float, where every runtime rounds in its own way.",
        "quantize them (leave out --leaf and --skip), or allow for it with --max-flips and --max-drop.",
    ),
    Cause(
        "saturating kernels",
        lambda seen: seen.runtime == "onnxruntime" and seen.saturates and (seen.reach or 0) > _PAIR,
        lambda seen: (
            "this CPU has no VNNI, and its 8-bit kernels add products in pairs in 16 bits: here a pair reaches "
            f"{seen.reach:,}, and {_PAIR:,} is the most they hold."
        ),
        "quantize with --target onnxruntime (without --cpu vnni), or run on a CPU with VNNI.",
    ),
    Cause(
        "unsigned codes",
        lambda seen: _tensorrt(seen) and seen.unsigned,
        lambda seen: "the tensor is stored as UINT8, and TensorRT's INT8 is signed and symmetric.",
        "quantize with --target tensorrt.",
    ),
    Cause(
        "long sums",
        lambda seen: seen.proven is False,
        lambda seen: "sums of this layer can pass 2^24, where fp32 rounds and the order of a sum matters.",
        "quantize without --no-certify.",
    ),
    Cause(
        "stale engine",
        lambda seen: _tensorrt(seen) and seen.fresh_agrees is True,
        lambda seen: (
            "an engine built now from model.onnx gives the right codes: this one is stale, or fused otherwise."
        ),
        "build it again with --force.",
    ),
    Cause(
        "shown codes agree",
        lambda seen: seen.first is None,
        lambda seen: "every code inside is the net's, so the last layer computes its logits in another way.",
        "compare with `faq-deploy verify` on this machine, and report it with model.onnx.",
    ),
    Cause(
        "epilogue rounding",
        lambda seen: seen.first is not None and seen.first.largest == 1,
        lambda seen: (
            "codes are off by one: the runtime rounds twice, or scales the accumulator before it adds the bias or the "
            "skip input."
        ),
        "build with another version of the runtime, and report it with model.onnx.",
    ),
    Cause(
        "other kernels",
        lambda seen: True,
        lambda seen: "the runtime's kernel for this layer computes something else than the file says.",
        "build with another version of the runtime, and report it with model.onnx.",
    ),
)


def likely_cause(seen: Evidence) -> Cause:
    """The first row of the table that the evidence speaks for; the last one always does."""
    return next(cause for cause in CAUSES if cause.fits(seen))


def layer_reach(graph: QdqGraph, layer: str, codes: Mapping[str, IntArray]) -> int | None:
    """The largest sum of two products that a layer can meet on one image, as kernels see its codes.

    They see unsigned codes: zero point included, or, of signed ones, 128 more. Which products they pair is their
    choice: so this is the largest code times the two largest weights of a channel.

    Args:
        graph: of the file.
        layer: a node with weights.
        codes: of the image, by tensor name, without zero points.

    Returns:
        None where the layer reads no codes, or its weights aren't codes.
    """
    node = next((n for n in graph.nodes if n.name == layer), None)
    if node is None or len(node.input) < 2:
        return None
    source, reader = node.input[0], graph.producer.get(node.input[1])
    while source not in graph.code_names:
        producer = graph.producer.get(source)
        if producer is None or not producer.input:
            return None
        source = producer.input[0]
    weights = None if reader is None else constant(graph, reader, 0)
    if weights is None or source not in codes:
        return None
    offset = zero_points(graph)[source] if is_unsigned(graph, source) else _SIGNED
    rows = np.sort(np.abs(weights.astype(np.int64)).reshape(len(weights), -1))[:, -2:]
    return int((codes[source] + offset).max(initial=0)) * int(rows.sum(1).max(initial=0))


def kernels_saturate() -> bool:
    """Whether onnxruntime's 8-bit products overflow on this CPU: tried, since not every CPU tells what it has.

    Raises:
        NotInstalled: onnxruntime is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise NotInstalled("onnxruntime is not installed.", "install it with `pip install onnxruntime`.") from error
    left, right = np.full((4, 64), 255, np.uint8), np.full((64, 16), 127, np.int8)
    node = helper.make_node("MatMulInteger", ["x", "w"], ["y"])
    inputs = [helper.make_tensor_value_info("x", TensorProto.UINT8, left.shape)]
    outputs = [helper.make_tensor_value_info("y", TensorProto.INT32, (4, 16))]
    graph = helper.make_graph([node], "pairs", inputs, outputs, [numpy_helper.from_array(right, "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return bool((session.run(None, {"x": left})[0] != 64 * 255 * 127).any())


def is_unsigned(graph: QdqGraph, tensor: str) -> bool:
    """Whether codes are stored as UINT8."""
    node = graph.producer.get(tensor)
    point = None if node is None else constant(graph, node, 2)
    return point is not None and point.dtype == np.uint8


def _more(sentences: Sequence[str]) -> str:
    return f" ({len(sentences) - 1} more differ)" if len(sentences) > 1 else ""
