"""The options of `inspect`: those of `quantize` that say which model and which grids, and the size of its images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar

import rich_click as click

from faq_deploy.cli_options import bits_option, layer_options

__all__ = ["inspect_options"]

_Command = TypeVar("_Command", bound=Callable[..., Any])

_DECORATORS: Final = (
    click.option("--weights", metavar="FILE|NAME", help="Checkpoint file or weights name.  [default: random]"),
    click.option("--num-classes", type=click.IntRange(1), help="Classes of the head."),
    click.option("--ema", is_flag=True, help="Take the EMA weights of a checkpoint that has both."),
    click.option(
        "--input-size", metavar="S|HxW", help="Of the images, in pixels.  [default: the crop that the weights want]"
    ),
    click.option("--color", type=click.Choice(["RGB", "L"]), help="Three channels, or one."),
    click.option("--mean", metavar="M[,M,M]", help="Channel means, of pixels scaled to 0..1."),
    click.option("--std", metavar="S[,S,S]", help="Channel standard deviations."),
    click.option("--recipe", metavar="NAME|FILE", help="See `faq-deploy recipes`; by default the one of --bits."),
    bits_option,
    click.option(
        "--target", type=click.Choice(["tensorrt", "onnxruntime", "paper"]), help="Whose grids.  [default: tensorrt]"
    ),
    click.option("--cpu", type=click.Choice(["any", "vnni"]), help="Which x86 CPUs target onnxruntime is exact on."),
    layer_options,
    click.option("--set", "assignments", metavar="KEY=VALUE", multiple=True, help="Any other value of the recipe."),
    click.option("--json", "as_json", is_flag=True, help="Print the result as JSON."),
)


def inspect_options(function: _Command) -> _Command:
    """Give a command the options."""
    for decorate in reversed(_DECORATORS):
        function = decorate(function)
    return function
