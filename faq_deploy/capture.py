"""From a float model to a plain-data graph and its parameters (eval semantics)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Final

from torch import Tensor, fx, nn

from engines.errors import InputError
from faq_deploy.aten import HANDLERS
from faq_deploy.graph import Graph
from faq_deploy.simplify import simplify
from faq_deploy.tracing import evaluating, labelled, operation, trace
from faq_deploy.walk import Walk

__all__ = ["USUAL_OUTPUTS", "Captured", "Chooser", "capture", "choose_outputs"]

Chooser = Callable[[Collection[str], str | None], tuple[str, ...]]

USUAL_OUTPUTS: Final = ("logits", "out")  # of transformers, of torchvision

_TAILS: Final = {
    **dict.fromkeys(("softmax", "_softmax"), "softmax"),
    **dict.fromkeys(("log_softmax", "_log_softmax"), "log_softmax"),
}


@dataclass(frozen=True)
class Captured:
    """A model as data.

    Attributes:
        graph: one op a node.
        state: float32 parameters, keyed `node.weight`, `node.bias`, ...
        outputs: the labels of the model's outputs ("" for a lone tensor); `graph.outputs` has those chosen.
        chosen: the labels of the outputs that the graph computes.
        tail: `softmax` or `log_softmax` where the model ended in one: the graph returns the logits before it.
    """

    graph: Graph
    state: dict[str, Tensor]
    outputs: tuple[str, ...]
    chosen: tuple[str, ...]
    tail: str = ""

    def select(self, result: object) -> tuple[Tensor, ...]:
        """The chosen tensors of what the model returned."""
        named = labelled(result)
        found = [named[label] for label in self.chosen]
        return tuple(tensor for tensor in found if isinstance(tensor, Tensor))


def capture(
    model: nn.Module,
    example: Tensor | Sequence[Tensor],
    output: str | None = None,
    choose: Chooser | None = None,
) -> Captured:
    """The float graph of `model`.

    Eager semantics are kept: an in-place op changes what later readers of its input see, and hooks and
    parametrizations have done their work. A module called twice becomes two nodes, each with parameters of its own.

    Args:
        model: any CNN whose forward does not depend on tensor values.
        example: float32 batch, shape (N, C, H, W), or one an input.
        output: label of the output to keep, where the model returns several; `*` keeps all. Left out, it is
            `logits` or `out` if there is one, else the first.
        choose: what to take instead of `choose_outputs`.

    Raises:
        InputError: an op that isn't supported, with its node, source line and remedy.
    """
    examples = (example,) if isinstance(example, Tensor) else tuple(example)
    with evaluating(model):
        traced = trace(model, examples)
    labels = (choose or choose_outputs)(traced.outputs, output)
    tails = [_without_tail(traced.outputs[label]) for label in labels]
    walk = Walk(traced)
    graph, state = simplify(walk.run([node for node, _ in tails], HANDLERS), walk.state)
    return Captured(graph, state, tuple(traced.outputs), labels, tails[0][1] if len(tails) == 1 else "")


def choose_outputs(outputs: Collection[str], wanted: str | None) -> tuple[str, ...]:
    """The labels of the outputs to keep, as `capture` says.

    Args:
        outputs: labels of what the model returns.
        wanted: a label, `*` for all, or None for the usual one.

    Raises:
        InputError: no such output, or none at all.
    """
    if wanted == "*":
        return tuple(outputs)
    if wanted is not None:
        if wanted not in outputs:
            lone = tuple(outputs) == ("",)
            remedy = (
                "it has one; leave --model-output out." if lone else f"choose one of {', '.join(outputs) or 'none'}."
            )
            raise InputError(f"the model has no output {wanted!r}.", remedy)
        return (wanted,)
    if not outputs:
        raise InputError("the model returns no tensor.", "wrap it in a module that returns the logits.")
    return (next((label for label in USUAL_OUTPUTS if label in outputs), next(iter(outputs))),)


def _without_tail(node: fx.Node) -> tuple[fx.Node, str]:
    """The logits where a model ends in softmax: it changes no order, and no engine rounds it alike."""
    tail = _TAILS.get(operation(node), "")
    source = node.args[0] if tail else None
    last = isinstance(source, fx.Node) and node.args[1] in (-1, 1) and node.meta["val"].dim() == 2
    return (source, tail) if last and isinstance(source, fx.Node) else (node, "")
