"""The options of `inspect`: those of `quantize` that say which model and which grids, and the size of its images."""

from __future__ import annotations

import rich_click as click

from faq_deploy.cli_options import (
    assignments_option,
    bits_option,
    color_option,
    cpu_option,
    json_option,
    layer_options,
    mean_option,
    options,
    std_option,
)
from faq_deploy.completion import files, recipes

__all__ = ["inspect_options"]

inspect_options = options(
    click.option(
        "--weights",
        metavar="FILE|NAME",
        shell_complete=files,
        help="Checkpoint file or weights name.",
        show_default="random",
    ),
    click.option("--num-classes", type=click.IntRange(1), help="Classes of the head."),
    click.option("--ema", is_flag=True, help="Take the EMA weights of a checkpoint that has both."),
    click.option(
        "--input-size", metavar="S|HxW", help="Of the images, in pixels.", show_default="the crop that the weights want"
    ),
    color_option,
    mean_option,
    std_option,
    click.option(
        "--recipe",
        metavar="NAME|FILE",
        shell_complete=recipes,
        help="See `faq-deploy recipes`; by default the one of --bits.",
    ),
    bits_option,
    click.option(
        "--target",
        type=click.Choice(["tensorrt", "onnxruntime", "paper"]),
        help="Whose grids.",
        show_default="tensorrt",
    ),
    cpu_option,
    layer_options,
    assignments_option,
    json_option,
)
