"""MkDocs hook: README.md and its neighbours become pages of the site, and Markdown is read as code hosts read it.

The files and their links stay as code hosts want them: `docs/x.md` from the root, `../X.md` from docs/.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

__all__ = ["ROOT_PAGES", "on_files", "on_page_markdown", "site_markdown"]

ROOT: Final = Path(__file__).resolve().parents[1]
ROOT_PAGES: Final = ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")

_FENCE: Final = re.compile(r" *(```|~~~)")
_BLOCK: Final = re.compile(r"([-*] |\d+\. |\|)")  # what a list or a table starts with


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of the root to those of docs/."""
    from mkdocs.structure.files import File

    for name in ROOT_PAGES:
        files.append(File.generated(config, name, content=(ROOT / name).read_text("utf-8")))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """A page's text as MkDocs wants it."""
    return site_markdown(markdown, in_root=page.file.src_uri in ROOT_PAGES)


def site_markdown(markdown: str, *, in_root: bool) -> str:
    """Links as the site has its pages, all in one folder, and an empty line before each list and table.

    Python-Markdown takes a list that follows a line of text for more text; code hosts take it for a list.

    Args:
        markdown: of a page.
        in_root: whether it lies beside README.md, else in docs/.

    Returns:
        Markdown.
    """
    lines: list[str] = []
    for line, in_code in _lines(markdown):
        before = lines[-1] if lines else ""
        if not in_code:
            line = line.replace("](docs/", "](") if in_root else line.replace("](../", "](")
            if _BLOCK.match(line) and before and before[0] != " " and not _BLOCK.match(before):
                lines.append("")
        lines.append(line)
    return "\n".join(lines) + "\n"


def _lines(markdown: str) -> Iterator[tuple[str, bool]]:
    """Each line, and whether it belongs to a fenced block."""
    fence = ""
    for line in markdown.splitlines():
        found = _FENCE.match(line)
        yield line, bool(fence)
        if found and fence in ("", found[1]):
            fence = "" if fence else found[1]
