"""The pictures of `analyze`, as SVG files that stand alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from faq_deploy.code_occupancy import Occupancy
from faq_deploy.svg import FIRST, INK, SECOND, STYLE, WIDTH, svg_file, whole_numbers

__all__ = ["WIDTH_COLOURS", "exponents_plot", "noise_plot", "similarity_plot"]

# By weight width, cold to warm as noise grows; each stands out from white and from the dark page.
WIDTH_COLOURS: Final = {
    8: "#3f7fd6",
    7: "#2b8cb4",
    6: "#23907f",
    5: "#6b8f2a",
    4: "#b37d14",
    3: "#d9653b",
    2: "#d2446a",
}
_MARKERS: Final = {8: "o", 7: "v", 6: "s", 5: "^", 4: "D", 3: "P", 2: "X"}

ByWidth = Mapping[int, Mapping[str, float]]


def noise_plot(gradients: ByWidth, batches: Mapping[str, float], steps: ByWidth, floating: Mapping[str, float]) -> str:
    """Draw cosines over the layers, a line a weight width, as the paper's Fig. 1 does.

    Args:
        gradients: between gradients with quantized and with float weights, by width and layer; at least one width.
        batches: between gradients of two batches; may be empty.
        steps: between the step called for and the steps taken; may be empty.
        floating: the same for weights that are not quantized; empty where `steps` is.

    Returns:
        An SVG file.
    """
    with mpl.rc_context(STYLE | {"axes.grid.axis": "both"}):
        figure = Figure(figsize=(WIDTH, 3.6 if not steps else 6.6), layout="constrained")
        upper, *lower = figure.subplots(2 if steps else 1, 1, squeeze=False)[:, 0]
        _lines(upper, gradients, "gradient: quantized against float weights, cosine")
        _reference(upper, batches, "float, another batch", ":")
        for axes in lower:
            _lines(axes, steps, "step called for against steps taken (paper, Fig. 1), cosine")
            _reference(axes, floating, "float", "--")
        handles = {line.get_label(): line for axes in (upper, *lower) for line in axes.get_lines()}
        figure.legend(list(handles.values()), list(handles), loc="outside right upper")
        return svg_file(figure, "Gradient noise of each layer by weight width")


def similarity_plot(layers: Mapping[str, float], used: Mapping[str, float], epochs: Mapping[int, float]) -> str:
    """Draw the cosine between float and fine-tuned weights over the layers, and of the whole net over the epochs.

    Args:
        layers: mean over a layer's neurons, of the float copies.
        used: the same of the quantized weights.
        epochs: of the whole net, by epoch from 1; may be empty.

    Returns:
        An SVG file.
    """
    with mpl.rc_context(STYLE | {"axes.grid.axis": "both"}):
        figure = Figure(figsize=(WIDTH, 3.2), layout="constrained")
        left, right = figure.subplots(1, 2)
        left.set_title("float against fine-tuned weights, cosine", loc="left", fontsize=10)
        numbers = range(1, len(layers) + 1)
        left.plot(numbers, list(layers.values()), "o", color=FIRST, markersize=5, label="float copies")
        left.plot(numbers, list(used.values()), "D", color=SECOND, markersize=4, label="quantized")
        whole_numbers(left, "layer")
        left.legend()
        right.set_title("whole net, cosine", loc="left", fontsize=10)
        _by_epoch(right, epochs)
        return svg_file(figure, "Closeness of the fine-tuned weights to the float ones")


def exponents_plot(
    weights: Mapping[int, int],
    activations: Mapping[int, int],
    occupancies: Sequence[tuple[str, Sequence[Occupancy]]],
    flips: Mapping[int, int],
) -> str:
    """Draw how many exponents there are of each value, how full the codes are, and how many exponents changed.

    Args:
        weights, activations: count by exponent.
        occupancies: groups of tensors with their names, at most two.
        flips: weight exponents that changed, by epoch from 1; may be empty.

    Returns:
        An SVG file.
    """
    with mpl.rc_context(STYLE | {"axes.grid.axis": "y"}):
        figure = Figure(figsize=(WIDTH, 5.6), layout="constrained")
        ((one, two), (three, four)) = figure.subplots(2, 2)
        for axes, counts, title in ((one, weights, "weight exponents"), (two, activations, "activation exponents")):
            axes.bar(list(counts), list(counts.values()), color=FIRST)
            axes.set_title(title, loc="left", fontsize=10)
            whole_numbers(axes, "l, the step is 2^l")
            axes.yaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        three.set_title("entropy of the codes, share of their bits", loc="left", fontsize=10)
        for (name, records), style, colour in zip(occupancies, ("o", "D"), (FIRST, SECOND), strict=False):
            shares = [record.entropy / record.bits for record in records]
            three.plot(range(1, len(shares) + 1), shares, style, color=colour, markersize=4, label=name)
        three.set_ylim(0, 1.05)
        whole_numbers(three, "tensor")
        three.legend(loc="lower right")
        four.set_title("weight exponents that changed", loc="left", fontsize=10)
        _by_epoch(four, flips)
        if flips:
            four.set_ylim(0, 1.1 * max(1, *flips.values()))
        return svg_file(figure, "Exponents, how full the codes are, and exponents that changed in training")


def _lines(axes: Axes, widths: ByWidth, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=10)
    for bits, layers in widths.items():
        axes.plot(
            range(1, len(layers) + 1),
            list(layers.values()),
            color=WIDTH_COLOURS[bits],
            marker=_MARKERS[bits],
            markersize=5,
            linewidth=1.3,
            label=f"{bits} bits",
        )
    whole_numbers(axes, "layer")


def _reference(axes: Axes, layers: Mapping[str, float], label: str, style: str) -> None:
    if layers:
        axes.plot(range(1, len(layers) + 1), list(layers.values()), style, color=INK, linewidth=1.2, label=label)


def _by_epoch(axes: Axes, values: Mapping[int, float]) -> None:
    if values:
        axes.plot(list(values), list(values.values()), "o-", color=FIRST, markersize=4)
    else:
        axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", style="italic")
    whole_numbers(axes, "epoch")
