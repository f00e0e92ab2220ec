"""What a network's kernels multiply, read and write, told from the QDQ graph alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import onnx

from engines.errors import InputError
from engines.gpu_limits import Precision
from engines.lint_view import FUNCTIONS, grids
from engines.onnx_metadata import modules_of
from engines.operators import WEIGHTED
from engines.predicted_plan import fates
from engines.qdq_graph import QdqGraph, read_graph
from engines.tensor_kinds import sizes, tensor_kinds

__all__ = ["KernelCost", "kernel_costs"]

# only move numbers, or nothing at all: free, as a lower bound may have it
_MOVES: Final = frozenset(
    {"Cast", "Concat", "DepthToSpace", "Dropout", "Expand", "Flatten", "Gather", "Identity", "Pad", "Reshape", "Shape"}
    | {"Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze"}
)
_FOLLOW: Final = FUNCTIONS | {"Relu", "QuantizeLinear"}  # computed by the kernel that makes their input
_FLOAT_BYTES: Final[Mapping[Precision, int]] = {"int8": 4, "fp16": 2, "fp32": 4}
_FLOATS: Final = frozenset({onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE})


@dataclass(frozen=True)
class KernelCost:
    """One kernel with what follows it up to the next codes. Counts are for one image, weights for any batch.

    Attributes:
        node: name of the ONNX node that it begins with.
        module: of the user's model; empty where it isn't known.
        kind: that node's operator.
        int8: it multiplies codes; else, where it multiplies at all, floats.
        macs: multiply-adds.
        weights: numbers in weights, biases and other constants.
        weight_bytes: of these as an INT8 engine stores them.
        codes: numbers read and written that are 8-bit codes.
        floats: those that are not.
        ends: of the network's own input and outputs, float32 in every engine.
    """

    node: str
    module: str
    kind: str
    int8: bool
    macs: int
    weights: int
    weight_bytes: int
    codes: int
    floats: int
    ends: int

    def bytes(self, precision: Precision, batch: int) -> int:
        """Bytes that have to pass the memory, each tensor once for each kernel that reads or writes it.

        Args:
            precision: of the engine; "fp16" and "fp32" are the net without quantizers.
            batch: images at once.
        """
        each = _FLOAT_BYTES[precision]
        if precision == "int8":
            return self.weight_bytes + batch * (self.codes + each * self.floats + 4 * self.ends)
        if self.kind == "QuantizeLinear" and not self.ends:
            return 0  # without quantizers there is no such kernel
        return each * self.weights + batch * (each * (self.codes + self.floats) + 4 * self.ends)


def kernel_costs(model: onnx.ModelProto) -> list[KernelCost]:
    """The kernels of a network in graph order.

    A layer with weights takes what follows it with it, element by element, up to the quantizer; so does a pool. A
    tensor costs something where it passes from one kernel to another.

    Args:
        model: a QDQ network with its weights, one input.

    Returns:
        One entry a kernel.

    Raises:
        InputError: the size of its images is left open, or a shape can't be told.
    """
    graph = read_graph(model)
    if None in graph.input_shape[1:]:
        raise InputError(
            f"input {graph.input_name!r} has an open size, {_shape_text(graph.input_shape)}, and what a layer costs "
            "depends on it.",
            "export the model with one size of images.",
        )
    shapes = _Shapes(graph, tensor_kinds(model, batch=1), graph.input_shape[0] or 1)
    fixed = _fixed(graph)
    kernels = _kernels(graph, fixed)
    owner = {name: number for number, nodes in enumerate(kernels) for node in nodes for name in node.output}
    in_int8 = {fate.name for fate in fates(graph) if fate.trouble is None}
    modules = modules_of(model)
    ends = {graph.input_name, *graph.output_names}
    counts = [_Count() for _ in kernels]
    written: set[str] = set()
    for number, nodes in enumerate(kernels):
        for name in dict.fromkeys(name for node in nodes for name in _data(node)):
            if name in fixed:
                counts[number].weigh(graph, shapes, name)
                continue
            sources = _sources(graph, name)
            if any(owner.get(source) != number for source in sources):
                counts[number].pass_on(graph, shapes, name, ends & sources)
                written |= {source for source in sources if owner.get(source) != number}
    for output in graph.output_names:
        written |= _sources(graph, output)
    outputs = {source for output in graph.output_names for source in _sources(graph, output)}
    for source in written & set(owner):
        counts[owner[source]].pass_on(graph, shapes, source, {source} & outputs)
    return [
        KernelCost(
            node=(name := nodes[0].name or nodes[0].output[0]),
            module=modules.get(name) or "",
            kind=nodes[0].op_type,
            int8=name in in_int8,
            macs=_macs(nodes[0], shapes),
            weights=count.weights,
            weight_bytes=math.ceil(count.weight_bits / 8),
            codes=count.codes,
            floats=count.floats,
            ends=count.ends,
        )
        for nodes, count in zip(kernels, counts, strict=True)
    ]


@dataclass
class _Count:
    weights: int = 0
    weight_bits: int = 0
    codes: int = 0
    floats: int = 0
    ends: int = 0

    def pass_on(self, graph: QdqGraph, shapes: _Shapes, name: str, at_an_end: set[str]) -> None:
        """A tensor comes in or goes out."""
        elements = shapes.of_image(name)
        source = graph.producer.get(name)
        if at_an_end:
            self.ends += elements
        elif grids(graph, name) or (source is not None and source.op_type == "QuantizeLinear"):
            self.codes += elements
        else:
            self.floats += elements

    def weigh(self, graph: QdqGraph, shapes: _Shapes, name: str) -> None:
        """A weight, a bias, or a constant of a function."""
        if shapes.kinds[name].tensor_type.elem_type not in _FLOATS:
            return  # says a shape
        elements = shapes.elements(name)
        self.weights += elements
        self.weight_bits += elements * (_code_bits(graph, name) or 8 * _FLOAT_BYTES["int8"])


@dataclass(frozen=True)
class _Shapes:
    graph: QdqGraph
    kinds: Mapping[str, onnx.TypeProto]
    batch: int = 1

    def __getitem__(self, name: str) -> tuple[int, ...]:
        if name in self.graph.constants:
            return self.graph.constants[name].shape
        found = sizes(self.kinds, name)
        if found is None or None in found:
            raise InputError(
                f"the shape of tensor {name!r} can't be told from the graph.", "export the model with fixed sizes."
            )
        return tuple(size for size in found if size is not None)

    def elements(self, name: str) -> int:
        return math.prod(self[name])

    def of_image(self, name: str) -> int:
        return self.elements(name) // self.batch


def _fixed(graph: QdqGraph) -> set[str]:
    """Tensors that depend on constants alone."""
    found = set(graph.constants)
    for node in graph.nodes:
        if all(name in found for name in node.input if name):
            found.update(node.output)
    return found


def _kernels(graph: QdqGraph, fixed: set[str]) -> list[list[onnx.NodeProto]]:
    kernels: list[list[onnx.NodeProto]] = []
    owner: dict[str, int] = {}
    for node in graph.nodes:
        if node.op_type in _MOVES or node.op_type == "DequantizeLinear" or node.output[0] in fixed:
            continue
        if _only_moved(graph, node):
            continue
        before = [
            owner[source]
            for name in _data(node)
            for source in _sources(graph, name, through_codes=False)
            if source in owner
        ]
        if node.op_type in _FOLLOW and before:
            number = max(before)
            kernels[number].append(node)
        else:
            number = len(kernels)
            kernels.append([node])
        owner |= dict.fromkeys(node.output, number)
    return kernels


def _data(node: onnx.NodeProto) -> list[str]:
    """The inputs that hold numbers, without scales, zero points and bounds."""
    count = 1 if node.op_type in ("QuantizeLinear", "Clip", "Resize") else len(node.input)
    return [name for name in node.input[:count] if name]


def _sources(graph: QdqGraph, name: str, *, through_codes: bool = True) -> set[str]:
    """The tensors that kernels made, or network inputs, whose numbers a tensor holds."""
    found, pending = set(), [name]
    while pending:
        tensor = pending.pop()
        node = graph.producer.get(tensor)
        if node is None:
            found.add(tensor)
        elif node.op_type in _MOVES:
            pending += node.input if node.op_type == "Concat" else node.input[:1]
        elif through_codes and (node.op_type == "DequantizeLinear" or _only_moved(graph, node)):
            pending.append(node.input[0])
        else:
            found.add(tensor)
    return found


def _only_moved(graph: QdqGraph, node: onnx.NodeProto) -> bool:
    """Whether a quantizer gives codes that nothing was computed from in between, such as those of a concat."""
    if node.op_type != "QuantizeLinear":
        return False
    makers = [graph.producer.get(source) for source in _sources(graph, node.input[0], through_codes=False)]
    return all(maker is not None and maker.op_type == "DequantizeLinear" for maker in makers)


def _code_bits(graph: QdqGraph, name: str) -> int | None:
    """Bits of a constant behind DequantizeLinear; None for a float."""
    node = graph.producer.get(name)
    while node is not None and node.op_type in _MOVES:
        node = graph.producer.get(node.input[0])
    if node is None or node.op_type != "DequantizeLinear":
        return None
    stored = graph.constants.get(node.input[0])
    if stored is None:
        return 8  # quantized in the file, from floats
    return 4 if stored.dtype.name in ("int4", "uint4") else 8 * stored.dtype.itemsize


def _macs(node: onnx.NodeProto, shapes: _Shapes) -> int:
    if node.op_type not in WEIGHTED:
        return 0
    if node.op_type == "ConvTranspose":
        weight = shapes[node.input[1]]
        return shapes.of_image(node.input[0]) * math.prod(weight[1:])
    if node.op_type == "Conv":
        return shapes.of_image(node.output[0]) * math.prod(shapes[node.input[1]][1:])
    transposed = node.op_type == "Gemm" and any(a.name == "transA" and a.i for a in node.attribute)
    return shapes.of_image(node.output[0]) * shapes[node.input[0]][0 if transposed else -1]


def _shape_text(shape: tuple[int | None, ...]) -> str:
    return f"({', '.join('?' if size is None else str(size) for size in shape)})"
