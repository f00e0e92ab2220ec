"""The command `compare`."""

from __future__ import annotations

from pathlib import Path

import rich_click as click

from faq_deploy.cli_options import json_option
from faq_deploy.completion import runs

__all__ = ["compare"]


@click.command()
@click.argument("first", type=click.Path(path_type=Path), shell_complete=runs)
@click.argument("second", type=click.Path(path_type=Path), shell_complete=runs)
@json_option
def compare(first: Path, second: Path, as_json: bool) -> None:
    """Show two evaluations side by side: accuracy, images lost and gained, exponents that changed, size, latency.

    FIRST and SECOND are run folders or report.json files that `eval` left. To gate on an earlier report, see
    `eval --baseline`.

    \b
    Examples:
      faq-deploy compare runs/r18 runs/r18-4bit
      faq-deploy compare released/report.json runs/r18 --json
    """
    from faq_deploy import show_compare

    show_compare.compare(first, second, as_json=as_json)
