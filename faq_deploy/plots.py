"""The report's plots, as SVG text that takes its colours from the page around it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from faq_deploy.report_model import Epoch, Layer, Stage
from faq_deploy.svg import FIRST, INK, SECOND, STYLE, WIDTH, named_rows, short, svg_element, whole_numbers

__all__ = ["MOST_RANGES", "accuracy_ladder", "latency", "ranges", "training_curves"]

MOST_RANGES = 100  # rows in the ranges plot; an Inception has 95, and a page should stay readable


def accuracy_ladder(stages: Sequence[Stage]) -> str:
    """Draw top-1 of each stage as a dot, float at the top; a line shows where PyTorch quantized lies.

    Args:
        stages: in the order of the pipeline; skipped ones keep their row and say so.

    Returns:
        An `<svg>` element.
    """
    whole = max((stage.images for stage in stages), default=0)
    with mpl.rc_context(STYLE):
        figure, axes = named_rows(len(stages), [stage.name for stage in stages])
        found = []
        for row, stage in enumerate(stages):
            top1 = stage.top1
            if top1 is None or stage.images < whole:  # some of the images are no fair sample
                said = "skipped" if top1 is None else f"ran {stage.images:,} images only"
                axes.text(0.01, row, said, transform=axes.get_yaxis_transform(), va="center", style="italic")
                continue
            found += [top1, *(stage.top1_interval or ())]
            if stage.top1_interval is not None:
                axes.hlines(row, *stage.top1_interval, color=FIRST, linewidth=1)
            axes.plot(top1, row, "o" if stage.kind == "float" else "D", color=FIRST, markersize=7)
            axes.annotate(f"{top1:.2f} %", (top1, row), (9, 5), textcoords="offset points", va="center")
            if stage.kind == "quantized":
                axes.axvline(top1, color=SECOND, linestyle="--", linewidth=1, zorder=0)
        axes.set_xlim(*_percent_limits(found))
        axes.set_xlabel("top-1, %")
        return svg_element(figure, "ladder", "Top-1 accuracy of each stage")


def latency(stages: Sequence[Stage]) -> str:
    """Draw each stage's milliseconds an image: the median batch, and a line to where nine of ten batches end.

    Args:
        stages: in the order of the pipeline, at least one that ran.

    Returns:
        An `<svg>` element.
    """
    shown = [(stage.name, stage.latency_ms, stage.latency_p90_ms) for stage in stages if stage.latency_ms is not None]
    with mpl.rc_context(STYLE):
        figure, axes = named_rows(len(shown), [name for name, _, _ in shown])
        for row, (_, median, p90) in enumerate(shown):
            end = max(median, p90 or median)
            axes.hlines(row, median, end, color=SECOND, linewidth=3)
            axes.plot(median, row, "D", color=FIRST, markersize=7)
            axes.annotate(f"{median:.3g} ms", (end, row), (9, 0), textcoords="offset points", va="center")
        axes.set_xlim(0, 1.25 * max(max(median, p90 or median) for _, median, p90 in shown))
        axes.set_xlabel("milliseconds an image")
        return svg_element(figure, "latency", "Milliseconds an image in each stage")


def training_curves(epochs: Sequence[Epoch]) -> str:
    """Draw loss and top-1 over the epochs, side by side.

    Args:
        epochs: at least one.

    Returns:
        An `<svg>` element.
    """
    with mpl.rc_context(STYLE | {"axes.grid.axis": "both"}):
        figure = Figure(figsize=(WIDTH, 2.9), layout="constrained")
        left, right = figure.subplots(1, 2)
        measured = [(e.epoch, e.top1) for e in epochs if e.top1 is not None]
        losses = [(e.epoch, e.loss) for e in epochs if math.isfinite(e.loss)]
        _curve(left, losses, "training loss", SECOND, "s--")
        left.set_ylim(0, 1.1 * max([loss for _, loss in losses if loss > 0], default=1.0))  # a wiggle looks like one
        _curve(right, measured, "held-out top-1, %", FIRST, "o-")
        low, high = _percent_limits([top1 for _, top1 in measured])
        right.set_ylim(low, high)
        return svg_element(figure, "training", "Training loss and held-out accuracy by epoch")


def ranges(layers: Sequence[Layer]) -> str:
    """Draw each activation's calibrated range y against ymax, the power of two it was rounded up to.

    Args:
        layers: activations with `y` and `ymax`, at least one; only the first `MOST_RANGES` are drawn.

    Returns:
        An `<svg>` element.
    """
    shown = [(layer, layer.y, layer.ymax) for layer in layers if layer.y and layer.ymax][:MOST_RANGES]
    with mpl.rc_context(STYLE):
        figure, axes = named_rows(len(shown), [short(layer.name) for layer, _, _ in shown], extra=0.35)
        rows = range(len(shown))
        axes.hlines(rows, [y for _, y, _ in shown], [ymax for _, _, ymax in shown], color=SECOND, linewidth=3)
        axes.plot([y for _, y, _ in shown], rows, "o", color=FIRST, markersize=6, label="y, as calibrated")
        axes.plot(
            [ymax for _, _, ymax in shown], rows, "|", color=INK, markersize=11, mew=2, label="ymax, a power of two"
        )
        axes.set_xscale("log", base=2)
        low = math.floor(math.log2(min(y for _, y, _ in shown)))
        high = math.ceil(math.log2(max(ymax for _, _, ymax in shown)))
        axes.set_xlim(2.0 ** (low - 0.25), 2.0 ** (high + 0.25))
        every = max(1, -(-(high - low) // 12))
        axes.set_xticks([2.0**e for e in range(low, high + 1, every)])
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _power_of_two(value)))
        axes.minorticks_off()
        axes.tick_params(axis="x", labeltop=len(shown) > 25)  # a tall picture needs its axis at both ends
        figure.legend(loc="outside upper left", ncols=2)
        return svg_element(figure, "ranges", "Range of each activation and the power of two above it")


def _curve(axes: Axes, points: Sequence[tuple[int, float]], label: str, color: str, style: str) -> None:
    axes.set_title(label, loc="left", fontsize=10)
    whole_numbers(axes, "epoch")
    if points:
        axes.plot(
            [x for x, _ in points], [y for _, y in points], style, color=color, markersize=4 if len(points) > 1 else 8
        )
    else:
        axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", style="italic")


def _percent_limits(values: Sequence[float]) -> tuple[float, float]:
    """Limits around the values, at least one point wide, with room for a label on the right."""
    low, high = (min(values), max(values)) if values else (0.0, 100.0)
    width = max(high - low, 1.0)
    return low - 0.15 * width, high + 0.3 * width


def _power_of_two(value: float) -> str:
    """`8`, `1/4` or, where that gets long, `2^-7`."""
    exponent = round(math.log2(value))
    if abs(exponent) > 4:
        return f"2^{exponent}"
    return str(2**exponent) if exponent >= 0 else f"1/{2**-exponent}"
