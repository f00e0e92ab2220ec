"""From an nn.Module to a functional graph of aten ops whose nodes know their shapes and source lines."""

from __future__ import annotations

import contextlib
import io
import linecache
import logging
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree

from engines.errors import InputError
from faq_deploy.dropout_marks import marked_dropouts
from faq_deploy.plain_program import is_plain, made_functional

__all__ = [
    "BATCH",
    "Traced",
    "evaluating",
    "labelled",
    "module_path",
    "operation",
    "reason",
    "source_of",
    "structure_of",
    "trace",
]

# The traced batch size: a prime, so that the batch is found again in every shape, however the model reshapes. The
# tensors are fake, so it costs nothing.
BATCH: Final = 1009

# where torchvision's detectors take images apart and choose boxes
_AROUND_BODIES: Final = ("torchvision/models/detection/transform.py", "torchvision/ops/boxes.py")

_FILLED: Final = {"new_zeros": 0, "zeros_like": 0, "new_ones": 1, "ones_like": 1, "new_full": 0}


@dataclass(frozen=True)
class Traced:
    """A model as aten ops.

    Attributes:
        graph: functional; only ops that depend on the inputs are of interest.
        inputs: placeholders of the images, in the order of the forward's arguments.
        constants: the values of all nodes that depend on parameters and buffers alone.
        outputs: output nodes by label (a dict's key, an attribute's name, or a position; "" for a lone tensor).
    """

    graph: fx.Graph
    inputs: tuple[fx.Node, ...]
    constants: dict[fx.Node, Any]
    outputs: dict[str, fx.Node]


def trace(model: nn.Module, examples: Sequence[Tensor]) -> Traced:
    """Trace `model` in eval mode (training forms such as auxiliary heads fall away, A24).

    Hooks, parametrizations and in-place ops are honoured, since the forward really runs, on fake tensors.

    Args:
        model: float model, in eval mode.
        examples: one batch an input of the forward; only shapes (without the batch) and dtypes are read.

    Raises:
        InputError: control flow on tensor values, or a failing forward, with its source line.

    Source: torch.export, non-strict; T5.
    """
    with FakeTensorMode(allow_non_fake_inputs=True):
        fakes = tuple(torch.empty(BATCH, *x.shape[1:], dtype=x.dtype) for x in examples)
    try:
        with marked_dropouts(model), torch.no_grad(), _quiet():
            program = torch.export.export(model, fakes, strict=False)
            program = made_functional(program) if is_plain(program) else program.run_decompositions({})
    except InputError:
        raise
    except Exception as error:
        raise _failure(error) from error
    graph = program.graph
    held = program.graph_signature
    tensors = {**program.state_dict, **program.constants}
    names = {**held.inputs_to_parameters, **held.inputs_to_buffers, **held.inputs_to_lifted_tensor_constants}
    placeholders = {n.name: n for n in graph.nodes if n.op == "placeholder"}
    known = {placeholders[name]: tensors[target] for name, target in names.items()}
    inputs = tuple(placeholders[name] for name in held.user_inputs if name in placeholders)
    inputs = inputs[: len(fakes)]
    _refuse_attention(graph, inputs)
    return Traced(graph, inputs, _constants(graph, known), _outputs(graph, program.call_spec.out_spec))


def operation(node: fx.Node) -> str:
    """The aten op's name (`conv2d`), or `getitem`."""
    schema = getattr(node.target, "_schema", None)
    return str(schema.name).rpartition("::")[2] if schema is not None else str(getattr(node.target, "__name__", ""))


def module_path(node: fx.Node) -> tuple[str, str]:
    """Path (`layer1.0.conv1`) and class of the innermost module that an op ran in."""
    stack = node.meta.get("nn_module_stack") or {}
    path, kind = next(reversed(stack.values())) if stack else ("", "")
    return str(path).partition("@")[0], str(kind)


def source_of(node: fx.Node) -> str:
    """`module.path, file.py:line` of an op, as far as known."""
    path, _ = module_path(node)
    where = [path] if path else []
    frames = re.findall(r'File "([^"]+)", line (\d+)', node.meta.get("stack_trace") or "")
    user = [frame for frame in frames if _users(frame[0])]
    if user:
        file, line = user[-1]
        where.append(f"{file.rsplit('/', 1)[-1]}:{line}")
    return ", ".join(where)


def reason(error: BaseException) -> str:
    """The first line of what an error says, after `file.py:line: in layer: ` of the user's code that led to it."""
    said = str(error).strip()
    return _where(error) + _layer(error) + (said.splitlines()[0].rstrip(".") if said else type(error).__name__)


def _layer(error: BaseException) -> str:
    """`in path: ` of the innermost module in whose forward an error arose."""
    frame, modules = error.__traceback__, []
    while frame is not None:
        owner = frame.tb_frame.f_locals.get("self")
        if isinstance(owner, nn.Module):
            modules.append(owner)
        frame = frame.tb_next
    names = {id(m): name for m in modules[:1] for name, m in m.named_modules()}
    path = names.get(id(modules[-1]), "") if modules else ""
    path = path.removeprefix("_export_root").removeprefix(".")  # torch.export's own wrapper
    return f"in {path}: " if path else ""


def _users(file: str) -> bool:
    return not any(part in file for part in ("/torch/", "faq_deploy/", "/contextlib")) and file[0] != "<"


def _where(error: BaseException, statement: bool = False) -> str:
    frame, found = error.__traceback__, ""
    while frame is not None:
        file, line = frame.tb_frame.f_code.co_filename, frame.tb_lineno
        if _users(file):
            text = f" `{linecache.getline(file, line).strip()}`" if statement else ""
            found = f"{file.rsplit('/', 1)[-1]}:{line}:{text} "
        frame = frame.tb_next
    return found


def _failure(error: Exception) -> InputError:
    kind = type(error).__name__
    files = [frame.f_code.co_filename for frame, _ in traceback.walk_tb(error.__traceback__)]
    if any(file.endswith(_AROUND_BODIES) for file in files):
        return InputError(
            f"the model is a whole detector: it prepares images and chooses boxes ({_where(error).rstrip(': ')}), "
            "which can't be traced.",
            "prepare its body alone (backbone, pyramid and heads), as docs/tasks.md shows under Detection: images, "
            "anchors and boxes stay outside, in float.",
        )
    if "DataDependent" in kind or "data-dependent" in str(error):
        return InputError(
            f"the model can't be traced: {_where(error, statement=True)}depends on the values of a tensor.",
            "make the forward free of branches, loops and shapes that depend on tensor values, "
            "or keep the part out of the model.",
        )
    if "numpy" in str(error):
        return InputError(
            f"the model can't be traced: {_where(error, statement=True)}leaves torch for NumPy.",
            "compute with torch alone in the forward.",
        )
    if "missing" in str(error) and "argument" in str(error):
        return InputError(
            f"the model takes several inputs ({reason(error)}).", "wrap it in a module that takes the images alone."
        )
    return InputError(
        f"the model fails on an example input: {reason(error)}.",
        "check that the input size, the number of channels and the input's type fit the model "
        "(--resize, --crop, --color).",
    )


def _refuse_attention(graph: fx.Graph, inputs: tuple[fx.Node, ...]) -> None:
    """Products of activations with activations, before anything is made of the rest."""
    active = set(inputs)
    for node in graph.nodes:
        operands = [n for n in node.all_input_nodes if n in active]
        if operands:
            active.add(node)
        product = operation(node) in {"matmul", "bmm", "baddbmm", "einsum"} and len(operands) > 1
        if product or (operands and operation(node) == "scaled_dot_product_attention"):
            raise InputError(
                f"{source_of(node) or node.name} multiplies activations by activations ({operation(node)}): "
                "attention is not supported.",
                "quantize a model without attention, or the convolutional part of this one.",
            )


def _constants(graph: fx.Graph, known: dict[fx.Node, Any]) -> dict[fx.Node, Any]:
    """Evaluate every op whose operands are all known (weight norms, weight standardization, position tables)."""
    values = dict(known)
    with torch.no_grad():
        for node in graph.nodes:
            if operation(node) in _FILLED:  # reads only the shape of its operand
                fake = node.meta["val"]
                fill = node.args[2] if operation(node) == "new_full" else _FILLED[operation(node)]
                values[node] = torch.full((1, *fake.shape[1:]), float(fill)).expand(fake.shape)
            if node.op != "call_function" or any(n not in values for n in node.all_input_nodes):
                continue
            if node in values or "faq_deploy" in str(node.target):
                continue
            args, kwargs = pytree.tree_map(
                lambda a: values[a] if isinstance(a, fx.Node) else a, (node.args, dict(node.kwargs))
            )
            target: Callable[..., Any] = node.target
            try:
                values[node] = target(*args, **kwargs)
            except RuntimeError as error:  # such as a table too large for memory
                raise InputError(
                    f"{source_of(node) or node.name} can't be evaluated: {reason(error)}.",
                    "make the constants of the model smaller, or compute them before.",
                ) from error
    return values


def _outputs(graph: fx.Graph, spec: Any) -> dict[str, fx.Node]:
    flat = next(n for n in graph.nodes if n.op == "output").args[0]
    named = labelled(pytree.tree_unflatten(list(flat), spec))
    return {label: node for label, node in named.items() if isinstance(node, fx.Node)}


def labelled(result: object) -> dict[str, object]:
    """What a model returned, flat: a dict's keys, attribute names and positions joined by dots; "" for a lone value."""
    parts = ("key", "idx", "name")
    return {
        ".".join(str(next((getattr(k, p) for p in parts if hasattr(k, p)), k)) for k in path): leaf
        for path, leaf in pytree.tree_flatten_with_path(result)[0]
    }


def structure_of(model: nn.Module, example: Tensor) -> pytree.TreeSpec | None:
    """How a model packs the tensors that it returns; None where it returns other things besides.

    Args:
        model: in any mode; it is run in eval mode.
        example: float32, shape (N, C, H, W).
    """
    with evaluating(model), torch.inference_mode():
        leaves, structure = pytree.tree_flatten(model(example))
    return structure if all(isinstance(leaf, Tensor) for leaf in leaves) else None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """What the model prints goes to stderr; torch's own dumps of a failing trace go nowhere."""
    loggers = [logging.getLogger(name) for name in ("torch", "torch.fx.experimental.symbolic_shapes")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    own = sys.stderr
    try:
        with contextlib.redirect_stdout(own), contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
            # what hooks leave on a module (old weight_norm) is computed anew at each call
            warnings.filterwarnings("ignore", "The tensor attribute")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Run the block with `model` in eval mode, and put every module back into its own mode."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
