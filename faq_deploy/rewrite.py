"""From a float model to a quantized net that is ready to calibrate."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from engines.errors import InputError
from faq_deploy.batch_norm import fold
from faq_deploy.capture import capture
from faq_deploy.graph import WEIGHTED, Graph
from faq_deploy.net import QuantizedNet, WeightRules
from faq_deploy.place import place_quantizers
from faq_deploy.recipe import Recipe, resolved, weight_rule_for

__all__ = ["assemble", "rewrite"]

_SAME_NET = 1e-3  # relative: folding changes the last bits of fp32, a wrong rewrite changes the first


def rewrite(model: nn.Module, example: Tensor, recipe: Recipe) -> QuantizedNet:
    """Trace, deal with batch norms, place quantizers, assemble; the result still computes in float.

    Args:
        model: float model in fp32.
        example: float32 batch of at least two images, shape (N, C, H, W).
        recipe: bits, target and quantizer choices.

    Returns:
        A net in mode `float` whose logits equal the model's up to fp32 rounding.

    Raises:
        InputError: NaN weights, an unsupported op, no convolution at all, or a model that the graph
            does not reproduce.
    """
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise InputError(f"{name} holds NaN or infinite values.", "check the checkpoint it was loaded from.")
    source = copy.deepcopy(model).float().eval()
    graph, state = capture(source, example[:2])
    if not any(node.kind in WEIGHTED for node in graph):
        raise InputError("the model has no convolution or linear layer to quantize.", "give a convolutional net.")
    graph, state = fold(graph, state, recipe.quantizer.batch_norm)
    graph = place_quantizers(graph, bits=recipe.bits, target=recipe.target, cpu=recipe.cpu)
    net = assemble(graph, state, recipe).eval()
    _check_same(source, net, example)
    return net


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
    )


def _check_same(model: nn.Module, net: QuantizedNet, example: Tensor) -> None:
    with torch.inference_mode():
        wanted, found = model(example), net(example)
    if not isinstance(wanted, Tensor):
        return
    scale = wanted.abs().amax().clamp_min(1e-6)
    error = float((wanted - found).abs().amax() / scale)
    if not error <= _SAME_NET:
        raise InputError(
            f"the traced graph does not reproduce the model (relative difference {error:.2g}).",
            "look for parameters that change in forward, data-dependent branches or random layers in eval mode.",
        )
