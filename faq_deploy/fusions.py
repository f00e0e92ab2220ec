"""Batch norms and additions that a net in training computes together with the quantizer behind them: see `fused`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from faq_deploy.graph import WEIGHTED, Graph, Node
from faq_deploy.layers import ActivationQuantizer, FloatLayer
from faq_deploy.made_again import made_again
from faq_deploy.quantized_batch_norm import QuantizedBatchNorm

__all__ = ["FusedNodes", "Fusion", "fusions"]


@dataclass(frozen=True)
class Fusion:
    """What is behind a quantizer, nodes that nobody else reads.

    Attributes:
        norm: a layer with a live batch norm, or a batch norm.
        add: the addition after it; None where there is none.
        other: what is added.
        nobody_else: whether only the addition reads that, so that nothing else keeps it for a gradient.
    """

    norm: str
    add: str | None = None
    other: str | None = None
    nobody_else: bool = False


def fusions(graph: Graph) -> dict[str, Fusion]:
    """Find them.

    Args:
        graph: with `quantize` nodes.

    Returns:
        By the quantizer's name.
    """
    nodes, uses = graph.by_name(), graph.uses()
    found: dict[str, Fusion] = {}

    def normalizes(name: str) -> bool:
        return uses[name] == 1 and _has_norm(nodes[name])

    for node in graph:
        if node.kind != "quantize":
            continue
        before = nodes[node.inputs[0]]
        if normalizes(before.name):
            found[node.name] = Fusion(before.name)
        elif before.kind == "add" and uses[before.name] == 1:
            left, right = before.inputs
            if normalizes(left):
                found[node.name] = Fusion(left, before.name, right, uses[right] == 1)
            elif normalizes(right):
                found[node.name] = Fusion(right, before.name, left, uses[left] == 1)
    return found


class FusedNodes:
    """Runs the nodes of fusions in one forward pass in training: what is before the norm goes on to the quantizer.

    Args:
        found: by the quantizer's name.
        layers: of the net, in the modes that they run in. Those with a hook or another forward are left out.
    """

    def __init__(self, found: Mapping[str, Fusion], layers: nn.ModuleDict) -> None:
        self._layers = layers
        self._quantizers = {name: fusion for name, fusion in found.items() if self._fits(name, fusion)}
        self._adds = {fusion.add: fusion for fusion in self._quantizers.values()}
        self._names = {name for q, f in self._quantizers.items() for name in (q, f.norm, f.add)}
        self._others: dict[str, Tensor] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def __call__(self, node: Node, inputs: list[Tensor]) -> Tensor:
        """The quantizer's output; for nodes before it what the norm reads.

        Args:
            node: one of these.
            inputs: what it reads, in the same sense.
        """
        layer = self._layers[node.name]
        if isinstance(layer, ActivationQuantizer):
            return self._quantized(layer, self._quantizers[node.name], inputs[0])
        if node.name in self._adds:
            left, right = inputs
            fusion = self._adds[node.name]
            x, self._others[node.name] = (left, right) if node.inputs[0] == fusion.norm else (right, left)
            return x
        return layer.before_norm(inputs[0]) if isinstance(layer, FloatLayer) else inputs[0]

    def _quantized(self, quantizer: ActivationQuantizer, fusion: Fusion, x: Tensor) -> Tensor:
        norm = self._norm(fusion)
        other = None if fusion.add is None else self._others.pop(fusion.add)
        if other is None or other.shape == x.shape:
            with made_again(other if fusion.nobody_else else None):
                result: Tensor = norm(x, quantizer.rounding, other)
        else:  # a sum that broadcasts
            result = quantizer(norm(x) + other)
        return result

    def _norm(self, fusion: Fusion) -> nn.Module:
        layer = self._layers[fusion.norm]
        if isinstance(layer, QuantizedBatchNorm):
            return layer
        assert isinstance(layer, FloatLayer) and layer.norm is not None
        return layer.norm

    def _fits(self, name: str, fusion: Fusion) -> bool:
        quantizer, norm = self._layers[name], self._norm(fusion)
        assert isinstance(quantizer, ActivationQuantizer)
        modules = [quantizer, norm, self._layers[fusion.norm], *([self._layers[fusion.add]] if fusion.add else [])]
        hooked = any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in modules)
        replaced = any("forward" in vars(m) for m in modules)  # by somebody who wants another one called
        return quantizer.mode == "quantize" and norm.training and not hooked and not replaced


def _has_norm(node: Node) -> bool:
    return node.kind == "batch_norm" or (node.kind in WEIGHTED and "norm_eps" in node.settings)
