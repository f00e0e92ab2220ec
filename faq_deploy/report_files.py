"""The files for CI systems that an evaluation writes beside its report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from faq_deploy.junit import write_junit
from faq_deploy.markdown_summary import write_markdown
from faq_deploy.report_model import Report

__all__ = ["ReportFiles"]


@dataclass(frozen=True)
class ReportFiles:
    """Where they go; None leaves one out.

    Attributes:
        junit: JUnit XML.
        markdown: a summary for a pull request.
    """

    junit: Path | None = None
    markdown: Path | None = None

    def write(self, report: Report) -> None:
        """Write those that are wanted.

        Raises:
            WriteError: a folder can't be written, or the disk is full.
        """
        if self.junit is not None:
            write_junit(report, self.junit)
        if self.markdown is not None:
            write_markdown(report, self.markdown)
