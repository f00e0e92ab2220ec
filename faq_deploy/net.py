"""The quantized network: a graph, a layer for each node, and the modes that they run in."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from typing_extensions import Self

from faq_deploy.batch_norm import BatchNormMode
from faq_deploy.build_layers import Surroundings, build_layer, grid_of
from faq_deploy.certify import certified_exponents, reaches
from faq_deploy.fixed_point import in_rows
from faq_deploy.fusions import FusedNodes, fusions
from faq_deploy.graph import WEIGHTED, Graph, Node
from faq_deploy.layers import ActivationQuantizer, Mode, WeightedLayer
from faq_deploy.norm_layer import ExactNorm
from faq_deploy.plain_layers import AveragePool, GlobalAveragePool
from faq_deploy.quantized_batch_norm import QuantizedBatchNorm
from faq_deploy.resample import AdaptiveAveragePool, Resize
from faq_deploy.shared_weights import tie, untied
from faq_deploy.shifted import mean_offset
from faq_deploy.slope import SlopedRelu
from faq_deploy.unary import CodeRange, Unary
from faq_deploy.weight_rule import WeightRule, bias_floors, weight_exponents

__all__ = ["QuantizedNet", "WeightRules"]

# What computes differently by mode.
_MODAL = (ActivationQuantizer, WeightedLayer, QuantizedBatchNorm, ExactNorm, SlopedRelu, Resize)
_MEANS = (AveragePool, GlobalAveragePool, AdaptiveAveragePool)


class WeightRules(dict[int, WeightRule]):
    """The exponent rule of each weight bit width; 7-bit weights follow the 8-bit rule, other widths `mse`."""

    def of(self, bits: int) -> WeightRule:
        """The rule for `bits`."""
        return self.get(8 if bits == 7 else bits, "mse")


class QuantizedNet(nn.Module):
    """An ordinary module (same inputs and outputs as the float model) made of fixed-point layers.

    Args:
        graph: with `quantize` nodes.
        state: float parameters, keyed `node.weight` and so on.
        per_channel: one weight exponent an output channel, else one a tensor.
        batch_norm: which constants `batch_norm` nodes use.
        rules: weight exponent rules.
        sigma_factor: c of rule `sigma` (A7).
        certify: raise the exponents of channels whose sums could pass 2^24.
    """

    def __init__(
        self,
        graph: Graph,
        state: Mapping[str, Tensor],
        *,
        per_channel: bool,
        batch_norm: BatchNormMode,
        rules: WeightRules,
        sigma_factor: float,
        certify: bool = False,
    ) -> None:
        super().__init__()
        self.graph, self.rules, self.sigma_factor = graph, rules, sigma_factor
        self.batch_norm: BatchNormMode = batch_norm
        self.certify = certify
        self._behind = False  # a step of training may have followed the last refresh
        nodes = graph.by_name()
        self._nodes = nodes
        self._sources = _sources(graph)
        self._float = _float_nodes(graph, self._sources)
        self.layers = nn.ModuleDict()
        for node in graph:
            if node.kind != "input":
                read = tuple(grid_of(nodes[source]) for source in self._sources[node.name])
                self.layers[node.name] = build_layer(node, Surroundings(state, per_channel, batch_norm, read))
        tie(graph, self.layers)  # type: ignore[arg-type]
        self._fusions = fusions(graph)
        last_reader = {name: node.name for node in graph for name in node.inputs}
        self._spent = {
            node.name: [i for i in dict.fromkeys(node.inputs) if last_reader[i] == node.name and i not in graph.outputs]
            for node in graph
        }

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Images (N, C, H, W) float32, one tensor an input, to logits (N, classes); a tuple for several outputs."""
        return self._run(inputs, None)

    def codes(self, *inputs: Tensor) -> tuple[dict[str, Tensor], Tensor | tuple[Tensor, ...]]:
        """Every quantizer's codes (int64, by name; not those of constants) and what `forward` returns."""
        found: dict[str, Tensor] = {}

        def keep(node: Node, value: Tensor) -> None:
            layer = self.layers[node.name]
            if isinstance(layer, ActivationQuantizer) and not self.holds_constant(node.name):
                found[node.name] = layer.codes(value)

        logits = self._run(inputs, keep)
        return found, logits

    @torch.no_grad()
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every node's tensor, without the batch."""
        found: dict[str, tuple[int, ...]] = {}

        def keep(node: Node, value: Tensor) -> None:
            found[node.name] = tuple(value.shape[1:])

        found |= {node.name: tuple(node.integers("shape")) for node in self.graph if node.kind == "input"}
        inputs = [torch.zeros(1, *shape) for shape in found.values()]
        assert not self.training, "a batch norm would take the zeros for data"
        self._run(inputs, keep)
        return found

    def _run(
        self, inputs: tuple[Tensor, ...] | list[Tensor], visit: Callable[[Node, Tensor], None] | None
    ) -> Tensor | tuple[Tensor, ...]:
        values: dict[str, Tensor] = {}
        left = iter(inputs)
        # what is looked at is computed by itself
        fused = FusedNodes(self._fusions if self.training and visit is None else {}, self.layers)
        for node in self.graph:
            if node.kind == "input":
                values[node.name] = next(left)
                continue
            layer = self.layers[node.name]
            if node.kind == "constant":
                values[node.name] = layer(len(inputs[0]))
            elif node.name in fused:
                values[node.name] = fused(node, [values[i] for i in node.inputs])
            else:
                values[node.name] = layer(*[values[i] for i in node.inputs])
            if visit is not None:
                visit(node, values[node.name])
            for name in self._spent[node.name]:
                del values[name]
        outputs = self.graph.outputs
        return values[outputs[0]] if len(outputs) == 1 else tuple(values[name] for name in outputs)

    def untie(self) -> None:
        """Give layers that share a weight one each."""
        self.graph = untied(self.graph, self.layers)  # type: ignore[arg-type]
        self._nodes = self.graph.by_name()

    def set_mode(self, mode: Mode) -> None:
        """Put every layer into `float`, `observe` or `quantize`; float layers stay what they are."""
        for name, layer in self.layers.items():
            if isinstance(layer, _MODAL) and name not in self._float:
                layer.mode = mode

    def quantizers(self) -> dict[str, ActivationQuantizer]:
        """Activation quantizers by name, in graph order."""
        return {name: q for name, q in self.layers.items() if isinstance(q, ActivationQuantizer)}

    def weighted(self) -> dict[str, WeightedLayer]:
        """Quantized convolutions and linear layers by name, in graph order."""
        return {name: q for name, q in self.layers.items() if isinstance(q, WeightedLayer)}

    def source_quantizers(self, name: str) -> list[str]:
        """The quantizers whose codes node `name` reads (several behind a concat); empty if it reads floats."""
        return list(self._sources[name])

    def holds_constant(self, name: str) -> bool:
        """Whether quantizer `name` quantizes one tensor for all images."""
        node = self._nodes[self._nodes[name].inputs[0]]
        return node.kind == "constant" and not node.settings["batched"]

    def is_float(self, name: str) -> bool:
        """Whether node `name` computes in float whatever the mode."""
        return name in self._float

    @torch.no_grad()
    def link_exponents(self) -> None:
        """Tell layers their input's exponent, and clear function tables of ties; call when exponents were fixed."""
        readers = self.graph.consumers()
        for name, layer in self.layers.items():
            sources = [cast(ActivationQuantizer, self.layers[source]) for source in self._sources[name]]
            if isinstance(layer, (WeightedLayer, ExactNorm)) and name not in self._float:
                layer.input_exponent.copy_(sources[0].exponent)  # those behind a concat share one exponent
            elif isinstance(layer, Unary) and sources:
                layer.settle(_code_range(sources), [_code_range([q]) for q in self._rounding(readers[name])])

    @torch.no_grad()
    def clear_means(self) -> None:
        """Shift average pools off rounding ties; call when exponents were fixed, in eval."""
        pools = {n: layer for n, layer in self.layers.items() if isinstance(layer, _MEANS) and self._sources[n]}
        if not pools:
            return
        readers, shapes = self.graph.consumers(), self.shapes()
        for name, layer in pools.items():
            read = cast(ActivationQuantizer, self.layers[self._sources[name][0]])
            written = [q.exponent_number for q in self._rounding(readers[name])]
            _, *size = shapes[self._nodes[name].inputs[0]]
            layer.shift_by(mean_offset(layer.window_sizes(tuple(size)), read.exponent_number, written))

    def _rounding(self, readers: Sequence[Node]) -> list[ActivationQuantizer]:
        """The quantizers among the nodes that read a tensor."""
        return [layer for node in readers if isinstance(layer := self.layers[node.name], ActivationQuantizer)]

    @torch.no_grad()
    def train(self, mode: bool = True) -> Self:
        """As in every module; what leaves training is certified again, since its last step moved the weights on."""
        super().train(mode)
        if not mode and self._behind and self.certify:
            layers = self.weighted()
            folded = {name: layer.folded() for name, layer in layers.items()}
            exponents = {name: layer.weight_exponent for name, layer in layers.items()}
            found = certified_exponents(layers, folded, exponents, reaches(self.graph, self.layers))
            for name, layer in layers.items():
                layer.weight_exponent.copy_(found[name])
        self._behind = self._behind and mode
        return self

    def before_step(self, frozen: bool) -> None:
        """Prepare a step of training: `refresh`, or leave the exponents as they are.

        Args:
            frozen: no exponent may change until training is left; a sum that could pass 2^24 by then still raises its
                channel's.
        """
        if frozen:
            self._behind = self.training
        else:
            self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Recompute all weight exponents from the weights of now (paper 3.1.1: at every iteration)."""
        layers = self.weighted()
        if not layers:
            return
        folded = {name: layer.folded() for name, layer in layers.items()}
        found = weight_exponents(
            # a layer with one exponent in all counts as one channel
            [
                folded[n][0] if layer.per_channel else in_rows(folded[n][0]).reshape(1, -1)
                for n, layer in layers.items()
            ],
            [layer.grid for layer in layers.values()],
            [self.rules.of(layer.grid.bits) for layer in layers.values()],
            per_channel=True,
            sigma_factor=self.sigma_factor,
        )
        exponents = dict(zip(layers, found, strict=True))
        if self.certify:
            exponents = certified_exponents(layers, folded, exponents, reaches(self.graph, self.layers))
        self._behind = self.training
        biases = {name: bias for name, (_, bias) in folded.items() if bias is not None}
        floors = bias_floors(biases, {name: layers[name].input_exponent for name in biases})
        for name, layer in layers.items():
            exponent = exponents[name]
            if name in floors:
                exponent = torch.maximum(exponent, floors[name] if layer.per_channel else floors[name].amax())
            # a channel 2^24 times smaller than its neighbours is dead: fp32 could not add it to them either
            layer.weight_exponent.copy_(torch.maximum(exponent, exponent.amax() - 24))
        for node in self.graph:
            norm = self.layers[node.name] if node.kind == "batch_norm" and node.name not in self._float else None
            if isinstance(norm, QuantizedBatchNorm):
                norm.accumulator_exponent = cast(WeightedLayer, self.layers[node.inputs[0]]).accumulator_exponent
                norm.fit_exponent()


def _sources(graph: Graph) -> dict[str, tuple[str, ...]]:
    """For each node the quantizers whose codes it reads, through nodes that only move codes."""
    behind: dict[str, tuple[str, ...]] = {}  # quantizers whose codes a node's tensor holds
    found: dict[str, tuple[str, ...]] = {}
    for node in graph:
        parts = [behind[name] for name in node.inputs]
        found[node.name] = tuple(dict.fromkeys(q for part in parts for q in part)) if all(parts) else ()
        moved = found[node.name] if node.moves_codes else ()
        behind[node.name] = (node.name,) if node.kind == "quantize" else moved
    return found


def _float_nodes(graph: Graph, sources: Mapping[str, tuple[str, ...]]) -> frozenset[str]:
    """Nodes that compute in float by request, batch norms behind them, and norms of tensors that have no codes."""
    found: set[str] = set()
    for node in graph:
        behind = node.kind == "batch_norm" and node.inputs[0] in found
        without_codes = node.kind not in WEIGHTED | {"quantize", "batch_norm"} and not sources[node.name]
        if node.settings.get("float") or behind or without_codes:
            found.add(node.name)
    return frozenset(found)


def _code_range(quantizers: list[ActivationQuantizer]) -> CodeRange:
    exponent = int(quantizers[0].exponent)
    return CodeRange(exponent, min(q.grid.min_code for q in quantizers), max(q.top_code for q in quantizers))
