"""The fenced blocks of the documentation's pages, and the commands in them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Block", "blocks", "shell_commands", "whole_commands"]

_FENCE = re.compile(r"\s*(```+|~~~+)(\w*)")
_MARK = re.compile(r"<!-- (.*) -->")
_TYPED = re.compile(r"\s*(\$ |- |run: |- run: )?(faq-deploy|docker run|(srun )?torchrun)( |$)")


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        page: its file's name.
        line: where its fence stands, from 1.
        language: as the fence says, "" if it doesn't.
        mark: what an HTML comment on the line above says, such as "not run: needs a Jetson".
        text: within, without the indentation of the fence.
    """

    page: str
    line: int
    language: str
    mark: str
    text: str

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(path: Path) -> list[Block]:
    """All of a page."""
    found: list[Block] = []
    opened, start, mark, inside = "", 0, "", list[str]()
    language, before = "", ""
    for number, line in enumerate(path.read_text("utf-8").splitlines(), start=1):
        fence = _FENCE.match(line)
        if fence and not opened:
            opened, start, language, inside = fence[1], number, fence[2], []
            above = _MARK.fullmatch(before.strip())
            mark = above[1] if above else ""
        elif fence and fence[1].startswith(opened):
            found.append(Block(path.name, start, language, mark, "".join(f"{x}\n" for x in inside)))
            opened = ""
        elif opened:
            inside.append(line)
        before = line
    return found


def whole_commands(block: Block) -> Iterator[tuple[str, list[str]]]:
    """Where they stand, and the words behind `faq-deploy` of the commands that a block shows to be typed."""
    for number, line in _joined(block):
        if _TYPED.match(line):
            yield from ((f"{block.page}:{number}", words) for words in shell_commands(line))


def _joined(block: Block) -> Iterator[tuple[int, str]]:
    """Its lines with their numbers in the page; a line that ends in a backslash holds the next one too."""
    begun, start = "", 0
    for number, line in enumerate(block.text.splitlines(), start=block.line + 1):
        start = start if begun else number
        begun += line
        if begun.endswith("\\"):
            begun = begun[:-1] + " "
            continue
        yield start, begun
        begun = ""


def shell_commands(line: str) -> Iterator[list[str]]:
    """Each `faq-deploy ...` of a shell line, as words; what stands before it, comments and redirections go."""
    for found in re.finditer(r"(?:^|[\s;&|(])faq-deploy(:\w+)?(?= |$)", line):
        lexer = shlex.shlex(line[found.end() :], posix=True, punctuation_chars=";&|()<>")
        lexer.commenters, lexer.whitespace_split = "#", True
        words: list[str] = []
        for word in lexer:
            if set(word) <= set(";&|()<>"):
                break
            words.append(word)
        yield words
