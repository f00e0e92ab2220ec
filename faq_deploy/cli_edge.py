"""The options of the verbs that need no torch: `build`, `bundle`, `verify`."""

from __future__ import annotations

from pathlib import Path

import rich_click as click

from faq_deploy.cli_options import json_option, options
from faq_deploy.completion import engines

__all__ = ["build_options", "bundle_options", "verify_options"]

_runtimes = click.option(
    "--runtime",
    "runtimes",
    multiple=True,
    type=click.Choice(["onnxruntime", "tensorrt", "tensorrt-rtx"]),
    help="Repeatable.",
    show_default="tensorrt where it runs, else onnxruntime",
)
_batch = click.option(
    "--batch", default="1:8:32", show_default=True, metavar="MIN:OPT:MAX", help="Batch sizes of the profile."
)
_workspace = click.option(
    "--workspace",
    "workspace_mib",
    type=click.IntRange(1),
    metavar="MIB",
    help="Most GPU memory a kernel may use.",
    show_default="what is free",
)

build_options = options(
    _runtimes,
    click.option(
        "--sm",
        "sms",
        multiple=True,
        type=int,
        metavar="75|80|86|89|120",
        help="GPU architectures for tensorrt-rtx; repeatable.",
    ),
    _batch,
    click.option(
        "--hardware",
        type=click.Choice(["exact", "same-cc", "ampere+"]),
        default="exact",
        show_default=True,
        help="Other GPUs that a tensorrt engine must run on, too.",
    ),
    click.option("--version-compatible", is_flag=True, help="Later versions of TensorRT can load the engine, too."),
    click.option("--int4-linear", is_flag=True, help="Store 4-bit linear layers in INT4, where the GPU takes it."),
    click.option("--fp16-rest", is_flag=True, help="Layers that were left in float compute in FP16."),
    click.option("--fp16-baseline", is_flag=True, help="Also build the net in FP16, to compare speed with."),
    click.option(
        "--rebuilds", type=click.IntRange(1), default=1, show_default=True, help="Build so often; the worst counts."
    ),
    _workspace,
    click.option("--bench", is_flag=True, help="Time the engines that run here, beside what GPUs could do at best."),
    click.option("--dla", is_flag=True, help="Build for the DLA of a Jetson: says why it can't."),
    click.option(
        "--output",
        "-o",
        type=click.Path(path_type=Path),
        help="Folder for engines built from FILE.onnx.",
        show_default="FILE.engines beside it",
    ),
    click.option("--force", is_flag=True, help="Build again what is there already."),
    json_option,
)

bundle_options = options(
    click.option(
        "--output",
        "-o",
        type=click.Path(path_type=Path),
        required=True,
        help="The bundle, such as r18.tgz; with --triton, a folder.",
    ),
    click.option("--triton", is_flag=True, help="Write a model repository for the Triton server instead."),
    click.option(
        "--engine",
        shell_complete=engines,
        help="With --triton: serve this engine of the run.",
        show_default="the ONNX file",
    ),
    click.option("--force", is_flag=True, help="Replace what is there."),
    json_option,
)

verify_options = options(
    _runtimes,
    _batch,
    _workspace,
    click.option(
        "--output",
        "-o",
        type=click.Path(path_type=Path),
        help="Keep the engines in this folder.",
        show_default="nowhere",
    ),
    json_option,
)
