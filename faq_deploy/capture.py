"""From a float model to a plain-data graph and its parameters (torch.fx, eval semantics)."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from engines.errors import InputError
from faq_deploy.graph import Graph, Node
from faq_deploy.module_nodes import MODULE_NODES, layer_state, unsupported
from faq_deploy.tracing import TensorShape, source_of, trace

__all__ = ["capture"]

# functional forms, with the parameter names of their positional arguments, and the module they stand for
_FUNCTIONS: Final[dict[object, tuple[type[nn.Module], tuple[str, ...]]]] = {
    F.relu: (nn.ReLU, ("inplace",)),
    torch.relu: (nn.ReLU, ()),
    torch.relu_: (nn.ReLU, ()),
    F.relu_: (nn.ReLU, ()),
    F.relu6: (nn.ReLU6, ("inplace",)),
    F.hardtanh: (nn.Hardtanh, ("min_val", "max_val", "inplace")),
    torch.clamp: (nn.Hardtanh, ("min_val", "max_val")),
    F.max_pool2d: (nn.MaxPool2d, ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")),
    torch.max_pool2d: (nn.MaxPool2d, ("kernel_size", "stride", "padding", "dilation", "ceil_mode")),
    F.avg_pool2d: (
        nn.AvgPool2d,
        ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override"),
    ),
    F.adaptive_avg_pool2d: (nn.AdaptiveAvgPool2d, ("output_size",)),
    torch.flatten: (nn.Flatten, ("start_dim", "end_dim")),
    F.dropout: (nn.Dropout, ("p", "training", "inplace")),
    torch.dropout: (nn.Dropout, ("p", "training")),
}
_METHODS: Final[dict[str, tuple[type[nn.Module], tuple[str, ...]]]] = {
    "relu": (nn.ReLU, ()),
    "relu_": (nn.ReLU, ()),
    "clamp": (nn.Hardtanh, ("min_val", "max_val")),
    "clamp_": (nn.Hardtanh, ("min_val", "max_val")),
    "flatten": (nn.Flatten, ("start_dim", "end_dim")),
}
_RENAMED: Final = {"min": "min_val", "max": "max_val", "input": "input"}
_ADDS: Final = frozenset({operator.add, operator.iadd, torch.add, "add", "add_"})
_CATS: Final = frozenset({torch.cat, torch.concat, torch.concatenate})
_MEANS: Final = frozenset({torch.mean, "mean"})
_VIEWS: Final = frozenset({"view", "reshape", torch.reshape})
_ALIASES: Final = frozenset({"contiguous"})
_IN_PLACE: Final = frozenset({operator.iadd, torch.relu_, F.relu_, "relu_", "add_", "clamp_"})


def capture(model: nn.Module, example: Tensor) -> tuple[Graph, dict[str, Tensor]]:
    """The float graph of `model` and its parameters, keyed `node.weight`, `node.bias`, ...

    Eager semantics are kept: an in-place op changes what later readers of its input see. A module
    called twice becomes two nodes, each with parameters of its own.

    Args:
        model: any traceable CNN.
        example: float32 batch of two, shape (2, C, H, W).

    Raises:
        InputError: an op that isn't supported, with its node, source line and remedy.
    """
    traced = trace(model, example)
    return _Capture(traced).run()


class _Capture:
    """State of one walk over an fx graph."""

    def __init__(self, traced: fx.GraphModule) -> None:
        self.traced = traced
        self.modules = dict(traced.named_modules())
        self.nodes: list[Node] = []
        self.state: dict[str, Tensor] = {}
        self.names: dict[fx.Node, str] = {}  # fx node -> graph node that now holds its value
        self.used: set[str] = set()

    def run(self) -> tuple[Graph, dict[str, Tensor]]:
        outputs: tuple[str, ...] = ()
        for node in self.traced.graph.nodes:
            if node.op == "output":
                outputs = self._outputs(node)
            elif node.op == "placeholder":
                self._placeholder(node)
            elif isinstance(node.meta.get("value"), TensorShape) and node.op != "get_attr":
                self._operation(node)
        return _without_dead(Graph(tuple(self.nodes), outputs)), self.state

    def _placeholder(self, node: fx.Node) -> None:
        if not isinstance(node.meta.get("value"), TensorShape):
            return  # a keyword argument left at its default
        if self.nodes:
            raise InputError(
                f"the model takes several inputs ({node.target} is the second).", "wrap it in a module with one input."
            )
        shape = node.meta["value"]
        if len(shape) != 4:
            raise InputError(f"the model's input has {len(shape)} dimensions.", "give a net that takes (N, C, H, W).")
        self._emit(node, Node("input", "input", (), {"shape": list(shape[1:])}))

    def _outputs(self, node: fx.Node) -> tuple[str, ...]:
        result = node.args[0]
        if not isinstance(result, fx.Node) or result not in self.names:
            raise InputError(
                "the model returns something other than one tensor.", "wrap it in a module that returns the logits."
            )
        return (self.names[result],)

    def _operation(self, node: fx.Node) -> None:
        target = node.target
        if node.op == "call_module":
            module = self.modules[str(target)]
            self._module(node, module, node.args, node.kwargs)
            if getattr(module, "inplace", False):
                self._overwrite(node)
        elif target in _ADDS:
            self._add(node)
        elif target in _CATS:
            self._cat(node)
        elif target in _MEANS:
            self._mean(node)
        elif target in _VIEWS:
            self._view(node)
        elif target in _ALIASES:
            self.names[node] = self._input(node, node.args[0])
        elif target is F.conv2d or target is torch.conv2d or target is F.linear:
            self._functional_weights(node)
        else:
            table: dict[Any, tuple[type[nn.Module], tuple[str, ...]]] = (
                _METHODS if node.op == "call_method" else _FUNCTIONS
            )
            if target not in table:
                raise unsupported(node, _name_of(target))
            kind, names = table[target]
            arguments = dict(zip(names, node.args[1:], strict=False)) | dict(node.kwargs)
            inplace = bool(arguments.pop("inplace", False))
            arguments = {_RENAMED.get(k, k): v for k, v in arguments.items()}
            source = node.args[0] if node.args else arguments.pop("input")
            arguments.pop("input", None)
            if kind is nn.Dropout:
                arguments.pop("training", None)  # traced in eval; a dropout is live in training
            if kind is nn.Flatten:
                arguments.setdefault("start_dim", 0)  # torch.flatten's default differs from the module's
            if kind is nn.Hardtanh:
                arguments = {"min_val": float("-inf"), "max_val": float("inf")} | {
                    k: v for k, v in arguments.items() if v is not None
                }
            self._module(node, kind(**arguments), (source,), {})
            if inplace:
                self._overwrite(node)
        if target in _IN_PLACE:
            self._overwrite(node)

    def _module(self, node: fx.Node, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        handler = next((h for kind, h in MODULE_NODES.items() if isinstance(module, kind)), None)
        if handler is None:
            raise unsupported(node, type(module).__name__)
        operand = args[0] if args else next(iter(kwargs.values()))
        source = self._input(node, operand)
        made = handler(node, module, _shape(operand))
        if made is None:  # the identity
            self.names[node] = source
            return
        kind, settings = made
        name = self._emit(node, Node(self._fresh(node), kind, (source,), settings, source_of(node)))
        for key, value in layer_state(module).items():
            self.state[f"{name}.{key}"] = value.detach().clone().float()

    def _functional_weights(self, node: fx.Node) -> None:
        names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
        arguments: dict[str, Any] = dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
        weight, bias = (self._parameter(arguments.get(key)) for key in ("weight", "bias"))
        if weight is None:
            raise unsupported(node, f"{_name_of(node.target)} with a computed weight")
        module: nn.Module
        if node.target is F.linear:
            module = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
        else:
            groups = arguments.get("groups", 1)
            module = nn.Conv2d(
                weight.shape[1] * groups,
                weight.shape[0],
                (weight.shape[2], weight.shape[3]),
                arguments.get("stride", 1),
                arguments.get("padding", 0),
                arguments.get("dilation", 1),
                groups,
                bias is not None,
            )
        module.weight = nn.Parameter(weight)
        module.bias = None if bias is None else nn.Parameter(bias)
        self._module(node, module, (arguments["input"],), {})

    def _parameter(self, argument: object) -> Tensor | None:
        if not isinstance(argument, fx.Node) or argument.op != "get_attr":
            return None
        value: Any = self.traced
        for part in str(argument.target).split("."):
            value = getattr(value, part)
        return value.detach() if isinstance(value, Tensor) else None

    def _add(self, node: fx.Node) -> None:
        left, right = (*node.args, *node.kwargs.values())[:2]
        alpha = node.kwargs.get("alpha", 1)
        both = isinstance(left, fx.Node) and isinstance(right, fx.Node)
        if not both or alpha != 1 or _shape(left) != _shape(right):
            raise unsupported(node, "an addition of other than two activations of one shape")
        self._emit(
            node,
            Node(self._fresh(node), "add", (self._input(node, left), self._input(node, right)), {}, source_of(node)),
        )

    def _cat(self, node: fx.Node) -> None:
        tensors = node.args[0] if node.args else node.kwargs["tensors"]
        dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
        rank = len(node.meta["value"])
        if not isinstance(tensors, (list, tuple)) or not isinstance(dim, int) or dim % rank != 1:
            raise unsupported(node, "a concatenation over another dimension than the channels")
        inputs = tuple(self._input(node, t) for t in tensors)
        self._emit(node, Node(self._fresh(node), "cat", inputs, {}, source_of(node)))

    def _mean(self, node: fx.Node) -> None:
        before, after = _shape(node.args[0]), node.meta["value"]
        dims = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
        wanted = sorted(d % 4 for d in dims) if isinstance(dims, (list, tuple)) else None
        if len(before) != 4 or wanted != [2, 3]:
            raise unsupported(node, "a mean over other dimensions than height and width")
        source = self._input(node, node.args[0])
        name = self._fresh(node)
        positions = before[2] * before[3]
        self._emit(node, Node(name, "global_avg_pool", (source,), {"positions": positions}, source_of(node)))
        if len(after) == 2:
            flat = {"shape": [before[1], 1, 1]}
            self._emit(node, Node(self._unique(f"{name}_flat"), "flatten", (name,), flat, source_of(node)))

    def _view(self, node: fx.Node) -> None:
        before, after = _shape(node.args[0]), node.meta["value"]
        if not before or not after or before[0] != after[0]:
            raise unsupported(node, "a reshape that mixes images of a batch")
        source = self._input(node, node.args[0])
        if len(before) == len(after) == 2:
            self.names[node] = source
            return
        if len(after) == 2:
            made = Node(self._fresh(node), "flatten", (source,), {"shape": list(before[1:])}, source_of(node))
        else:
            made = Node(self._fresh(node), "reshape", (source,), {"shape": list(after[1:])}, source_of(node))
        self._emit(node, made)

    def _input(self, node: fx.Node, operand: object) -> str:
        if not isinstance(operand, fx.Node) or operand not in self.names:
            raise unsupported(node, f"{_name_of(node.target)} on a constant or a parameter")
        return self.names[operand]

    def _emit(self, node: fx.Node, made: Node) -> str:
        self.nodes.append(made)
        self.used.add(made.name)
        self.names[node] = made.name
        return made.name

    def _overwrite(self, node: fx.Node) -> None:
        """An in-place op: whoever reads its input from now on reads its result (C12)."""
        old = self.names[node.args[0]]  # type: ignore[index]
        for key, name in self.names.items():
            if name == old:
                self.names[key] = self.names[node]

    def _fresh(self, node: fx.Node) -> str:
        base = str(node.target).replace(".", "_") if node.op == "call_module" else node.name
        return self._unique(base if base.isidentifier() else node.name)

    def _unique(self, base: str) -> str:
        name, number = base, 1
        while name in self.used or name == "input":
            number += 1
            name = f"{base}_{number}"
        return name


def _shape(operand: object) -> TensorShape:
    value = operand.meta.get("value") if isinstance(operand, fx.Node) else None
    return value if isinstance(value, TensorShape) else TensorShape()


def _name_of(target: str | Callable[..., object] | object) -> str:
    return target if isinstance(target, str) else str(getattr(target, "__name__", target))


def _without_dead(graph: Graph) -> Graph:
    alive = set(graph.outputs)
    for node in reversed(graph.nodes):
        if node.name in alive:
            alive.update(node.inputs)
    return Graph(tuple(n for n in graph.nodes if n.name in alive), graph.outputs)
