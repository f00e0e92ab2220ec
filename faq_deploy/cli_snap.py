"""The command `snap`, which needs no torch."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, cast

import rich_click as click

from faq_deploy.cli_options import color_option, json_option, mean_option, options, std_option
from faq_deploy.completion import data_places

if TYPE_CHECKING:
    from engines.snap import SnapTarget

__all__ = ["snap"]

_snap_options = options(
    click.option("--output", "-o", type=click.Path(path_type=Path), required=True, metavar="OUT.onnx"),
    click.option(
        "--target",
        type=click.Choice(["tensorrt", "onnxruntime"]),
        default="tensorrt",
        show_default=True,
        help="tensorrt: int8 codes around 0; onnxruntime: types and zero points stay.",
    ),
    click.option(
        "--max-clip",
        type=click.FloatRange(0, 50),
        default=0.0,
        show_default=True,
        metavar="PERCENT",
        help="Of an activation's range that may be cut off for a step of half the size.",
    ),
    click.option(
        "--data",
        shell_complete=data_places,
        metavar="DIR|digits|cifar10:DIR",
        help="Labelled images: says what it costs.",
    ),
    click.option("--class-order", type=click.Choice(["lexical", "numeric"]), help="Order of class folders."),
    click.option("--resize", type=click.IntRange(0), help="Shorter side in pixels; 0 leaves the size as it is."),
    click.option("--crop", type=click.IntRange(0), help="Center crop in pixels.", show_default="the file's input"),
    mean_option,
    std_option,
    click.option("--interpolation", type=click.Choice(["bilinear", "bicubic", "nearest"]), help="Of the resize."),
    color_option,
    click.option("--orientation", type=click.Choice(["stored", "upright"]), help="Ignore or obey EXIF orientation."),
    click.option(
        "--on-bad-image",
        "on_bad",
        type=click.Choice(["error", "skip"]),
        default="error",
        show_default=True,
        help="What to do about an image that can't be read.",
    ),
    click.option("--batch-size", type=click.IntRange(1), default=32, show_default=True, help="Images a batch."),
    click.option("--max-drop", type=float, help="Exit code 1 if more points of top-1 are lost; needs --data."),
    json_option,
)


@click.command()
@click.argument("model", metavar="FILE.onnx", type=click.Path(path_type=Path))
@_snap_options
def snap(
    model: Path,
    output: Path,
    target: str,
    max_clip: float,
    max_drop: float | None,
    batch_size: int,
    as_json: bool,
    **given: object,
) -> None:
    """Move the scales of a QDQ ONNX file of any tool to powers of two, and say what it costs; needs no torch.

    Weights are rounded anew, from floats where the file holds them; biases go onto the steps of the sums; all else
    stays. With --data, both files run on the images. Exit code 0; 1 if the result has an error by `lint`, or loses more
    than --max-drop. docs/snap.md has an example.

    \b
    Examples:
      faq-deploy snap resnet.onnx -o po2.onnx
      faq-deploy snap resnet.onnx -o po2.onnx --data imagenet/val
      faq-deploy snap cnn.onnx -o po2.onnx --target onnxruntime --json
    """
    from faq_deploy import show_snap
    from faq_deploy.number_list import numbers
    from faq_deploy.run_data import DataOptions

    if max_drop is not None and given["data"] is None:
        raise click.UsageError("--max-drop needs --data.")
    for key in ("mean", "std"):
        given[key] = numbers(f"--{key}", cast("str | None", given[key]))
    data = DataOptions(**given)  # type: ignore[arg-type]
    chosen = cast("SnapTarget", target)
    sys.exit(
        show_snap.snap(
            model, output, chosen, max_clip / 100, data, batch_size=batch_size, max_drop=max_drop, as_json=as_json
        )
    )
