"""The walk over a traced model: what handlers of aten ops read and write."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor, fx

from engines.errors import InputError
from faq_deploy.graph import WEIGHTED, Graph, Kind, Node, Setting
from faq_deploy.layout import Value
from faq_deploy.tracing import BATCH, Traced, module_path, operation, source_of

__all__ = ["Handler", "Parts", "Walk", "sizes", "unsupported"]


@dataclass(frozen=True)
class Parts:
    """What a split returns: ranges of one axis, each emitted when it is read."""

    value: Value
    dim: int
    ranges: tuple[tuple[int, int], ...]
    drop: bool = False


_COPIES: Final = 64  # of one axis that an expand may be written as

_REPLACE: Final = (
    "replace it by supported layers (convolution, linear, norms, activations, add, mul, concat, pooling, "
    "padding, resize, reshape, permute, slice, dropout), or cut the network before it."
)
_SPOKEN: Final = {
    "to_copy": "a conversion",
    **{op: f"assignment to a part of a tensor by {op}" for op in ("fill", "copy", "slice_scatter", "select_scatter")},
}
_KEEP_OUT: Final = "keep it out of the model: only the part that computes with float numbers can be quantized."

Handler = Callable[["Walk", fx.Node, dict[str, Any]], None]


def unsupported(node: fx.Node, what: str, remedy: str = _REPLACE) -> InputError:
    """The error for an op that has no quantized form, with its place in the user's model."""
    place = source_of(node)
    return InputError(f"{what} is not supported (node {node.name}{', ' + place if place else ''}).", remedy)


@dataclass
class Walk:
    """State of one walk over a traced graph."""

    traced: Traced
    nodes: list[Node] = field(default_factory=list)
    state: dict[str, Tensor] = field(default_factory=dict)
    values: dict[fx.Node, Value | Parts] = field(default_factory=dict)
    reshaped: dict[str, tuple[str, tuple[int, ...]]] = field(default_factory=dict)  # what a view reads, and its shape
    _names: set[str] = field(default_factory=set)
    _copies: dict[tuple[object, ...], tuple[Tensor, Tensor]] = field(default_factory=dict)
    _permuted: dict[Value, str] = field(default_factory=dict)

    def run(self, outputs: Sequence[fx.Node], handlers: Mapping[str, Handler]) -> Graph:
        """Emit everything that `outputs` need.

        Args:
            outputs: nodes of the traced graph.
            handlers: one an aten op.

        Raises:
            InputError: an op without a handler, or one that its handler refuses.
        """
        needed = _needed(outputs)
        for number, node in enumerate(self.traced.inputs):
            self._input(node, "input" if number == 0 else f"input_{number}")
        for node in self.traced.graph.nodes:
            if node in needed and node.op == "call_function" and node not in self.traced.constants:
                self._check_type(node)
                handler = handlers.get(operation(node))
                if handler is None:
                    raise unsupported(node, _spoken(operation(node)))
                self._check_batch(node)
                handler(self, node, _arguments(node))
        for node in outputs:
            if node not in self.values:
                raise InputError("an output of the model does not depend on its input.", "give one that does.")
        return Graph(tuple(self.nodes), tuple(self.plain(node) for node in outputs))

    # what handlers read

    def constant(self, argument: object) -> Tensor | None:
        """A number or a tensor that does not depend on the input; None for an activation."""
        if isinstance(argument, (bool, int, float)):
            return torch.tensor(float(argument))
        value = self.traced.constants.get(argument) if isinstance(argument, fx.Node) else None
        if not isinstance(value, Tensor):
            return None
        if value.dim() and value.shape[0] == BATCH:
            if not bool((value == value[:1]).all()):
                raise InputError(
                    "a constant of the model differs from image to image of a batch.", "make it the same for all."
                )
            value = value[:1]
        return value.detach().float()

    def value(self, argument: object) -> Value:
        """An activation, or a constant that is emitted as a node."""
        if isinstance(argument, fx.Node):
            found = self.values.get(argument)
            if isinstance(found, Value):
                return found
            if isinstance(found, Parts):
                raise unsupported(argument, f"{_spoken(operation(argument))} whose other results are used")
            constant = self.constant(argument)
            if constant is not None:
                return self.values.setdefault(argument, self._constant(argument, constant))  # type: ignore[return-value]
            raise unsupported(argument, _spoken(operation(argument)))
        raise InputError(f"the traced model reads {argument!r} as a tensor.", "give tensors to this op.")

    def plain(self, argument: object) -> str:
        """The graph node that holds an activation as the model sees it, permuted and expanded."""
        return self.arranged(self.full(argument)).name

    def full(self, argument: object) -> Value:
        """An activation with its broadcast axes repeated; a permutation stays pending."""
        value = self.value(argument)
        assert isinstance(argument, fx.Node)
        wanted = self.full_shape(argument)
        shape, name = list(value.shape), value.name
        for dim in range(1, value.rank):
            axis, size = value.axis(dim), wanted[dim]
            if shape[axis - 1] != size:
                if size > _COPIES:
                    raise unsupported(argument, f"an expand to {size} copies")
                name = self.emit(argument, "cat", (name,) * size, {"axis": axis})
                shape[axis - 1] = size
        return value.with_tensor(name, shape)

    def arranged(self, argument: object) -> Value:
        """An activation with its permutation emitted (broadcast axes stay 1)."""
        value = argument if isinstance(argument, Value) else self.value(argument)
        if value.is_plain:
            return value
        if value not in self._permuted:
            node = argument if isinstance(argument, fx.Node) else None
            self._permuted[value] = self.emit(node, "permute", (value.name,), {"perm": list(value.perm)})
        return Value.plain(self._permuted[value], value.seen_shape)

    def shape(self, node: fx.Node) -> tuple[int, ...]:
        """Shape of what a traced op returns, without the batch."""
        return self.full_shape(node)[1:]

    def full_shape(self, node: fx.Node) -> tuple[int, ...]:
        """Shape with the traced batch; of the first result where there are several."""
        value = node.meta["val"]
        return tuple(int(size) for size in (value[0] if isinstance(value, (tuple, list)) else value).shape)

    # what handlers write

    def emit(
        self,
        node: fx.Node | None,
        kind: Kind,
        inputs: tuple[str, ...],
        settings: Mapping[str, Setting],
        state: Mapping[str, Tensor | None] | None = None,
    ) -> str:
        """Add a graph node and its parameters; returns its name."""
        name = self._fresh(node, kind)
        source, module = ("", "") if node is None else (source_of(node), module_path(node)[0])
        self.nodes.append(Node(name, kind, inputs, dict(settings), source, module))
        for key, tensor in (state or {}).items():
            if tensor is not None:
                self.state[f"{name}.{key}"] = self._copy(tensor.detach())
        return name

    def _copy(self, tensor: Tensor) -> Tensor:
        """A copy, the same one for all views of the same numbers: a layer that is called twice has one weight."""
        place = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype)
        if place not in self._copies:
            self._copies[place] = (tensor, tensor.clone().float())  # what is kept leaves its memory to no other tensor
        return self._copies[place][1]

    def put(self, node: fx.Node, name: str, shape: Sequence[int] | None = None) -> None:
        """Set what `node` returns: a graph node's tensor as it lies."""
        self.values[node] = Value.plain(name, self.shape(node) if shape is None else shape)

    def _input(self, node: fx.Node, name: str) -> None:
        shape = self.shape(node)
        if not node.meta["val"].is_floating_point():
            raise InputError(f"input {node.name} is not floating point.", "give a model that takes float images.")
        self._names.add(name)
        self.nodes.append(Node(name, "input", (), {"shape": list(shape)}))
        self.values[node] = Value.plain(name, shape)

    def _constant(self, node: fx.Node, tensor: Tensor) -> Value:
        rank = node.meta["val"].dim()
        full = tensor.reshape(*[1] * (rank - tensor.dim()), *tensor.shape)
        if full.dim() == 0 or full.shape[0] != 1:
            raise unsupported(node, "a constant with a batch of its own")
        name = self.emit(node, "constant", (), {"batched": True}, {"value": full})
        return Value.plain(name, full.shape[1:])

    def _check_batch(self, node: fx.Node) -> None:
        value = node.meta.get("val")
        tensor = value[0] if isinstance(value, (tuple, list)) else value
        if not isinstance(tensor, Tensor) or tensor.numel() == 0:
            return
        if tensor.dim() == 0 or tensor.shape[0] != BATCH or any(size % BATCH == 0 for size in tensor.shape[1:]):
            raise unsupported(node, f"{_spoken(operation(node))} that mixes the images of a batch")

    def _check_type(self, node: fx.Node) -> None:
        """Integers and complex numbers have no quantized form; the op that reads such integers is the one to name."""
        value = node.meta.get("val")
        tensor = value[0] if isinstance(value, (tuple, list)) else value
        if not isinstance(tensor, Tensor) or tensor.is_floating_point() or tensor.dtype == torch.bool:
            return
        if tensor.is_complex():
            raise unsupported(node, f"{_spoken(operation(node))}, which gives complex numbers,", _KEEP_OUT)
        reader = node
        while not reader.meta["val"].is_floating_point():
            found = next((n for n in reader.users if isinstance(n.meta.get("val"), Tensor)), None)
            if found is None:
                raise unsupported(node, f"{_spoken(operation(node))}, which gives integers,", _KEEP_OUT)
            reader = found
        raise unsupported(reader, f"{_spoken(operation(reader))}, which reads integers,", _KEEP_OUT)

    def _fresh(self, node: fx.Node | None, kind: Kind) -> str:
        base = str(kind)
        if node is not None:
            path, module = module_path(node)
            named = path and (kind in WEIGHTED | {"batch_norm", "norm"} or module.startswith("torch.nn.modules."))
            leaf = named and ".container." not in module
            base = re.sub(r"\W", "_", path) if leaf else _short(operation(node))
        base = f"_{base}" if base[0].isdigit() else base
        name, number = base, 0
        while name in self._names:
            number += 1
            name = f"{base}_{number}"
        self._names.add(name)
        return name


def sizes(value: int | list[int], count: int) -> list[int]:
    """A size for each axis, where torch takes one number for all."""
    items = [value] if isinstance(value, int) else list(value)
    return items * count if len(items) == 1 else items


def _arguments(node: fx.Node) -> dict[str, Any]:
    """Every argument of an aten op by its schema's name, defaults filled in."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return dict(enumerate(node.args))  # type: ignore[arg-type]
    found: dict[str, Any] = {}
    for position, argument in enumerate(schema.arguments):
        if position < len(node.args):
            found[argument.name] = node.args[position]
        elif argument.name in node.kwargs:
            found[argument.name] = node.kwargs[argument.name]
        elif argument.has_default_value():
            found[argument.name] = argument.default_value
    return found


def _needed(outputs: Sequence[fx.Node]) -> set[fx.Node]:
    found: set[fx.Node] = set()
    todo = list(outputs)
    while todo:
        node = todo.pop()
        if node not in found:
            found.add(node)
            todo += node.all_input_nodes
    return found


def _short(op: str) -> str:
    """The op's name without the marks of internal or in-place variants."""
    short = op.strip("_")
    return {"native_batch_norm_legit_no_training": "batch_norm", "unsafe_view": "view"}.get(short, short)


def _spoken(op: str) -> str:
    """The op as users know it."""
    return _SPOKEN.get(_short(op), _short(op))
