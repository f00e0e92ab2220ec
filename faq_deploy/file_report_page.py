"""The page of `eval FILE.onnx --html`: one file that needs no network and no script, as report.html of a run."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path

from engines.files import sha256_of, write_atomic
from engines.host import tool_version
from faq_deploy.file_eval import FileReport
from faq_deploy.report import page_environment

__all__ = ["write_file_page"]


def write_file_page(report: FileReport, path: Path) -> None:
    """Write it, whole or not at all.

    Args:
        report: what was found; its file is still there.
        path: of the page.

    Raises:
        WriteError: it can't be written.
    """
    page = (
        page_environment()
        .get_template("file_report.html.j2")
        .render(
            report=report,
            headline=_headline(report),
            sha256=sha256_of(Path(report.file)),
            created=datetime.now(timezone.utc),
            version=tool_version(),
        )
    )
    write_atomic(path, page)


def _headline(report: FileReport) -> str:
    codes = sum(stage.codes_compared for stage in report.stages)
    values = sum(output.compared for stage in report.stages for output in stage.outputs)
    differing = sum(stage.differing_codes for stage in report.stages)
    others = sum(stage.differing_values for stage in report.stages)
    return f"{differing:,} of {codes:,} codes differ, and {others:,} of {values:,} values of outputs."
