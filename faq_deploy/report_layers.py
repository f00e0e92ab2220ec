"""The grids of a net's tensors as rows of the report, with how well they are filled."""

from __future__ import annotations

from faq_deploy.certificate import certificate
from faq_deploy.code_histograms import CodeHistograms, CodeUse, code_use
from faq_deploy.report_model import Layer
from faq_deploy.stored_net import StoredNet

__all__ = ["report_layers"]

_UNSEEN = CodeUse([], 0.0, 0.0)


def report_layers(stored: StoredNet, activations: CodeHistograms) -> list[Layer]:
    """One row an activation quantizer or quantized layer, in the order of the graph.

    Args:
        stored: the quantized net.
        activations: codes that were counted.
    """
    ranges = {str(r["name"]): r for r in stored.facts.ranges}
    bounds = {b.name: b for b in certificate(stored.net)}
    rows: list[Layer] = []
    quantizers, weighted = stored.net.quantizers(), stored.net.weighted()
    for node in stored.net.graph:
        if node.name in quantizers:
            layer, found = quantizers[node.name], ranges[node.name]
            exponent = int(layer.exponent)
            seen = activations.use(f"{node.name}.codes")
            use = seen or _UNSEEN
            rows.append(
                Layer(
                    name=node.name,
                    kind="activation",
                    bits=layer.grid.bits,
                    signed=layer.grid.signed,
                    exponent_min=exponent,
                    exponent_max=exponent,
                    y=float(found["y"]),
                    ymax=float(found["ymax"]),
                    waste=float(found["waste"]),
                    histogram=use.histogram,
                    zero=None if seen is None else use.zero,
                    clipped=None if seen is None else use.clipped,
                )
            )
        elif node.name in weighted:
            weights, bound = weighted[node.name], bounds[node.name]
            use = code_use(weights.weight_codes().detach().numpy().astype("int64"), weights.grid)
            rows.append(
                Layer(
                    name=node.name,
                    kind="weight",
                    bits=weights.grid.bits,
                    signed=True,
                    exponent_min=int(weights.weight_exponent.min()),
                    exponent_max=int(weights.weight_exponent.max()),
                    dead_channels=bound.dead_channels,
                    certificate_ratio=bound.ratio,
                    histogram=use.histogram,
                    zero=use.zero,
                    clipped=use.clipped,
                )
            )
    return rows
