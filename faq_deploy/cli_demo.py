"""The verb `demo`."""

from __future__ import annotations

import sys
from pathlib import Path

import rich_click as click

from faq_deploy.cli_loading import say_loading

__all__ = ["demo"]


@click.command()
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
    say_loading()
    from faq_deploy import demonstration

    sys.exit(demonstration.run(output))
