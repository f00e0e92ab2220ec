"""The command `lint`, which needs no torch."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import cast

import rich_click as click

from faq_deploy.cli_options import json_option, options

__all__ = ["lint"]

_lint_options = options(
    click.option(
        "--target",
        type=click.Choice(["tensorrt", "onnxruntime", "paper"]),
        help="What it is for.",
        show_default="what the file says, else any engine",
    ),
    click.option(
        "--format",
        "form",
        type=click.Choice(["text", "json", "sarif"]),
        default="text",
        show_default=True,
        help="For people, for programs, or for code hosts (SARIF 2.1.0).",
    ),
    click.option("--fix", is_flag=True, help="Repair what changes no value, and prove it; needs -o."),
    click.option(
        "--output", "-o", type=click.Path(path_type=Path), metavar="FIXED.onnx", help="With --fix: the repaired file."
    ),
    json_option,
)


@click.command()
@click.argument("model", metavar="FILE.onnx", type=click.Path(path_type=Path))
@_lint_options
def lint(model: Path, target: str | None, form: str, fix: bool, output: Path | None, as_json: bool) -> None:
    """Check a QDQ ONNX file of any tool for what an engine would refuse or do otherwise; needs no torch.

    Exit code 0 if there is no error, 1 if there is. docs/lint.md explains each rule. With --fix, the repaired file gets
    its name once onnxruntime gives bitwise the same outputs for it; the exit code is about that file.

    \b
    Examples:
      faq-deploy lint model.onnx --target tensorrt
      faq-deploy lint model.onnx --format sarif > lint.sarif
      faq-deploy lint model.onnx --fix -o fixed.onnx
    """
    from engines import show_fix, show_lint

    if as_json and form == "sarif":
        raise click.UsageError("--json and --format sarif ask for two formats at once.")
    if fix != (output is not None):
        raise click.UsageError("--fix and -o FIXED.onnx go together.")
    chosen: show_lint.Format = "json" if as_json else cast("show_lint.Format", form)
    if output is not None:
        sys.exit(show_fix.fix(model, output, target, chosen))
    sys.exit(show_lint.lint(model, target, chosen))
