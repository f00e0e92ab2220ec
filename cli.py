"""The command line: thin commands, each of which calls one function and prints what it returns."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, TypeVar

import rich_click as click

from engines.errors import FaqError

__all__ = ["main"]

_T = TypeVar("_T")
_EXTRAS = {
    "torch": "torch",
    "torchvision": "torch",
    "lightning_fabric": "torch",
    "jinja2": "torch",
    "matplotlib": "torch",
    "sklearn": "demo",
    "timm": "timm",
}

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


class _Group(click.RichGroup):
    """Turns errors that a user can act on into two lines and an exit code."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except FaqError as error:
            _fail(error.what, error.remedy, error.exit_code)
        except ModuleNotFoundError as error:
            extra = _EXTRAS.get((error.name or "").partition(".")[0])
            if extra is None:
                raise
            _fail(
                f"`faq-deploy {ctx.invoked_subcommand}` needs {error.name}, which is not installed.",
                f"pip install 'faq-deploy[{extra}]'",
                3,
            )
        except KeyboardInterrupt:
            _fail("stopped.", "nothing half-written was left behind; run the command again.", 130)


def _fail(what: str, remedy: str, code: int) -> NoReturn:
    click.echo(f"Error: {what}\nNote: {remedy}", err=True)
    sys.exit(code)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="faq-deploy", prog_name="faq-deploy")
def main() -> None:
    """Quantize a CNN to power-of-two fixed point, export it, build INT8 engines, and prove that all compute the
    same integers.

    \b
    A run, from a pretrained network to a verdict:
      faq-deploy quantize torchvision:resnet18 --weights r18.pth --data DIR -o runs/r18
      faq-deploy export runs/r18
      faq-deploy build  runs/r18
      faq-deploy eval   runs/r18

    Exit codes: 0 passed, 1 a gate failed, 2 bad usage or input, 3 this machine cannot do it.
    """
    from engines.notices import show_warnings

    show_warnings()


def _options(*decorators: Callable[[_T], _T]) -> Callable[[_T], _T]:
    def apply(function: _T) -> _T:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return apply


_NUMBERS = click.STRING
_training_options = _options(
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


@main.command()
@click.argument("model", required=False)
@_training_options
def quantize(model: str | None, as_json: bool, **options: object) -> None:
    """Calibrate and fine-tune MODEL in fixed point (FAQ).

    MODEL is `torchvision:NAME`, `timm:NAME`, `builtin:NAME` or `path/file.py:factory`.

    \b
    Examples:
      faq-deploy quantize torchvision:resnet18 --weights r18.pth --data DIR -o runs/r18
      faq-deploy quantize torchvision:resnet18 --weights r18.pth --data DIR --bits 4 -o runs/r18-4bit
      faq-deploy quantize my_net.py:build --data photos --train-fraction 0.9 --epochs 0 -o runs/mine
      faq-deploy quantize --resume -o runs/r18
    """
    from faq_deploy import show, verbs

    wanted = show.training_options(model, options)
    result, warnings = verbs.quantize_verb(wanted, show.reporter(), show.say)
    show.quantized(wanted.output, result, warnings, as_json=as_json)


@main.command()
@click.argument("model")
@_training_options
def train(model: str, as_json: bool, **options: object) -> None:
    """Train MODEL in float, for data that has no pretrained network; leaves OUTPUT/float.pth.

    \b
    Examples:
      faq-deploy train builtin:digits-resnet --data digits --recipe digits-float -o runs/digits
      faq-deploy train builtin:resnet18-cifar --data cifar10:DIR --recipe cifar-float -o runs/cifar
    """
    from faq_deploy import show, train_float

    wanted = show.training_options(model, {**options, "recipe": options["recipe"] or "float"})
    result, path = train_float.train_verb(wanted, show.reporter(), show.say)
    show.trained(path, result, as_json=as_json)


@main.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--check-images", type=click.IntRange(1), default=16, show_default=True, help="Images whose codes are compared."
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def export(run: Path, check_images: int, as_json: bool) -> None:
    """Write RUN/model.onnx (QDQ, opset 13) once PyTorch, the integer reference and onnxruntime agree on its codes.

    \b
    Example:
      faq-deploy export runs/r18
    """
    from engines.run_folder import RunFolder
    from faq_deploy import show, verbs

    show.exported(verbs.export_verb(RunFolder(run), check_images, show.say), as_json=as_json)


@main.command()
@click.argument("source", metavar="RUN|FILE.onnx", type=click.Path(path_type=Path))
@click.option(
    "--runtime",
    "runtimes",
    multiple=True,
    type=click.Choice(["onnxruntime", "tensorrt", "tensorrt-rtx"]),
    help="Repeatable.  [default: tensorrt where it runs, else onnxruntime]",
)
@click.option(
    "--sm",
    "sms",
    multiple=True,
    type=int,
    metavar="75|80|86|89|120",
    help="GPU architectures for tensorrt-rtx; repeatable.",
)
@click.option(
    "--batch",
    default="1:8:32",
    show_default=True,
    metavar="MIN:OPT:MAX",
    help="Batch sizes of the optimization profile.",
)
@click.option("--output", "-o", type=click.Path(path_type=Path), help="Folder for engines built from FILE.onnx.")
@click.option("--force", is_flag=True, help="Build again what is there already.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def build(
    source: Path,
    runtimes: tuple[str, ...],
    sms: tuple[int, ...],
    batch: str,
    output: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Build INT8 engines from RUN/model.onnx; needs no torch.

    4-bit networks run as 4-bit values in INT8 kernels: TensorRT has no INT4 convolution.

    \b
    Examples:
      faq-deploy build runs/r18
      faq-deploy build runs/r18 --runtime tensorrt-rtx --sm 75 --sm 86 --sm 89 --sm 120
      faq-deploy build runs/r18/model.onnx -o engines
    """
    from engines import show_build

    sys.exit(show_build.build(source, runtimes, sms, batch, output, force=force, as_json=as_json))


@main.command(name="eval")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--data", help="The same data in another place.")
@click.option(
    "--engine", "engines", multiple=True, help="Only these engines; repeatable.  [default: all that were built]"
)
@click.option(
    "--max-drop",
    type=float,
    default=0.1,
    show_default=True,
    help="Points of top-1 that a stage may lose against PyTorch quantized.",
)
@click.option(
    "--max-flips",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Images whose top-1 may differ from PyTorch quantized.",
)
@click.option("--max-float-drop", type=float, help="Points that PyTorch quantized may lose against PyTorch float.")
@click.option("--allow-skip", is_flag=True, help="Pass although an engine could not run here.")
@click.option("--batch-size", type=click.IntRange(1), default=32, show_default=True, help="Images a batch.")
@click.option(
    "--code-images",
    type=click.IntRange(0),
    default=64,
    show_default=True,
    help="Images whose integer codes are compared.",
)
@click.option(
    "--reference-images",
    type=click.IntRange(1),
    default=64,
    show_default=True,
    help="Images that the NumPy integer reference runs.",
)
@click.option(
    "--on-bad-image",
    type=click.Choice(["error", "skip"]),
    default="error",
    show_default=True,
    help="What to do about an image that can't be read.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def evaluate(run: Path, as_json: bool, **options: object) -> None:
    """Run the same images through PyTorch, the integer reference, onnxruntime and every engine; judge the result.

    Writes RUN/report.json and RUN/report.html. Exit code 0 if all gates passed, 1 if one failed, 3 if an engine
    could not run here (unless --allow-skip).

    \b
    Examples:
      faq-deploy eval runs/r18
      faq-deploy eval runs/r18 --max-drop 0.1 --max-flips 0 --max-float-drop 0.5 --allow-skip
    """
    from engines.run_folder import RunFolder
    from faq_deploy import show, verbs

    wanted, data = show.eval_options(options)
    with show.image_progress() as on_images:
        report = verbs.evaluate_verb(RunFolder(run), wanted, data, on_images)
    show.evaluated(run, report, as_json=as_json)
    sys.exit(report.verdict.exit_code)


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def doctor(as_json: bool) -> None:
    """Say what this machine can do, and what to install for the rest.

    \b
    Example:
      faq-deploy doctor
    """
    from engines import show_build

    show_build.doctor(as_json=as_json)


@main.group()
def recipes() -> None:
    """List the recipes that come with the tool, or show one."""


@recipes.command(name="list")
def list_recipes() -> None:
    """Names and first sentences."""
    from faq_deploy import show_recipes

    show_recipes.listing()


@recipes.command(name="show")
@click.argument("name")
def show_recipe(name: str) -> None:
    """The TOML of recipe NAME, ready to save and change."""
    from faq_deploy import show_recipes

    show_recipes.one(name)


@main.command()
@click.option(
    "--output",
    "-o",
    type=click.Path(path_type=Path),
    default=Path("runs/demo"),
    show_default=True,
    help="Folder for the demo's runs.",
)
def demo(output: Path) -> None:
    """The main job on scikit-learn's digits: train, quantize to 8 and 4 bits, export, build, evaluate.

    Every step is one of the commands above; they are printed as they run.

    \b
    Example:
      faq-deploy demo -o runs/demo
    """
    from faq_deploy import demonstration

    sys.exit(demonstration.run(output))


if __name__ == "__main__":
    main()
