"""The verb `inspect`: what quantization would make of a model, layer by layer, before any data is read."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn

from engines.errors import InputError
from faq_deploy.before_torch import require_model
from faq_deploy.build_layers import grid_of
from faq_deploy.capture import choose_outputs
from faq_deploy.graph import WEIGHTED, Node
from faq_deploy.inspect_view import NetView, is_depthwise
from faq_deploy.inspect_warnings import warnings_about
from faq_deploy.models import load_model
from faq_deploy.net import QuantizedNet
from faq_deploy.new_run import QuantizeOptions, make_recipe
from faq_deploy.recipe import Recipe, resolved
from faq_deploy.rewrite import rewrite
from faq_deploy.run_data import preprocessing_for, trained_preprocessing
from faq_deploy.tracing import evaluating, labelled

__all__ = ["FloatRow", "Inspection", "LayerRow", "Share", "inspect_model", "inspect_net", "layer_row"]

# Why a node computes in float between codes although the user did not ask for it.
_FLOAT_KINDS: Final = {
    "norm": "mean and variance of the codes, then IEEE single steps in a fixed order",
    "unary": "a function of 8-bit codes: a table of at most 256 values",
    "prelu": "codes times a slope of its own",
    "mul": "product of two codes: exact, no INT8 kernel",
    "resize": "weighted sums of codes",
    "adaptive_avg_pool": "sums of codes and one division",
    "avg_pool": "sum of codes and one division",
    "global_avg_pool": "sum of codes and one division",
}


@dataclass(frozen=True)
class LayerRow:
    """A convolution or linear layer.

    Attributes:
        name: as in our files.
        kind: in words: `conv`, `depthwise conv`, `grouped conv`, `transposed conv`, `linear`, or `multiply-add`, a
            batch norm or scale with no layer before it.
        weight_shape: of its weight.
        weight_bits: None where the weights stay in float.
        inputs, outputs: bits of the activations that it reads and writes, `s8` or `u7` (signed or not), `float`, or
            `accumulator` where an add takes the sum as it is.
        macs: multiply-adds for one image.
        int8: weights and inputs are codes.
        source: module path, file and line in the user's model.
        why_float: empty if it is quantized.
    """

    name: str
    kind: str
    weight_shape: tuple[int, ...]
    weight_bits: int | None
    inputs: str
    outputs: str
    macs: int
    int8: bool
    source: str
    why_float: str


@dataclass(frozen=True)
class FloatRow:
    """A node without weights that does not run in an INT8 kernel."""

    name: str
    kind: str
    source: str
    why: str


@dataclass(frozen=True)
class Share:
    """So many of so many."""

    int8: int
    all: int


@dataclass(frozen=True)
class Inspection:
    """What would be quantized.

    Attributes:
        model: as named.
        target, bits, cpu: of the recipe.
        input_shape: channels, height, width.
        layers: in the order of the graph.
        floats: what is neither a layer nor in INT8.
        macs: for one image.
        adds, concats: those that engines can run on codes.
        nodes, quantizers: of the quantized graph.
        warnings: sentences for the user.
    """

    model: str
    target: str
    bits: int
    cpu: str
    input_shape: tuple[int, ...]
    layers: tuple[LayerRow, ...]
    floats: tuple[FloatRow, ...]
    macs: Share
    adds: Share
    concats: Share
    nodes: int
    quantizers: int
    warnings: tuple[str, ...]

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return dataclasses.asdict(self)


def inspect_model(options: QuantizeOptions, input_size: tuple[int, int] | None = None) -> Inspection:
    """Load and rewrite a model as `quantize` would, and say what became of it; needs neither data nor weights.

    Args:
        options: of `quantize`; those about data and training don't matter.
        input_size: of the images, height and width in pixels; None takes the crop that the weights want.

    Raises:
        InputError: as in `quantize`: a wrong argument, or a part of the model that can't be quantized (attention, an
            unsupported op), with its place.
        CannotRunHere: a package that the model needs is not installed.
    """
    model = require_model(options.model)
    recipe = resolved(make_recipe(options), model)
    loaded = load_model(
        model,
        options.weights,
        num_classes=options.num_classes,
        allow_random=True,
        prefer_ema=options.prefer_ema,
        seed=recipe.training.seed,
    )
    trained = trained_preprocessing(options.weights) or loaded.preprocessing
    preprocessing = preprocessing_for(options.data, trained)
    shape = preprocessing.input_shape
    if input_size is not None:
        shape = (len(preprocessing.mean), *input_size)
    if shape is None:
        raise InputError("The size of the images is not known.", "pass --input-size, such as 224 or 192x256.")
    example = torch.randn(2, *shape, generator=torch.Generator().manual_seed(recipe.training.seed))
    net = rewrite(loaded.module, example, recipe)
    never_negative = all(mean <= 0 for mean in preprocessing.mean)
    found = inspect_net(net, recipe, model, images_never_negative=never_negative)
    said = _outputs_in_words(loaded.module, example, recipe.layers.output)
    return dataclasses.replace(found, warnings=(*said, *found.warnings))


def _outputs_in_words(module: nn.Module, example: Tensor, wanted: str) -> list[str]:
    with evaluating(module), torch.inference_mode():
        labels = list(labelled(module(example)))
    if len(labels) < 2:
        return []
    (kept,) = choose_outputs(labels, wanted or None)
    return [
        f"the model returns {', '.join(labels)}: {kept} is what this table describes and quantize keeps "
        "(--set layers.output=NAME takes another; quantize: --model-output NAME)."
    ]


def inspect_net(net: QuantizedNet, recipe: Recipe, model: str, *, images_never_negative: bool = False) -> Inspection:
    """What is quantized in a net.

    Args:
        net: rewritten; it need not be calibrated.
        recipe: that it was rewritten by.
        model: its name.
        images_never_negative: preprocessing leaves pixels 0 and up.
    """
    view = NetView(net)
    layers = tuple(layer_row(view, node) for node in net.graph if node.kind in WEIGHTED)
    adds = [node for node in net.graph if node.kind in {"add", "sub"}]
    concats = [node for node in net.graph if node.kind == "cat"]
    return Inspection(
        model=model,
        target=recipe.target,
        bits=recipe.bits,
        cpu=recipe.cpu,
        input_shape=view.shapes[next(node.name for node in net.graph if node.kind == "input")],
        layers=layers,
        floats=tuple(row for row in (_float_row(net, node) for node in net.graph) if row is not None),
        macs=Share(sum(row.macs for row in layers if row.int8), sum(row.macs for row in layers)),
        adds=Share(sum(_adds_codes(view, node, recipe.target) for node in adds), len(adds)),
        concats=Share(sum(bool(net.source_quantizers(node.name)) for node in concats), len(concats)),
        nodes=len(net.graph.nodes),
        quantizers=len(net.quantizers()),
        warnings=tuple(warnings_about(view, recipe, images_never_negative=images_never_negative)),
    )


def layer_row(view: NetView, node: Node) -> LayerRow:
    """The row of a convolution or linear layer."""
    weight, reads = view.weight_shape(node), view.net.source_quantizers(node.name)
    why = "" if reads else "reads a tensor that is kept in float"
    if node.is_float:
        why = "kept in float by --leaf or --skip"
    return LayerRow(
        name=node.name,
        kind=_kind(node, weight),
        weight_shape=weight,
        weight_bits=None if node.is_float else node.integer("weight_bits"),
        inputs=_bits(view, reads),
        outputs=_written(view, node),
        macs=_macs(view, node, weight),
        int8=not why,
        source=node.source,
        why_float=why,
    )


def _kind(node: Node, weight: tuple[int, ...]) -> str:
    if node.kind == "linear":
        return "linear"
    if node.settings.get("affine"):
        return "multiply-add"
    what = "conv" if node.kind == "conv" else "transposed conv"
    if len(weight) != 4:
        what += f" {len(weight) - 2}d"
    if is_depthwise(node, weight):
        return f"depthwise {what}"
    return what if node.integer("groups") == 1 else f"grouped {what}"


def _macs(view: NetView, node: Node, weight: tuple[int, ...]) -> int:
    """Every number that a convolution writes (a transposed one reads) meets all of one filter's weights."""
    met = view.shapes[node.inputs[0] if node.kind == "conv_transpose" else node.name]
    return math.prod(met) * math.prod(weight[1:])


def _bits(view: NetView, quantizers: list[str]) -> str:
    grids = [grid_of(view.nodes[name]) for name in quantizers]
    texts = sorted(f"{'s' if grid.signed else 'u'}{grid.bits}" for grid in grids)
    return "+".join(dict.fromkeys(texts)) or "float"


def _written(view: NetView, node: Node) -> str:
    """What the readers of a layer's sums see."""
    found = view.readers[node.name]
    if len(found) == 1 and found[0].kind == "batch_norm":
        found = view.readers[found[0].name]
    quantizers = [reader.name for reader in found if reader.kind == "quantize"]
    if quantizers and len(quantizers) == len(found):
        return _bits(view, quantizers)
    fused = any(reader.kind in {"add", "sub"} for reader in found)
    return "accumulator" if fused else "float"


def _adds_codes(view: NetView, node: Node, target: str) -> bool:
    """Whether an engine runs an add on codes: for GPUs, inside the convolution whose accumulator is one of them."""
    free = [name for name in dict.fromkeys(node.inputs) if not view.holds_codes(name)]
    if target == "onnxruntime":
        behind = view.readers[node.name]
        return not free and bool(behind) and all(reader.kind == "quantize" for reader in behind)
    layers = WEIGHTED | {"batch_norm"}
    return len(free) <= 1 and all(view.nodes[n].kind in layers and not view.net.is_float(n) for n in free)


def _float_row(net: QuantizedNet, node: Node) -> FloatRow | None:
    if node.kind in WEIGHTED | {"input", "constant", "quantize", "dropout", "stochastic_depth"}:
        return None
    if node.is_float:
        return FloatRow(node.name, node.kind, node.source, "kept in float by --leaf")
    if node.kind in _FLOAT_KINDS and not node.moves_codes:
        said = str(node.settings.get("function", node.kind))
        return FloatRow(node.name, said, node.source, _FLOAT_KINDS[node.kind])
    if node.kind not in {"add", "sub", "batch_norm", "relu"} and net.is_float(node.name):
        return FloatRow(node.name, node.kind, node.source, "its input is not quantized")
    return None
