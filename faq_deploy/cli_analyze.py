"""The command `analyze` and its three verbs."""

from __future__ import annotations

from pathlib import Path

import rich_click as click

from faq_deploy.cli_loading import run_for_torch
from faq_deploy.cli_options import json_option, options
from faq_deploy.completion import runs

__all__ = ["analyze"]

_run = click.argument("run", type=click.Path(path_type=Path), shell_complete=runs)
_data = click.option("--data", metavar="DIR|digits|cifar10:DIR", help="The same data in another place.")

_noise_options = options(
    click.option(
        "--bits",
        "widths",
        type=click.IntRange(2, 8),
        multiple=True,
        default=(8, 6, 5, 4, 3),
        metavar="2..8",
        show_default="8, 6, 5, 4, 3",
        help="Width of the weights; repeatable.",
    ),
    click.option(
        "--batches",
        type=click.IntRange(1),
        default=10,
        show_default=True,
        help="Batches that gradients are compared on.",
    ),
    click.option(
        "--steps",
        type=click.IntRange(0),
        default=300,
        show_default=True,
        help="Steps of SGD at each width for the paper's own measure; 0 leaves it out.",
    ),
    click.option("--batch-size", type=click.IntRange(1), show_default="the recipe's", help="Images in a batch."),
    _data,
    click.option("--device", default="auto", show_default=True, metavar="auto|cpu|cuda", help="Where to compute."),
    json_option,
)


analyze = click.RichGroup(
    name="analyze",
    help="""Look into a run: gradient noise, closeness to the float weights, exponents and codes.

Each leaves JSON and a picture in RUN/analysis; nothing else of RUN changes.

\b
Examples:
  faq-deploy analyze noise runs/r18-4bit
  faq-deploy analyze similarity runs/r18-4bit
  faq-deploy analyze exponents runs/r18-4bit""",
)


@analyze.command()
@_run
@_noise_options
def noise(run: Path, as_json: bool, **wanted: object) -> None:
    """How much noise quantized weights bring into training, by layer and width (the paper's Fig. 1).

    Two measures, each a cosine: of the gradient with quantized weights and that with float ones, on the same batches;
    and of the step that SGD calls for and a moving average of what the quantized weights did. Both begin at RUN's
    calibrated weights, with its data and recipe. Weights of the first and the last layer, and activations, keep RUN's
    own bits.

    \b
    Examples:
      faq-deploy analyze noise runs/r18-4bit
      faq-deploy analyze noise runs/r18-4bit --bits 8 --bits 4 --bits 2 --steps 500
    """
    folder = run_for_torch(run)
    from faq_deploy import analyze as verbs
    from faq_deploy import show, show_analysis

    facts, path = verbs.noise_verb(folder, verbs.NoiseOptions(**wanted), show.say)  # type: ignore[arg-type]
    show_analysis.noise(facts, path, as_json=as_json)


@analyze.command()
@_run
@json_option
def similarity(run: Path, as_json: bool) -> None:
    """How close the fine-tuned weights are to the float ones, by layer and epoch (the paper's Fig. 2).

    \b
    Example:
      faq-deploy analyze similarity runs/r18-4bit
    """
    folder = run_for_torch(run)
    from faq_deploy import analyze as verbs
    from faq_deploy import show_analysis

    facts, path = verbs.similarity_verb(folder)
    show_analysis.similarity(facts, path, as_json=as_json)


@analyze.command()
@_run
@click.option("--images", type=click.IntRange(1), default=256, show_default=True, help="Validation images to look at.")
@_data
@json_option
def exponents(run: Path, images: int, data: str | None, as_json: bool) -> None:
    """Which exponents a run has, how its tensors fill their codes, and how often exponents changed in training.

    \b
    Example:
      faq-deploy analyze exponents runs/r18-4bit
    """
    folder = run_for_torch(run)
    from faq_deploy import analyze as verbs
    from faq_deploy import show, show_analysis

    facts, path = verbs.exponents_verb(folder, images=images, data=data, say=show.say)
    show_analysis.exponents(facts, path, as_json=as_json)
