"""docs/performance.md and its plots, from the JSON files in results/.

python benchmarks/performance_page.py
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # else benchmarks/calibration.py hides the package

from benchmarks import performance_texts as texts
from benchmarks.common import Row, markdown
from benchmarks.engines import NETWORKS
from engines.files import write_atomic
from engines.gpu_limits import GPUS

__all__ = ["PAGE", "PLOTS", "RESULTS", "main", "page"]

RESULTS: Final = Path(__file__).resolve().parent / "results"
PAGE: Final = Path(__file__).resolve().parents[1] / "docs" / "performance.md"
_PLOTS: Final = PAGE.parent / "plots"
_NOT_RUN: Final = "Not run.\n"
_SHOWN: Final = ("T4", "L4", "GeForce RTX 4090", "AGX Orin 64GB", "Orin NX 16GB")


def page(results: Path) -> str:
    """The text of docs/performance.md.

    Args:
        results: folder of the JSON files; a section whose file is missing says that it was not run.

    Returns:
        Markdown.
    """
    parts = [
        texts.HEAD,
        texts.ROOFLINE,
        _rooflines(results / "rooflines.json"),
        texts.PEAKS,
        _peaks(),
        texts.DEPTH,
        _published(results / "scaling-depth.json"),
        *_growth(results / "scaling-depth.json", "nodes"),
        texts.IMAGES,
        _published(results / "scaling-images.json"),
        *_growth(results / "scaling-images.json", "images"),
        texts.DECODERS,
        _published(results / "decoders.json"),
        texts.DECODERS_VERDICT,
        texts.START,
        _published(results / "first-progress.json"),
        texts.HELP,
        _published(results / "startup.json"),
        texts.GUARD,
        _guarded(results / "check.json"),
        texts.INFERENCE,
        _inference(results / "inference"),
        texts.INFERENCE_VERDICT,
        texts.OTHERS,
        _published(results / "peers.json"),
        _published(results / "peers-mobilenet.json"),
    ]
    return "\n".join(parts)


def main() -> None:
    """Write the page and its plots."""
    write_atomic(PAGE, page(RESULTS))
    for name, draw in PLOTS.items():
        source = RESULTS / f"{name}.json"
        if source.is_file():
            write_atomic(_PLOTS / f"{name}.svg", draw(_rows(source)))


def _published(path: Path) -> str:
    """A table as `publish` wrote it, with its machine; or the list of rows alone."""
    if not path.is_file():
        return _NOT_RUN
    record = json.loads(path.read_text())
    if isinstance(record, list):
        return markdown(record)
    machine = record["machine"]
    where = f"{machine['cpu']}, {machine['cores']} cores, load before {machine['load']:g}, commit {machine['commit']}"
    return f"{record['title']}; {where}:\n\n{markdown(record['rows'])}"


def _growth(path: Path, by: str) -> list[str]:
    """By how much each figure grows from the second row to the last; the first is mostly what does not grow."""
    if not path.is_file():
        return []
    _, first, *_, last = _rows(path)
    times = [f"{column} {last[column] / first[column]:.1f}" for column in first if column.endswith((", s", "MiB"))]
    grown = f"From {first[by]:,} to {last[by]:,} {by}, {last[by] / first[by]:.1f} times as many"
    return [f"{grown}, figures grow so many times: {'; '.join(times).replace(', s ', ' ').replace(', MiB ', ' ')}.\n"]


def _rows(path: Path) -> list[Mapping[str, Any]]:
    rows: list[Mapping[str, Any]] = json.loads(path.read_text())["rows"]
    return rows


def _rooflines(path: Path) -> str:
    if not path.is_file():
        return _NOT_RUN
    known: Mapping[str, Mapping[str, float]] = json.loads(path.read_text())
    rows: list[Row] = [
        {
            "network": network,
            "MACs an image, G": found["macs"] / 1e9,
            "in INT8, %": 100 * found["int8_macs"] / found["macs"],
            "weights, MB": found["weight_bytes"] / 1e6,
            "activations an image, MB": found["activation_bytes"] / 1e6,
            **{f"{gpu}, ms a batch of 1 / 32": _least(found, gpu) for gpu in _SHOWN},
        }
        for network, found in sorted(known.items(), key=lambda item: NETWORKS.index(item[0]))
    ]
    return markdown(rows)


def _least(found: Mapping[str, float], gpu: str) -> str:
    one, many, half = (found[f"{gpu}, {what}"] for what in ("int8, 1", "int8, 32", "fp16, 32"))
    return f"{one:.3g} / {many:.3g} ({half / many:.2f} x)"


def _peaks() -> str:
    rows: list[Row] = [
        {
            "GPU": gpu.name,
            "SM": gpu.sm,
            "INT8, TOPS": f"{gpu.int8:g}",
            "FP16, TFLOPS": f"{gpu.fp16:g}",
            "FP32 or TF32, TFLOPS": f"{gpu.fp32:g}",
            "GB/s": f"{gpu.bandwidth:g}",
            "source": gpu.source,
        }
        for gpu in GPUS
    ]
    return markdown(rows)


def _guarded(path: Path) -> str:
    if not path.is_file():
        return _NOT_RUN
    kept: Mapping[str, Mapping[str, Mapping[str, float]]] = json.loads(path.read_text())
    rows: list[Row] = [
        {"processor": cpu, "benchmark": f"`{script}`", "row": name, "ratio kept": ratio}
        for cpu, scripts in kept.items()
        for script, ratios in scripts.items()
        for name, ratio in ratios.items()
    ]
    return markdown(rows)


def _inference(folder: Path) -> str:
    """A row a network."""
    rows: list[Row] = []
    for path in sorted(folder.glob("*.json")):
        found = {row["file"]: row for row in json.loads(path.read_text())["rows"]}
        any_cpu, vnni = found["ours, target onnxruntime"], found["ours, target onnxruntime, cpu vnni"]
        own = found["onnxruntime's quantize_static"]
        rows.append(
            {
                "network": f"`{path.stem}`",
                "fp32, images/s": found["fp32"]["images/s"],
                "onnxruntime's own, by fp32": own["by fp32"],
                "ours, any CPU, by fp32": any_cpu["by fp32"],
                "ours, `--cpu vnni`, by fp32": vnni["by fp32"],
                "ours by onnxruntime's own, any CPU": any_cpu["by onnxruntime's own"],
                "with `--cpu vnni`": vnni["by onnxruntime's own"],
                "logits that differ from PyTorch's": vnni["logits differ from PyTorch's by"],
            }
        )
    return markdown(rows) if rows else _NOT_RUN


def _depth_plot(rows: Sequence[Mapping[str, Any]]) -> str:
    stages = [column for column in rows[0] if column.endswith(", s")]
    lines = {stage.removesuffix(", s"): [row[stage] for row in rows] for stage in stages}
    return _plot([row["nodes"] for row in rows], lines, "nodes", "CPU seconds", "Cost of each stage by depth")


def _images_plot(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = {column: [row[column] for row in rows] for column in ("CPU, s", "peak, MiB")}
    return _plot([row["images"] for row in rows], lines, "images", "", "CPU seconds and memory of eval by images")


def _plot(x: Sequence[float], lines: Mapping[str, Sequence[float]], across: str, up: str, label: str) -> str:
    """Lines on two logarithmic axes, with a dotted line from the first one's start that grows as `x` does."""
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, NullFormatter

    from faq_deploy.svg import INK, STYLE, WIDTH, svg_file

    with mpl.rc_context(STYLE | {"axes.grid.axis": "both"}):
        figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
        axes = figure.subplots()
        for (name, values), colour, marker in zip(lines.items(), _COLOURS, _MARKERS, strict=False):
            axes.plot(x, values, color=colour, marker=marker, markersize=4, label=name)
        linear = [next(iter(lines.values()))[0] * value / x[0] for value in x]
        axes.plot(x, linear, color=INK, linestyle=":", label="linear")
        axes.set_xscale("log")
        axes.set_yscale("log")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.set_minor_formatter(NullFormatter())
        axes.set_xlabel(across)
        axes.set_ylabel(up)
        figure.legend(loc="outside right upper")
        return svg_file(figure, label)


_COLOURS: Final = ("#3f7fd6", "#23907f", "#d9653b", "#b37d14", "#d2446a")
_MARKERS: Final = ("o", "s", "^", "D", "v")
PLOTS: Final[Mapping[str, Callable[[Sequence[Mapping[str, Any]]], str]]] = {
    "scaling-depth": _depth_plot,
    "scaling-images": _images_plot,
}


if __name__ == "__main__":
    main()
