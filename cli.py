"""The command line: thin commands, each of which calls one function and prints what it returns."""

from __future__ import annotations

import sys
from pathlib import Path

import rich_click as click

from faq_deploy.cli_analyze import analyze
from faq_deploy.cli_compare import compare
from faq_deploy.cli_completion import completion
from faq_deploy.cli_demo import demo
from faq_deploy.cli_edge import build_options, bundle_options, verify_options
from faq_deploy.cli_errors import ErrorGroup
from faq_deploy.cli_eval import eval_options
from faq_deploy.cli_inspect import inspect_options
from faq_deploy.cli_lint import lint
from faq_deploy.cli_loading import run_for_torch, say_loading
from faq_deploy.cli_options import float_options, init_options, json_option, training_options
from faq_deploy.cli_recipes import recipes
from faq_deploy.cli_snap import snap
from faq_deploy.completion import runs, runs_or_models

__all__ = ["main"]


@click.group(
    name="faq-deploy",
    cls=ErrorGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(package_name="faq-deploy", prog_name="faq-deploy")
def main() -> None:
    """Quantize a CNN to power-of-two fixed point, export it, build INT8 engines, and prove that all compute the
    same integers.

    \b
    To begin with:
      faq-deploy doctor
      faq-deploy init MODEL --weights FILE --data DIR

    \b
    A run, from a pretrained network to a verdict:
      faq-deploy quantize torchvision:resnet18 --weights r18.pth \\
          --data DIR -o runs/r18
      faq-deploy export runs/r18
      faq-deploy build  runs/r18
      faq-deploy eval   runs/r18

    Exit codes: 0 passed, 1 a gate failed, 2 bad usage or input, 3 this machine cannot do it or no engine was built,
    130 stopped by Ctrl-C.
    """
    from engines.notices import show_warnings

    show_warnings()


@main.command()
@click.argument("model")
@init_options
def init(model: str, as_json: bool, **options: object) -> None:
    """Look at MODEL and at images, write a commented recipe to start from, and say what to type next.

    MODEL is as for `quantize`. Where it has no weights, or its function draws them at random, the first command to type
    is `train`.

    \b
    Examples:
      faq-deploy init torchvision:resnet18 --weights r18.pth --data DIR
      faq-deploy init my_net.py:build --data photos -o mine.toml
      faq-deploy init builtin:digits-resnet --data digits --bits 4
    """
    from faq_deploy.before_torch import look_at_starter

    look_at_starter(model, options)
    from faq_deploy import show_starter
    from faq_deploy.starter import init_verb

    show_starter.started(init_verb(show_starter.init_options(model, options)), as_json=as_json)


@main.command()
@click.argument("model")
@inspect_options
def inspect(model: str, as_json: bool, **options: object) -> None:
    """Say what `quantize` would make of MODEL: layers, bits, MACs, what stays in float and why. Needs no data.

    MODEL is as for `quantize`; without weights it gets random ones.

    \b
    Examples:
      faq-deploy inspect torchvision:mobilenet_v3_small
      faq-deploy inspect my_net.py:build --input-size 192x256 --bits 4
      faq-deploy inspect timm:efficientnet_b0 --target onnxruntime --json
    """
    from faq_deploy.before_torch import look_at_model

    look_at_model(model, options)
    say_loading()
    from faq_deploy import show_inspect
    from faq_deploy.inspect import inspect_model

    wanted, input_size = show_inspect.inspect_options(model, options)
    show_inspect.inspected(inspect_model(wanted, input_size), as_json=as_json)


@main.command()
@click.argument("model", required=False)
@training_options
def quantize(model: str | None, as_json: bool, **options: object) -> None:
    """Calibrate and fine-tune MODEL in fixed point (FAQ).

    MODEL is `torchvision:NAME`, `timm:NAME`, `builtin:NAME` or `path/file.py:factory`; not needed with --resume.

    \b
    Examples:
      faq-deploy quantize torchvision:resnet18 --weights r18.pth \\
          --data DIR -o runs/r18
      faq-deploy quantize torchvision:resnet18 --weights r18.pth \\
          --data DIR --bits 4 -o runs/r18-4bit
      faq-deploy quantize my_net.py:build --data photos \\
          --train-fraction 0.9 --epochs 0 -o runs/mine
      faq-deploy quantize --resume -o runs/r18
    """
    from faq_deploy.before_torch import look_at_training

    look_at_training(model, options)
    say_loading()
    from faq_deploy import parsed_options, show, verbs

    wanted = parsed_options.training_options(model, options)
    result, warnings = verbs.quantize_verb(wanted, show.reporter(), show.say)
    show.quantized(wanted.output, result, warnings, as_json=as_json)


@main.command()
@click.argument("model", required=False)
@float_options
def train(model: str | None, as_json: bool, **options: object) -> None:
    """Train MODEL in float, for data that has no pretrained network; leaves OUTPUT/float.pth.

    MODEL is as for `quantize`; not needed with --resume.

    \b
    Examples:
      faq-deploy train builtin:digits-resnet --data digits \\
          --recipe digits-float -o runs/digits
      faq-deploy train builtin:resnet18-cifar --data cifar10:DIR \\
          --recipe cifar-float -o runs/cifar
      faq-deploy train --resume -o runs/cifar
    """
    from faq_deploy.before_torch import look_at_training

    look_at_training(model, options)
    say_loading()
    from faq_deploy import parsed_options, show, train_float

    wanted = parsed_options.training_options(model, options)
    result, path = train_float.train_verb(wanted, show.reporter(), show.say)
    show.trained(path, result, as_json=as_json)


@main.command()
@click.argument("run", type=click.Path(path_type=Path), shell_complete=runs)
@click.option(
    "--check-images", type=click.IntRange(1), default=16, show_default=True, help="Images whose codes are compared."
)
@click.option("--pack-int4", is_flag=True, help="Store 4-bit weights in 4 bits (opset 21); `build` unpacks them.")
@json_option
def export(run: Path, check_images: int, pack_int4: bool, as_json: bool) -> None:
    """Write RUN/model.onnx (QDQ, opset 13) once PyTorch, the integer reference and onnxruntime agree on its codes.

    \b
    Example:
      faq-deploy export runs/r18
    """
    folder = run_for_torch(run)
    from faq_deploy import show, verbs

    result = verbs.export_verb(folder, check_images, show.say, pack_int4=pack_int4)
    show.exported(result, as_json=as_json)


@main.command()
@click.argument("source", metavar="RUN|FILE.onnx", type=click.Path(path_type=Path), shell_complete=runs_or_models)
@build_options
def build(source: Path, output: Path | None, force: bool, as_json: bool, **options: object) -> None:
    """Build INT8 engines from RUN/model.onnx; needs no torch.

    4-bit networks run as 4-bit values in INT8 kernels: TensorRT has no INT4 convolution.

    \b
    Examples:
      faq-deploy build runs/r18
      faq-deploy build runs/r18 --runtime tensorrt-rtx --sm 75 --sm 86
      faq-deploy build model.onnx -o r18-engines
      faq-deploy build runs/r18 --runtime onnxruntime --bench
    """
    from engines import show_build

    sys.exit(show_build.build(source, output, options, force=force, as_json=as_json))


@main.command(name="eval")
@click.argument("run", type=click.Path(path_type=Path), required=False, shell_complete=runs)
@eval_options
def evaluate(run: Path | None, bundle: Path | None, as_json: bool, **options: object) -> None:
    """Run the same images through PyTorch, the integer reference, onnxruntime and every engine; judge the result.

    Writes RUN/report.json and RUN/report.html; of an ONNX file nothing, unless --html names a page. Exit code 0 if all
    gates passed, 1 if one failed, 3 if no engine was built or one could not run here (unless --allow-skip).

    \b
    Examples:
      faq-deploy eval runs/r18
      faq-deploy eval runs/r18 --max-float-drop 0.5 --allow-skip
      faq-deploy eval runs/r18 --engine onnxruntime --junit junit.xml
      faq-deploy eval --bundle r18.tgz --data DIR
      faq-deploy eval model.onnx --samples mine.py:val --metric mean-iou
    """
    if bundle is not None:
        from engines import show_bundle

        sys.exit(show_bundle.evaluate(run, bundle, options, as_json=as_json))
    if run is None:
        raise click.UsageError("Missing argument 'RUN' (or pass --bundle FILE).")
    if run.is_file() or (run.suffix == ".onnx" and not run.exists()):
        from faq_deploy.before_torch import require_onnx

        require_onnx(run)
        say_loading()
        from faq_deploy import show_file_eval

        sys.exit(show_file_eval.evaluate(run, options, as_json=as_json))
    folder = run_for_torch(run)
    from faq_deploy import parsed_options, show, verbs

    wanted, data = parsed_options.eval_options(options)
    beside = parsed_options.report_files(options)
    with show.image_progress() as on_images:
        report = verbs.evaluate_verb(folder, wanted, data, on_images, beside)
    show.evaluated(run, report, as_json=as_json)
    sys.exit(report.verdict.exit_code)


@main.command()
@click.argument("run", type=click.Path(path_type=Path), shell_complete=runs)
@bundle_options
def bundle(run: Path, output: Path, triton: bool, engine: str | None, force: bool, as_json: bool) -> None:
    """Pack RUN for a machine without torch: ONNX, samples with expected codes, and the wheel that runs them.

    \b
    Examples:
      faq-deploy bundle runs/r18 -o r18.tgz
      faq-deploy bundle runs/r18 --triton -o models
    """
    from engines import show_bundle

    show_bundle.bundle(run, output, triton=triton, engine=engine, force=force, as_json=as_json)


@main.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@verify_options
def verify(bundle: Path, output: Path | None, as_json: bool, **options: object) -> None:
    """Build the engine of a bundle on this machine, run its samples, and compare every code; needs no torch.

    Exit code 0 if all are the same integers, 1 if any differs, 2 if the bundle is damaged, 3 if no engine runs here.

    \b
    Examples:
      faq-deploy verify r18.tgz
      faq-deploy verify r18.tgz --runtime tensorrt -o r18-engines
    """
    from engines import show_bundle

    sys.exit(show_bundle.verify(bundle, output, options, as_json=as_json))


@main.command()
@json_option
def doctor(as_json: bool) -> None:
    """Say what this machine can do, what to install for the rest, and which command comes next.

    \b
    Example:
      faq-deploy doctor
    """
    from engines import show_build

    show_build.doctor(as_json=as_json)


for command in (analyze, compare, completion, lint, recipes, snap, demo):
    main.add_command(command)


if __name__ == "__main__":
    main()
