"""From an nn.Module to a torch.fx graph whose nodes know their shapes and source lines."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from engines.errors import InputError

__all__ = ["BatchNorm", "TensorShape", "reason", "source_of", "trace"]

BatchNorm = _BatchNorm  # the base of BatchNorm1d/2d/3d, SyncBatchNorm and timm's BatchNormAct2d


class TensorShape(tuple[int, ...]):
    """What shape propagation found for a tensor node (plain values are kept as they are)."""


class _LeafTracer(fx.Tracer):
    record_stack_traces = True

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        # subclasses of BatchNorm open into chains of asserts otherwise (T1)
        return isinstance(m, _BatchNorm) or super().is_leaf_module(m, module_qualified_name)


class _ShapeRecorder(fx.Interpreter):
    def run_node(self, n: fx.Node) -> Any:
        try:
            value = super().run_node(n)
        except InputError:
            raise
        except Exception as error:
            raise InputError(
                f"the model fails at {source_of(n) or n.name} on an example input: {reason(error)}.",
                "check that the input size and the number of channels fit the model (--resize, --crop, --color).",
            ) from error
        n.meta["value"] = TensorShape(value.shape) if isinstance(value, Tensor) else value
        if isinstance(value, Tensor):
            n.meta["dtype"] = value.dtype
        return value


def trace(model: nn.Module, example: Tensor) -> fx.GraphModule:
    """Trace `model` in eval mode (training forms such as auxiliary heads fall away, A24).

    Args:
        model: float model; it is put into eval mode.
        example: float32 batch, shape (N, C, H, W); N = 2 tells batch sizes from channel counts.

    Returns:
        The traced graph; `node.meta["value"]` holds a `TensorShape` or the plain value.

    Raises:
        InputError: control flow on tensors, hooks, or a failing forward, with its source line.
    """
    model.eval()
    _refuse_hooks(model)
    tracer = _LeafTracer()
    try:
        graph = tracer.trace(model)
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"the model can't be traced: {reason(error)}.",
            "make the forward free of branches and loops that depend on tensor values.",
        ) from error
    traced = fx.GraphModule(tracer.root, graph)
    with torch.inference_mode():
        _ShapeRecorder(traced).run(example)
    return traced


def source_of(node: fx.Node) -> str:
    """`module.path, file.py:line` of an fx node, as far as known."""
    stack = node.meta.get("nn_module_stack") or {}
    path = next(reversed(stack.values()))[0] if stack else ""
    where = [str(node.target)] if node.op == "call_module" else [str(path)] if path else []
    frames = re.findall(r'File "([^"]+)", line (\d+)', node.stack_trace or "")
    user = [frame for frame in frames if "/torch/" not in frame[0]]
    if user:
        file, line = user[-1]
        where.append(f"{file.rsplit('/', 1)[-1]}:{line}")
    return ", ".join(where)


def reason(error: Exception) -> str:
    """The first line of what an error says, after `file.py:line: ` of the user's code that led to it, if any did."""
    frame = error.__traceback__
    where = ""
    while frame is not None:
        file = frame.tb_frame.f_code.co_filename
        if "/torch/" not in file and "faq_deploy" not in file and not file.startswith("<"):
            where = f"{file.rsplit('/', 1)[-1]}:{frame.tb_lineno}: "
        frame = frame.tb_next
    said = str(error).strip()
    return where + (said.splitlines()[0].rstrip(".") if said else type(error).__name__)


def _refuse_hooks(model: nn.Module) -> None:
    hooks: list[tuple[str, Callable[..., object]]] = [
        (name or "the model itself", hook)
        for name, module in model.named_modules()
        for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    ]
    if hooks:
        name, hook = hooks[0]
        raise InputError(
            f"{name} has a forward hook ({getattr(hook, '__qualname__', type(hook).__name__)}), "
            "which would be lost when its layer is replaced.",
            "remove the hook, or fold it into the weights (torch.nn.utils.remove_weight_norm, remove_spectral_norm).",
        )
