"""The smallest part of a network that still fails, to see and to report: bisection, then node by node."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

import onnx
from onnx import TensorProto, helper

from engines.tensor_kinds import FLOAT32, element_type, sizes, tensor_kinds

__all__ = ["reduce"]

_MOST_CALLS: Final = 80
_FEW: Final = 24  # nodes that are tried one by one
_FLOATS: Final = FLOAT32 | {TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE}
_QDQ: Final = ("QuantizeLinear", "DequantizeLinear")

Fails = Callable[[onnx.ModelProto], bool]
Part = tuple[int, ...]  # positions of nodes, rising


def reduce(model: onnx.ModelProto, fails: Fails, *, seconds: float = 60.0) -> onnx.ModelProto:
    """Cut a network that can't be built down to the smallest connected part that can't be built either.

    The part gets inputs of its own with the shapes that they have in the network (a dynamic batch stays dynamic),
    and keeps the constants and the quantize and dequantize nodes that feed its layers.

    Args:
        model: a network for which `fails` is true; it isn't asked again.
        fails: whether a network fails in the same way. An exception goes through.
        seconds: after which no further part is tried; `fails` is called 80 times at most.

    Returns:
        A part for which `fails` was true, or `model` itself where no smaller one fails.

    Source: Polygraphy's `debug reduce`.
    """
    search = _Search(_index(model), fails, time.monotonic() + seconds)
    found = tuple(range(len(search.network.nodes)))
    found = search.shortest(found, lambda part, length: part[:length])
    found = search.shortest(found, lambda part, length: part[len(part) - length :])
    found = search.first(((position,) for position in reversed(found[-_FEW:])), found)
    found = search.first(_connected(search.network, found), found)
    found = search.thinned(found)
    found = search.first(_connected(search.network, found), found)
    search.first((), found, bare=True)
    return search.smallest or model


@dataclass(frozen=True)
class _Network:
    """A network taken apart.

    Args:
        model: the whole.
        nodes: those that depend on an input, in the order of the file.
        producers: tensor -> position of its node.
        readers: tensor -> positions of the nodes that read it.
        folded: tensor -> the node that makes it of constants alone.
        constants: initializers by name.
        kinds: type and shape of each tensor, where they could be inferred.
        outputs: of the whole.
    """

    model: onnx.ModelProto
    nodes: tuple[onnx.NodeProto, ...]
    producers: dict[str, int]
    readers: dict[str, list[int]]
    folded: dict[str, onnx.NodeProto]
    constants: dict[str, onnx.TensorProto]
    kinds: dict[str, onnx.TypeProto]
    outputs: frozenset[str]


@dataclass
class _Search:
    """Asks whether parts fail, within limits, and keeps the last that did."""

    network: _Network
    fails: Fails
    deadline: float
    smallest: onnx.ModelProto | None = None
    known: dict[tuple[Part, bool], bool] = field(default_factory=dict)

    def ask(self, part: Part, *, bare: bool = False) -> bool:
        """Whether a part fails; False where there is no time left to ask, or it can't stand alone."""
        if (part, bare) in self.known:
            return self.known[part, bare]
        if len(self.known) >= _MOST_CALLS or time.monotonic() > self.deadline:
            return False
        model = _cut(self.network, part, bare=bare)
        if model is not None and len(model.graph.node) == len(self.network.model.graph.node):
            return True  # with what feeds it, it is the whole
        self.known[part, bare] = answer = model is not None and self.fails(model)
        if answer:
            self.smallest = model
        return answer

    def shortest(self, part: Part, keep: Callable[[Part, int], Part]) -> Part:
        """The shortest piece at one end of a part that fails, if longer pieces fail too."""
        low, high = 1, len(part)
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if self.ask(keep(part, middle)) else (middle + 1, high)
        return keep(part, high)

    def first(self, candidates: Iterator[Part] | Sequence[Part], otherwise: Part, *, bare: bool = False) -> Part:
        """The first candidate that fails; else the part known to fail, tried without what feeds it if `bare`."""
        for part in candidates:
            if len(part) < len(otherwise) and self.ask(part):
                return part
        if bare:
            self.ask(otherwise, bare=True)
        return otherwise

    def thinned(self, part: Part) -> Part:
        """A short part without the nodes that it fails without; it doesn't come apart."""
        pieces = len(list(_connected(self.network, part)))
        for position in part if 1 < len(part) <= _FEW else ():
            rest = tuple(other for other in part if other != position)
            if rest and len(list(_connected(self.network, rest))) <= pieces and self.ask(rest):
                part = rest
        return part


def _index(model: onnx.ModelProto) -> _Network:
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    folded: dict[str, onnx.NodeProto] = {}
    nodes: list[onnx.NodeProto] = []
    readers: dict[str, list[int]] = {}
    for node in graph.node:
        reads = _reads(node)
        if all(name in constants or name in folded for name in reads):
            folded |= dict.fromkeys(filter(None, node.output), node)
            continue
        for name in reads:
            readers.setdefault(name, []).append(len(nodes))
        nodes.append(node)
    return _Network(
        model=model,
        nodes=tuple(nodes),
        producers={name: position for position, node in enumerate(nodes) for name in node.output if name},
        readers=readers,
        folded=folded,
        constants=constants,
        kinds=tensor_kinds(model),
        outputs=frozenset(value.name for value in graph.output),
    )


def _reads(node: onnx.NodeProto) -> tuple[str, ...]:
    """Tensors that a node reads, those of its branches and loop bodies too."""
    inner = [graph for attribute in node.attribute for graph in (attribute.g, *attribute.graphs)]
    own = {name for graph in inner for node in graph.node for name in node.output}
    own |= {value.name for graph in inner for value in (*graph.input, *graph.initializer)}
    below = [name for graph in inner for node in graph.node for name in _reads(node) if name not in own]
    return tuple(dict.fromkeys(name for name in (*node.input, *below) if name))


def _cut(network: _Network, part: Part, *, bare: bool) -> onnx.ModelProto | None:
    """A part as a network of its own; None where an input's shape isn't known."""
    positions = _completed(network, part, bare=bare)
    nodes = [network.nodes[position] for position in sorted(positions)]
    made = {name for node in nodes for name in node.output}
    read = dict.fromkeys(name for node in nodes for name in _reads(node) if name not in made)
    folded, constants = _constants(network, read)
    inputs = [name for name in read if name not in network.folded and name not in network.constants]
    infos = [_input(network, name) for name in inputs]
    if None in infos or not infos:
        return None
    outputs = [name for node in nodes for name in node.output if name and _leaves(network, name, positions)]
    model = onnx.ModelProto(
        ir_version=network.model.ir_version,
        producer_name="faq-deploy",
        opset_import=network.model.opset_import,
        functions=network.model.functions,
    )
    model.graph.name = "part"
    model.graph.node.extend([*folded, *nodes])
    model.graph.initializer.extend(constants)
    model.graph.input.extend(info for info in infos if info is not None)
    for name in outputs:
        kind = network.kinds.get(name, helper.make_tensor_type_proto(TensorProto.FLOAT, None))
        model.graph.output.append(helper.make_value_info(name, kind))
    return model


def _completed(network: _Network, part: Part, *, bare: bool) -> set[int]:
    """A part, the quantizers that feed it unless `bare`, and the makers of integers that it reads."""
    positions, waiting = set(part), list(part)
    while waiting:
        for name in _reads(network.nodes[waiting.pop()]):
            position = network.producers.get(name)
            if position is None or position in positions:
                continue
            quantizer = network.nodes[position].op_type in _QDQ and not bare
            if quantizer or not _is_float(network, name):
                positions.add(position)
                waiting.append(position)
    return positions


def _constants(network: _Network, read: dict[str, None]) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """The nodes that make constants a part reads, in their order, and the initializers."""
    wanted, waiting = set(read), list(read)
    while waiting:
        node = network.folded.get(waiting.pop())
        fresh = [name for name in _reads(node) if name not in wanted] if node is not None else []
        wanted.update(fresh)
        waiting += fresh
    nodes = [node for name, node in network.folded.items() if name in wanted and name == node.output[0]]
    return nodes, [tensor for name, tensor in network.constants.items() if name in wanted]


def _is_float(network: _Network, name: str) -> bool:
    return element_type(network.kinds, name) in _FLOATS


def _input(network: _Network, name: str) -> onnx.ValueInfoProto | None:
    kind, shape = element_type(network.kinds, name), sizes(network.kinds, name)
    if not kind or shape is None or None in shape[1:]:
        return None
    # whatever shape inference called it: only the batch is dynamic
    return helper.make_tensor_value_info(name, kind, ["N" if size is None else size for size in shape])


def _leaves(network: _Network, name: str, positions: set[int]) -> bool:
    """Whether a tensor is an output of the part: read outside of it, or an output of the whole, or read by nobody."""
    readers = network.readers.get(name, [])
    return name in network.outputs or not readers or any(reader not in positions for reader in readers)


def _connected(network: _Network, part: Part) -> Iterator[Part]:
    """The connected pieces of a part, the last first."""
    left = set(part)
    for start in reversed(part):
        piece, waiting = set[int](), [start] if start in left else []
        while waiting:
            position = waiting.pop()
            if position not in left:
                continue
            left.discard(position)
            piece.add(position)
            node = network.nodes[position]
            waiting += [network.producers[name] for name in _reads(node) if name in network.producers]
            waiting += [reader for name in node.output for reader in network.readers.get(name, ())]
        if piece:
            yield tuple(sorted(piece))
