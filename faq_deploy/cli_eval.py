"""The options of `eval`, and the groups in which its --help shows them."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import rich_click as click

from faq_deploy import completion
from faq_deploy.cli_options import on_bad_image_option, options

__all__ = ["GATE_OPTIONS", "eval_options"]

_FILE: Final = click.Path(path_type=Path)

# the keys of a gate file, and the defaults of those that have one
GATE_OPTIONS: Final = {
    "max_drop": "0.1",
    "drop_against": "quantized",
    "max_flips": "0",
    "max_float_drop": "",
    "min_top1": "",
    "max_fall": "what luck explains, and 5 at least",
    "max_class_drop": "",
    "max_metric_drop": "",
    "max_latency_ratio": "",
    "min_int8_share": "",
    "max_engine_bytes": "",
    "required_runtimes": "",
    "max_regression": "0.5",
    "max_latency_growth": "",
    "max_bytes_growth": "",
    "allow_skip": "",
    "allow_undecided": "",
}


def _default(key: str) -> str | bool:
    return GATE_OPTIONS[key] or False


gate_options = options(
    click.option("--gates", type=_FILE, metavar="FILE", help="A gate file (TOML); flags go before it."),
    click.option(
        "--max-drop",
        type=float,
        help="Points of top-1 that a stage may lose against PyTorch quantized.",
        show_default=_default("max_drop"),
    ),
    click.option(
        "--drop-against",
        type=click.Choice(["quantized", "float"]),
        help="The stage that --max-drop compares with.",
        show_default=_default("drop_against"),
    ),
    click.option(
        "--max-flips",
        type=click.IntRange(0),
        help="Images whose top-1 may differ from PyTorch quantized.",
        show_default=_default("max_flips"),
    ),
    click.option("--max-float-drop", type=float, help="Points that PyTorch quantized may lose against PyTorch float."),
    click.option("--min-top1", type=click.FloatRange(0, 100), help="Percent that PyTorch quantized must reach."),
    click.option(
        "--max-fall",
        type=float,
        help="Points that PyTorch quantized may lie under what quantize measured.",
        show_default=_default("max_fall"),
    ),
    click.option("--max-class-drop", type=float, help="Points that no class may lose more than against float."),
    click.option("--max-metric-drop", type=click.FloatRange(0), help="What --metric may lose, in its own unit."),
    click.option("--max-latency-ratio", type=float, help="Of an engine's time for an image and PyTorch float's."),
    click.option("--min-int8-share", type=float, help="Share of an engine's multiply-adds in INT8, from 0 to 1."),
    click.option("--max-engine-bytes", type=click.IntRange(1), help="Size of an engine file."),
    click.option(
        "--require-runtime",
        "required_runtimes",
        multiple=True,
        type=click.Choice(["onnxruntime", "tensorrt", "tensorrt-rtx"]),
        help="One of its engines must have run; repeatable.",
    ),
    click.option("--allow-skip", is_flag=True, help="Pass although no engine was built, or one can't run here."),
    click.option(
        "--allow-undecided", is_flag=True, help="Pass although so few images can't tell a drop from its limit."
    ),
)

baseline_options = options(
    click.option("--baseline", type=_FILE, metavar="FILE", help="A report.json to compare with, or its run folder."),
    click.option(
        "--max-regression",
        type=float,
        help="Points that PyTorch quantized may lose against the baseline's.",
        show_default=_default("max_regression"),
    ),
    click.option("--max-latency-growth", type=float, help="Ratio of an engine's time and the baseline's."),
    click.option("--max-bytes-growth", type=float, help="Ratio of an engine's bytes and the baseline's."),
)

eval_options = options(
    click.option("--bundle", type=_FILE, help="Judge a bundle instead of a run; needs no torch."),
    click.option(
        "--data",
        shell_complete=completion.data_places,
        help="The same data in another place; with --bundle, a folder of images.",
    ),
    click.option(
        "--engine",
        "engines",
        shell_complete=completion.engines,
        multiple=True,
        help="Judge only these engines; repeatable.",
        show_default="all that were built",
    ),
    click.option("--samples", metavar="FILE.py:NAME", help="Of an ONNX file: yields batches of (images, targets)."),
    click.option("--float-model", metavar="FILE.py:NAME", help="Its float net, for --metric."),
    click.option("--metric", metavar="METRIC", help="Judge by this too: top-K, mean-iou or FILE.py:NAME."),
    gate_options,
    baseline_options,
    click.option("--batch-size", type=click.IntRange(1), default=32, show_default=True, help="Images a batch."),
    click.option(
        "--code-images",
        type=click.IntRange(0),
        default=64,
        show_default=True,
        help="Images whose integer codes are compared.",
    ),
    click.option(
        "--reference-images",
        type=click.IntRange(1),
        default=64,
        show_default=True,
        help="Images that the NumPy integer reference runs.",
    ),
    on_bad_image_option,
    click.option("--junit", type=_FILE, metavar="FILE", help="Write JUnit XML too: a test case a gate."),
    click.option("--markdown", type=_FILE, metavar="FILE", help="Write a summary for a pull request too."),
    click.option("--html", type=_FILE, metavar="FILE", help="Of an ONNX file: write its report as a page."),
    click.option("--json", "as_json", is_flag=True, help="Print the report as JSON."),
)

_GROUPS: Final = {
    "Images": (
        "--data",
        "--engine",
        "--bundle",
        "--samples",
        "--float-model",
        "--metric",
        "--batch-size",
        "--code-images",
        "--reference-images",
        "--on-bad-image",
    ),
    "Gates": (
        *("--gates", "--max-drop", "--drop-against", "--max-flips", "--max-float-drop", "--min-top1", "--max-fall"),
        *("--max-class-drop", "--max-metric-drop", "--max-latency-ratio", "--min-int8-share"),
        *("--max-engine-bytes", "--require-runtime"),
        *("--allow-skip", "--allow-undecided"),
    ),
    "Against an earlier report": ("--baseline", "--max-regression", "--max-latency-growth", "--max-bytes-growth"),
    "Output": ("--junit", "--markdown", "--html", "--json", "--help"),
}
click.rich_click.OPTION_GROUPS["faq-deploy eval"] = [
    {"name": name, "options": list(names)} for name, names in _GROUPS.items()
]
