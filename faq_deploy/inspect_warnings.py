"""What engines are known to do badly, said before anything is quantized."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from engines.int8_rules import Convolution, no_int8_kernel
from faq_deploy.graph import WEIGHTED, Node
from faq_deploy.inspect_view import NetView, is_depthwise
from faq_deploy.recipe import Recipe

__all__ = ["warnings_about"]

_NAMED: Final = 3  # examples in a sentence
_CURVES: Final = {
    "silu": "SiLU",
    "hardswish": "hard-swish",
    "gelu": "GELU",
    "gelu_tanh": "GELU (tanh)",
    "mish": "Mish",
    "elu": "ELU",
    "selu": "SELU",
    "celu": "CELU",
    "tanh": "tanh",
    "softplus": "softplus",
}
_GATES: Final = frozenset({"sigmoid", "hardsigmoid"})


def warnings_about(view: NetView, recipe: Recipe, *, images_never_negative: bool) -> Iterator[str]:
    """Sentences about a rewritten net, the gravest first.

    Args:
        view: of the net.
        recipe: resolved.
        images_never_negative: preprocessing leaves pixels 0 and up.

    Source: U10, U11, C52; F1, F3.
    """
    if recipe.bits == 4 and recipe.target == "tensorrt":
        yield "4-bit values run in INT8 kernels, no faster than 8-bit ones: TensorRT has no INT4 convolution."
    if images_never_negative:
        yield (
            "the preprocessing leaves pixels 0 and up (mean 0), but images are quantized to signed 8 bits: half of "
            "the codes are never used. Subtract a mean (--mean), or fold it into the first layer."
        )
    yield from _about_convolutions(view, recipe)
    yield from _about_gates(view)
    yield from _about_functions(view, recipe)
    norms = [node for node in view.net.graph if node.kind == "norm"]
    if norms:
        yield (
            f"{_count(norms, 'layer or group norm')}: each computes in float between two quantized tensors, in a fixed "
            "order of IEEE single steps. The codes are the same everywhere, but it costs speed; batch norms cost none."
        )


def _about_convolutions(view: NetView, recipe: Recipe) -> Iterator[str]:
    layers = [node for node in view.net.graph if node.kind in WEIGHTED - {"linear"} and not node.settings.get("affine")]
    depthwise = [node for node in layers if is_depthwise(node, view.weight_shape(node))]
    grouped = [node for node in layers if node.integer("groups") > 1 and node not in depthwise]
    if depthwise:
        text = f"{_count(depthwise, 'depthwise convolution')}: INT8 gains them little speed, since they wait for memory"
        if recipe.target == "tensorrt":
            text += ", and TensorRT may run them in float"
        yield f"{text}."
        if recipe.quantizer.granularity == "tensor":
            yield (
                "one weight exponent per tensor loses much accuracy in depthwise convolutions, whose channels differ "
                "widely: take --set quantizer.granularity=channel."
            )
    awkward = [node for node in grouped if no_int8_kernel(_sizes(view, node)) is not None]
    if awkward and recipe.target == "tensorrt":
        sizes = Counter("x".join(map(str, _per_group(view, node))) for node in awkward)
        yield (
            f"{_count(awkward, 'grouped convolution')} with {', '.join(sizes)} channels per group: "
            "TensorRT has no INT8 kernel for that and computes in float, with the same codes: "
            f"{no_int8_kernel(_sizes(view, awkward[0]))}. --skip {awkward[0].name} leaves one unquantized."
        )
    transposed = [node for node in layers if node.kind == "conv_transpose"]
    if transposed:
        yield (
            f"{_count(transposed, 'transposed convolution')}: weights have one exponent for all channels, since "
            "engines disagree about their channel axis."
        )


def _about_gates(view: NetView) -> Iterator[str]:
    gates = []
    for node in view.net.graph:
        if node.kind == "mul" and len(node.inputs) == 2:
            shaped = [view.shapes[name] for name in node.inputs]
            small = next((i for i, shape in enumerate(shaped) if len(shape) == 3 and shape[1:] == (1, 1)), None)
            if small is not None and shaped[small] != shaped[1 - small]:
                gates.append((node, _function_behind(view.nodes, node.inputs[small])))
    squeezed = [node for node, function in gates if function in _GATES]
    if squeezed:
        yield (
            f"{_count(squeezed, 'squeeze-and-excitation block')}: the gate is a product of two 8-bit tensors outside "
            "of INT8 kernels, exact but slow, and the pooled branch in front of it is quantized too."
        )


def _about_functions(view: NetView, recipe: Recipe) -> Iterator[str]:
    found = [node for node in view.net.graph if node.kind == "unary" and node.settings["function"] in _CURVES]
    if not found:
        return
    names = sorted({_CURVES[node.text("function")] for node in found})
    text = (
        f"{_count(found, 'activation function')} {', '.join(names)}: each becomes a table of at most 256 values over "
        "8-bit codes: exact everywhere, but the tensor has 8 bits on both sides, signed"
    )
    if recipe.bits == 4:
        text += ", in a 4-bit net too"
    yield f"{text}. ReLU is cheaper: it fuses with the convolution before it."


def _function_behind(nodes: Mapping[str, Node], name: str) -> str:
    """The function whose codes a tensor holds."""
    node = nodes[name]
    while node.kind == "quantize" or node.moves_codes:
        node = nodes[node.inputs[0]]
    return str(node.settings.get("function", ""))


def _sizes(view: NetView, node: Node) -> Convolution:
    first, second = _per_group(view, node)
    groups = node.integer("groups")
    return Convolution(first * groups, second * groups, groups, transposed=node.kind == "conv_transpose")


def _per_group(view: NetView, node: Node) -> tuple[int, int]:
    """Input and output channels of one group."""
    groups = node.integer("groups")
    first, second, *_ = view.weight_shape(node)
    return (first // groups, second) if node.kind == "conv_transpose" else (second, first // groups)


def _count(nodes: Sequence[Node], what: str) -> str:
    names = ", ".join(node.name for node in nodes[:_NAMED])
    more = ", ..." if len(nodes) > _NAMED else ""
    return f"{len(nodes)} {what}{'s' if len(nodes) > 1 else ''} ({names}{more})"
