"""Two evaluations side by side: accuracy, answers, exponents, recipes, sizes and latencies."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from faq_deploy.comparison import comparison_of, model_name
from faq_deploy.report_model import Report, Stage
from faq_deploy.report_parts import Comparison
from faq_deploy.statistics import Interval, independent_drop, pairs_of
from faq_deploy.stored_report import StoredReport

__all__ = ["Difference", "GridChange", "Row", "difference", "sentences"]

_QUANTIZED = "PyTorch quantized"


@dataclass(frozen=True)
class Row:
    """One figure in both; None where one has none."""

    name: str
    first: float | None
    second: float | None


@dataclass(frozen=True)
class GridChange:
    """A tensor whose grid is another one; each in words such as `8 bits, l -7 to -5`, empty where it is in one only."""

    tensor: str
    kind: str
    first: str
    second: str


@dataclass(frozen=True)
class Difference:
    """What two reports differ in.

    Attributes:
        first, second: their run folders' names.
        same_model: whether they are of one architecture.
        same_network: whether they are of one model.onnx.
        same_images: whether the same images were run, in the same order.
        top1: percent, by stage; of stages that ran all images.
        drop: points of top-1 that the second PyTorch quantized loses, with the interval of the true drop.
        comparison: of PyTorch quantized image by image; None without the same images and their answers.
        grids: tensors whose bits or exponents changed, in the order of the graph.
        tensors: that both have.
        bytes: of engines.
        latency_ms: an image, by stage.
        recipe: key, first value, second value.
    """

    first: str
    second: str
    same_model: bool
    same_network: bool
    same_images: bool
    top1: list[Row]
    drop: float | None
    interval: Interval | None
    comparison: Comparison | None
    grids: list[GridChange]
    tensors: int
    bytes: list[Row]
    latency_ms: list[Row]
    recipe: list[tuple[str, object, object]]


def difference(first: StoredReport, second: StoredReport) -> Difference:
    """Compare two reports.

    Args:
        first: the earlier one, say.
        second: the later one.
    """
    a, b = first.report, second.report
    same_images = bool(a.images_sha256) and a.images_sha256 == b.images_sha256
    same_network = bool(a.onnx_sha256) and a.onnx_sha256 == b.onnx_sha256
    comparison = _comparison(first, second, certain=same_network) if same_images else None
    before, after = _whole(a).get(_QUANTIZED), _whole(b).get(_QUANTIZED)
    drop, interval = _drop(before, after)
    if comparison is not None:
        drop, interval = comparison.drop, Interval(comparison.low, comparison.high)
    grids = list(_grids(a, b))
    return Difference(
        first=a.run,
        second=b.run,
        same_model=model_name(a.model) == model_name(b.model),
        same_network=same_network,
        same_images=same_images,
        top1=_rows({n: s.top1 for n, s in _whole(a).items()}, {n: s.top1 for n, s in _whole(b).items()}),
        drop=drop,
        interval=interval,
        comparison=comparison,
        grids=grids,
        tensors=len({(x.name, x.kind) for x in a.layers} & {(x.name, x.kind) for x in b.layers}),
        bytes=_rows({e.name: e.bytes for e in a.engines}, {e.name: e.bytes for e in b.engines}),
        latency_ms=_rows({s.name: s.latency_ms for s in a.stages}, {s.name: s.latency_ms for s in b.stages}),
        recipe=[
            (key, a.recipe.get(key), b.recipe.get(key))
            for key in dict.fromkeys([*a.recipe, *b.recipe])
            if a.recipe.get(key) != b.recipe.get(key)
        ],
    )


def sentences(found: Difference) -> Iterator[str]:
    """What the figures say, most important first."""
    if not found.same_model:
        yield "These are two models: only their figures are compared."
    elif found.same_network:
        yield "Both are of the same model.onnx."
    pair = found.comparison
    if pair is not None:
        yield (
            f"The same {pair.images:,} images: {pair.lost:,} that {found.first} has right are lost in {found.second}, "
            f"{pair.gained:,} are gained, {pair.flips:,} are answered otherwise (exact McNemar test: p = "
            f"{pair.p_value:.3g})."
        )
    elif not found.same_images:
        yield "The images are not the same, so that answers can't be compared one by one."
    else:
        yield "Answers can't be compared one by one: predictions.csv does not lie beside both reports."
    if found.drop is not None and found.interval is not None and not found.same_network:
        low, high = found.interval
        yield (
            f"{found.second} loses {found.drop:.2f} points of top-1 against {found.first}; the true drop lies between "
            f"{low:.2f} and {high:.2f} (95 %)."
        )
    if found.same_model:
        yield f"{len(found.grids):,} of {found.tensors:,} tensors have another grid."


def _comparison(first: StoredReport, second: StoredReport, *, certain: bool) -> Comparison | None:
    if first.predictions is None or second.predictions is None:
        return None
    a, b = (stored.predictions.answers.get(_QUANTIZED) for stored in (first, second) if stored.predictions)
    if a is None or b is None or len(a) != len(b) or not len(a):
        return None
    pairs = pairs_of(first.predictions.labels, a, b)
    return comparison_of(first.report.run, second.report.run, pairs, certain=certain and pairs.flips == 0)


def _whole(report: Report) -> dict[str, Stage]:
    """Stages that ran all images, by name."""
    return {s.name: s for s in report.stages if s.top1 is not None and s.images == report.images}


def _drop(before: Stage | None, after: Stage | None) -> tuple[float | None, Interval | None]:
    if before is None or after is None or before.top1 is None or after.top1 is None:
        return None, None
    drop = before.top1 - after.top1
    if before.top1_interval is None or after.top1_interval is None:
        return drop, None
    around = Interval(*before.top1_interval), Interval(*after.top1_interval)
    return drop, independent_drop(before.top1, after.top1, *around)


def _grids(a: Report, b: Report) -> Iterator[GridChange]:
    first = {(layer.name, layer.kind): layer for layer in a.layers}
    second = {(layer.name, layer.kind): layer for layer in b.layers}
    for name, kind in dict.fromkeys([*first, *second]):
        words = []
        for found in (first.get((name, kind)), second.get((name, kind))):
            if found is None:
                words.append("")
                continue
            low, high = found.exponent_min, found.exponent_max
            signs = "" if kind == "weight" else (" signed" if found.signed else " unsigned")
            words.append(f"{found.bits}{signs} bits, l {low}" + (f" to {high}" if high != low else ""))
        if words[0] != words[1]:
            yield GridChange(name, kind, *words)


def _rows(first: Mapping[str, float | None], second: Mapping[str, float | None]) -> list[Row]:
    return [Row(name, first.get(name), second.get(name)) for name in dict.fromkeys([*first, *second])]
