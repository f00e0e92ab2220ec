"""A quantized net as `inspect` reads it: nodes, readers and shapes, looked up once."""

from __future__ import annotations

from faq_deploy.graph import Node
from faq_deploy.layers import FloatLayer
from faq_deploy.net import QuantizedNet

__all__ = ["NetView", "is_depthwise"]


class NetView:
    """Look-ups in a net that does not change.

    Args:
        net: rewritten; its nodes run once on zeros, for the shapes.
    """

    def __init__(self, net: QuantizedNet) -> None:
        self.net = net
        self.nodes = net.graph.by_name()
        self.readers = net.graph.consumers()
        self.shapes = net.shapes()

    def weight_shape(self, node: Node) -> tuple[int, ...]:
        """Of a convolution or linear layer."""
        layer = self.net.layers[node.name]
        assert isinstance(layer, FloatLayer)
        return tuple(layer.weight.shape)

    def holds_codes(self, name: str) -> bool:
        """Whether a node's tensor is codes of quantizers, moved at most."""
        node = self.nodes[name]
        return node.kind == "quantize" or (node.moves_codes and bool(self.net.source_quantizers(name)))


def is_depthwise(node: Node, weight: tuple[int, ...]) -> bool:
    """Whether each input channel of a convolution has filters of its own.

    Args:
        node: a layer.
        weight: shape of its weight.
    """
    if node.kind == "linear" or node.settings.get("affine"):
        return False
    groups = node.integer("groups")
    return groups > 1 and weight[1] == 1 and (node.kind == "conv" or groups == weight[0])
