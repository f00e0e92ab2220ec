"""The options of the larger commands, and the groups in which --help shows them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

import rich_click as click

from faq_deploy.completion import data_places, devices, files, recipes
from faq_deploy.launcher import in_processes

__all__ = [
    "assignments_option",
    "bits_option",
    "color_option",
    "cpu_option",
    "float_options",
    "init_options",
    "json_option",
    "layer_options",
    "mean_option",
    "on_bad_image_option",
    "options",
    "std_option",
    "training_options",
]

_T = TypeVar("_T")

_MODEL_AND_DATA: Final = (
    "--weights",
    "--num-classes",
    "--ema",
    "--data",
    "--train-fraction",
    "--class-order",
    "--on-bad-image",
)
_RECIPE: Final = ("--recipe", "--epochs", "--lr", "--batch-size", "--seed", "--precision", "--set")
_QUANTIZED: Final = ("--bits", "--target", "--cpu", "--keep", "--distill")
_LAYERS: Final = ("--leaf", "--skip", "--int4-linear", "--model-output", "--certify")
_PREPROCESSING: Final = (
    "--resize",
    "--crop",
    "--mean",
    "--std",
    "--pixel-scale",
    "--interpolation",
    "--color",
    "--orientation",
)
_RUN: Final = ("--output", "--resume", "--force", "--device", "--devices", "--workers", "--json", "--help")


def _groups(recipe: tuple[str, ...]) -> list[dict[str, object]]:
    names = ("Model and data", "Recipe", "Preprocessing", "Run")
    lists = (_MODEL_AND_DATA, recipe, _PREPROCESSING, _RUN)
    return [{"name": name, "options": list(options)} for name, options in zip(names, lists, strict=True)]


click.rich_click.SHOW_ARGUMENTS = True
click.rich_click.TEXT_MARKUP = "rich"
click.rich_click.ERRORS_EPILOGUE = ""
click.rich_click.OPTION_GROUPS = {
    "faq-deploy quantize": [
        *_groups(("--recipe", *_QUANTIZED, *_RECIPE[1:])),  # type: ignore[list-item]
        {"name": "Layers", "options": list(_LAYERS)},
    ],
    "faq-deploy train": _groups(_RECIPE),  # type: ignore[dict-item]
}


def options(*decorators: Callable[[_T], _T]) -> Callable[[_T], _T]:
    """One decorator of many, in the order in which --help shows them."""

    def apply(function: _T) -> _T:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return apply


mean_option = click.option("--mean", metavar="M[,M,M]", help="Channel means, of pixels scaled to 0..1.")
std_option = click.option("--std", metavar="S[,S,S]", help="Channel standard deviations.")
color_option = click.option("--color", type=click.Choice(["RGB", "L"]), help="Three channels, or one.")
cpu_option = click.option(
    "--cpu", type=click.Choice(["any", "vnni"]), help="Which x86 CPUs target onnxruntime is exact on."
)
assignments_option = click.option(
    "--set", "assignments", metavar="KEY=VALUE", multiple=True, help="Any other value of the recipe."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
on_bad_image_option = click.option(
    "--on-bad-image",
    type=click.Choice(["error", "skip"]),
    default="error",
    show_default=True,
    help="What to do about an image that can't be read.",
)

_model_and_data = options(
    click.option(
        "--weights",
        metavar="FILE|NAME",
        shell_complete=files,
        help="Checkpoint file, a torchvision weights name, or `random`.",
    ),
    click.option(
        "--num-classes", type=click.IntRange(1), help="Classes of the head; follows the checkpoint if absent."
    ),
    click.option("--ema", is_flag=True, help="Take the EMA weights of a checkpoint that has both."),
    click.option(
        "--data",
        shell_complete=data_places,
        metavar="DIR|SHARDS|digits|cifar10:DIR",
        help="Folder with train/ and val/, or one folder a class; or train-{000..127}.tar,val-{00..05}.tar.",
    ),
    click.option(
        "--train-fraction", type=click.FloatRange(0, 1, min_open=True, max_open=True), help="Hold out the rest."
    ),
    click.option(
        "--class-order", type=click.Choice(["lexical", "numeric"]), help="Order of class folders named 0, 1, ..."
    ),
    on_bad_image_option,
)

_training = options(
    click.option("--epochs", type=click.IntRange(0), help="Passes over the training images; 0 trains nothing."),
    click.option("--lr", type=float, help="First learning rate."),
    click.option("--batch-size", type=click.IntRange(1), help="Images a training step."),
    click.option("--seed", type=click.IntRange(0), help="Of image order, augmentation and dropout."),
    click.option(
        "--precision",
        type=click.Choice(["fp32", "bf16", "fp16"]),
        help="Of the products in training; quantizers and evaluation stay in fp32.",
        show_default="fp32",
    ),
    assignments_option,
)

_preprocessing = options(
    click.option("--resize", type=click.IntRange(0), help="Shorter side in pixels; 0 leaves the size as it is."),
    click.option("--crop", type=click.IntRange(0), help="Center crop in pixels; 0 takes the whole image."),
    mean_option,
    std_option,
    click.option(
        "--pixel-scale",
        type=float,
        help="What pixels are divided by first; 1 for a network that was trained on 0..255.",
        show_default="255",
    ),
    click.option("--interpolation", type=click.Choice(["bilinear", "bicubic", "nearest"]), help="Of the resize."),
    color_option,
    click.option("--orientation", type=click.Choice(["stored", "upright"]), help="Ignore or obey EXIF orientation."),
)

_run = options(
    _preprocessing,
    click.option("--output", "-o", type=click.Path(path_type=Path), required=True, help="The run folder."),
    click.option("--resume", is_flag=True, help="Go on with an interrupted run in that folder."),
    click.option(
        "--force", is_flag=True, help="Replace a run that is there; with --resume, go on with a changed training."
    ),
    click.option(
        "--device",
        shell_complete=devices,
        default="auto",
        show_default=True,
        metavar="auto|cpu|cuda",
        help="Where to train.",
    ),
    click.option(
        "--devices",
        default="1",
        show_default=True,
        metavar="N|auto",
        help="Processes that train together, each on its own GPU (auto: on all GPUs) or, with --device cpu, on CPUs.",
    ),
    click.option("--workers", type=click.IntRange(0), default=0, show_default=True, help="Processes that load images."),
    json_option,
)

bits_option = click.option(
    "--bits",
    multiple=True,
    metavar="8|4|PATTERN=N",
    help="Precision, or (N from 2 to 8) that of layers whose names match; repeatable.",
    show_default="8",
)

layer_options = options(
    click.option("--leaf", multiple=True, metavar="MODULE", help="Keep a part of the model in float; repeatable."),
    click.option(
        "--skip", multiple=True, metavar="PATTERN", help="Keep matching layers' weights in float; repeatable."
    ),
    click.option("--int4-linear", is_flag=True, help="Give linear layers 4-bit weights, for `build --int4-linear`."),
    click.option(
        "--model-output",
        metavar="NAME",
        help="Which of several outputs to keep: a key, or 0, 1, ...",
    ),
    click.option(
        "--certify/--no-certify",
        default=None,
        help="Prove that no sum passes 2^24, at half the codes of the few channels that could.",
        show_default="certify",
    ),
)

training_options = options(
    _model_and_data,
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
        help="Whose grids to train on.",
        show_default="tensorrt",
    ),
    cpu_option,
    layer_options,
    _training,
    click.option(
        "--keep",
        type=click.Choice(["best", "last"]),
        help="Which epoch's weights go on to export; the best may be that before the first.",
        show_default="best",
    ),
    click.option(
        "--distill",
        is_flag=False,
        flag_value=0.5,
        type=click.FloatRange(0, 1),
        metavar="[SHARE]",
        help="Share of the loss that compares logits with the float net's; 0.5 where no number follows.",
    ),
    _run,
    in_processes,
)

init_options = options(
    _model_and_data,
    click.option("--bits", type=click.Choice(["8", "4"]), default="8", show_default=True, help="Precision."),
    click.option(
        "--target",
        type=click.Choice(["tensorrt", "onnxruntime", "paper"]),
        help="Whose grids to train on.",
        show_default="tensorrt where there is an NVIDIA GPU or TensorRT, else onnxruntime",
    ),
    _preprocessing,
    click.option(
        "--output",
        "-o",
        type=click.Path(path_type=Path),
        default=Path("recipe.toml"),
        show_default=True,
        help="The recipe to write.",
    ),
    click.option("--force", is_flag=True, help="Replace a recipe that is there."),
    json_option,
)

float_options = options(
    _model_and_data,
    click.option(
        "--recipe", metavar="NAME|FILE", shell_complete=recipes, help="See `faq-deploy recipes`.", show_default="float"
    ),
    _training,
    _run,
    in_processes,
)
