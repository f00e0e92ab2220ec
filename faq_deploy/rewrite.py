"""From a float model to a quantized net that is ready to calibrate."""

from __future__ import annotations

import contextlib
import copy
import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engines.errors import InputError
from faq_deploy.batch_norm import fold
from faq_deploy.capture import Captured, Chooser, capture, choose_outputs
from faq_deploy.graph import WEIGHTED, Graph
from faq_deploy.layer_choices import choose_layers
from faq_deploy.net import QuantizedNet, WeightRules
from faq_deploy.place import place_quantizers
from faq_deploy.recipe import Recipe, resolved, weight_rule_for
from faq_deploy.shared_weights import with_shared_weights
from faq_deploy.tracing import evaluating

__all__ = ["assemble", "rewrite"]

_SAME_NET = 1e-3  # relative: folding changes the last bits of fp32, a wrong rewrite changes the first


def rewrite(model: nn.Module, example: Tensor, recipe: Recipe, choose: Chooser = choose_outputs) -> QuantizedNet:
    """Trace, deal with batch norms, place quantizers, assemble; the result still computes in float.

    Args:
        model: float model in fp32.
        example: float32 batch of at least two images, shape (N, C, H, W).
        recipe: bits, target and quantizer choices.
        choose: which of several outputs to keep.

    Returns:
        A net in mode `float` whose logits equal the model's up to fp32 rounding.

    Raises:
        InputError: NaN weights, an unsupported op, no convolution at all, a choice for a layer that isn't there, or
            a model that the graph does not reproduce.
    """
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise InputError(f"{name} holds NaN or infinite values.", "check the checkpoint it was loaded from.")
    half = {p.dtype for p in model.parameters() if p.is_floating_point()} - {torch.float32}
    source = _float_copy(model) if half else model
    captured = capture(source, example[:2], recipe.layers.output or None, choose)
    if not any(node.kind in WEIGHTED for node in captured.graph):
        raise InputError("the model has no convolution or linear layer to quantize.", "give a convolutional net.")
    graph, state = fold(captured.graph, captured.state, recipe.quantizer.batch_norm)
    graph = choose_layers(graph, recipe.layers)
    graph = place_quantizers(graph, bits=recipe.bits, target=recipe.target, cpu=recipe.cpu)
    graph = with_shared_weights(graph, state)
    if len(captured.chosen) > 1:
        graph = dataclasses.replace(graph, labels=captured.chosen)
    net = assemble(graph, state, recipe).eval()
    _check_same(source, captured, net, example)
    return net


def _float_copy(model: nn.Module) -> nn.Module:
    for module in model.modules():
        for key, value in vars(module).items():
            if isinstance(value, Tensor) and not value.is_leaf:
                setattr(module, key, value.detach())  # computed by a hook (old weight_norm), and anew at each call
    return copy.deepcopy(model).float()


def assemble(graph: Graph, state: dict[str, Tensor], recipe: Recipe) -> QuantizedNet:
    """Build the net of a placed graph with float parameters `state`."""
    chosen = resolved(recipe, "")
    rules = WeightRules({bits: weight_rule_for(recipe.quantizer, bits) for bits in (4, 8)})
    reading = 2.0 if recipe.quantizer.sigma_reading == "R1" else 1.0
    return QuantizedNet(
        graph,
        state,
        per_channel=chosen.quantizer.granularity == "channel",
        batch_norm=recipe.quantizer.batch_norm,
        rules=rules,
        sigma_factor=recipe.quantizer.sigma_multiple * reading,
        certify=chosen.quantizer.certify is True,
    )


def _check_same(model: nn.Module, captured: Captured, net: QuantizedNet, example: Tensor) -> None:
    error = _difference(model, captured, net, example)
    if not error <= _SAME_NET:
        # a net that amplifies rounding differs from itself by as much: float64 tells it from a wrong rewrite
        with contextlib.suppress(RuntimeError):  # code that insists on float32 can't be asked
            error = _difference(copy.deepcopy(model).double(), captured, copy.deepcopy(net).double(), example.double())
    if not error <= _SAME_NET:
        raise InputError(
            f"the traced graph does not reproduce the model (relative difference {error:.2g}).",
            "look for parameters that change in forward, data-dependent branches or random layers in eval mode.",
        )


def _difference(model: nn.Module, captured: Captured, net: QuantizedNet, example: Tensor) -> float:
    """The largest difference of two outputs, relative to the largest output."""
    with evaluating(model), torch.inference_mode():
        wanted, found = captured.select(model(example)), net(example)
    outputs = (found,) if isinstance(found, Tensor) else found
    error = 0.0
    for expected, output in zip(wanted, outputs, strict=True):
        tail = {"softmax": F.softmax, "log_softmax": F.log_softmax}.get(captured.tail)
        computed = tail(output, 1) if tail is not None else output
        error = max(error, float((expected - computed).abs().amax() / expected.abs().amax().clamp_min(1e-6)))
    return error
