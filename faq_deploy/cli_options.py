"""The options that `quantize` and `train` share, and the groups in which --help shows them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import rich_click as click

__all__ = ["training_options"]

_T = TypeVar("_T")

click.rich_click.SHOW_ARGUMENTS = True
click.rich_click.TEXT_MARKUP = "rich"
click.rich_click.ERRORS_EPILOGUE = ""
click.rich_click.OPTION_GROUPS = {
    "faq-deploy quantize": [
        {
            "name": "Model and data",
            "options": [
                "--weights",
                "--num-classes",
                "--ema",
                "--data",
                "--train-fraction",
                "--class-order",
                "--on-bad-image",
            ],
        },
        {
            "name": "Recipe",
            "options": [
                "--recipe",
                "--bits",
                "--target",
                "--cpu",
                "--epochs",
                "--lr",
                "--batch-size",
                "--seed",
                "--set",
                "--keep",
            ],
        },
        {
            "name": "Preprocessing",
            "options": ["--resize", "--crop", "--mean", "--std", "--interpolation", "--color", "--orientation"],
        },
        {"name": "Run", "options": ["--output", "--resume", "--force", "--device", "--workers", "--json", "--help"]},
    ],
}
click.rich_click.OPTION_GROUPS["faq-deploy train"] = click.rich_click.OPTION_GROUPS["faq-deploy quantize"]


def _options(*decorators: Callable[[_T], _T]) -> Callable[[_T], _T]:
    def apply(function: _T) -> _T:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return apply


training_options = _options(
    click.option("--weights", metavar="FILE|NAME", help="Checkpoint file, a torchvision weights name, or `random`."),
    click.option(
        "--num-classes", type=click.IntRange(1), help="Classes of the head; follows the checkpoint if absent."
    ),
    click.option("--ema", is_flag=True, help="Take the EMA weights of a checkpoint that has both."),
    click.option(
        "--data", metavar="DIR|digits|cifar10:DIR", help="Folder with train/ and val/, or one folder a class."
    ),
    click.option(
        "--train-fraction", type=click.FloatRange(0, 1, min_open=True, max_open=True), help="Hold out the rest."
    ),
    click.option(
        "--class-order", type=click.Choice(["lexical", "numeric"]), help="Order of class folders named 0, 1, ..."
    ),
    click.option(
        "--on-bad-image",
        type=click.Choice(["error", "skip"]),
        default="error",
        show_default=True,
        help="What to do about an image that can't be read.",
    ),
    click.option("--recipe", metavar="NAME|FILE", help="See `faq-deploy recipes`; by default the one of --bits."),
    click.option("--bits", type=click.Choice(["8", "4"]), help="Precision of weights and activations.  [default: 8]"),
    click.option(
        "--target",
        type=click.Choice(["tensorrt", "onnxruntime", "paper"]),
        help="Whose grids to train on.  [default: tensorrt]",
    ),
    click.option("--cpu", type=click.Choice(["any", "vnni"]), help="Which x86 CPUs target onnxruntime is exact on."),
    click.option("--epochs", type=click.IntRange(0), help="0 calibrates only."),
    click.option("--lr", type=float, help="First learning rate."),
    click.option("--batch-size", type=click.IntRange(1), help="Images a training step."),
    click.option("--seed", type=click.IntRange(0), help="Of image order, augmentation and dropout."),
    click.option("--set", "assignments", metavar="KEY=VALUE", multiple=True, help="Any other value of the recipe."),
    click.option(
        "--keep",
        type=click.Choice(["best", "last"]),
        default="best",
        show_default=True,
        help="Which epoch's weights go on to export.",
    ),
    click.option("--resize", type=click.IntRange(0), help="Shorter side in pixels; 0 leaves the size as it is."),
    click.option("--crop", type=click.IntRange(0), help="Center crop in pixels; 0 takes the whole image."),
    click.option("--mean", metavar="M[,M,M]", help="Channel means, of pixels scaled to 0..1."),
    click.option("--std", metavar="S[,S,S]", help="Channel standard deviations."),
    click.option("--interpolation", type=click.Choice(["bilinear", "bicubic", "nearest"]), help="Of the resize."),
    click.option("--color", type=click.Choice(["RGB", "L"]), help="Three channels, or one."),
    click.option("--orientation", type=click.Choice(["stored", "upright"]), help="Ignore or obey EXIF orientation."),
    click.option("--output", "-o", type=click.Path(path_type=Path), required=True, help="The run folder."),
    click.option("--resume", is_flag=True, help="Go on with an interrupted run in that folder."),
    click.option("--force", is_flag=True, help="Replace a run that is there."),
    click.option("--device", default="auto", show_default=True, metavar="auto|cpu|cuda", help="Where to train."),
    click.option("--workers", type=click.IntRange(0), default=0, show_default=True, help="Processes that load images."),
    click.option("--json", "as_json", is_flag=True, help="Print the result as JSON."),
)
