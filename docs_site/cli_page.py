"""docs/cli.md, from the commands themselves.

python docs_site/cli_page.py
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import click

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cli import main
from engines.files import write_atomic

__all__ = ["PAGE", "commands", "page"]

PAGE: Final = Path(__file__).resolve().parents[1] / "docs" / "cli.md"

_HEAD: Final = """# Command line

Written by `docs_site/cli_page.py` from the commands; edit those, not this page. `faq-deploy VERB --help` says the same.
[The verbs](../README.md#the-verbs) has them in one table, with what each reads and leaves.
"""


def commands() -> dict[tuple[str, ...], click.Command]:
    """All commands by their words, `()` being `faq-deploy` itself, each group before its verbs."""
    return dict(_commands((), main))


def _commands(words: tuple[str, ...], command: click.Command) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    yield words, command
    if isinstance(command, click.Group):
        for name, inner in command.commands.items():
            yield from _commands((*words, name), inner)


def page() -> str:
    """The text of docs/cli.md."""
    return "\n".join([_HEAD, *(_section(words, command) for words, command in commands().items())])


def _section(words: tuple[str, ...], command: click.Command) -> str:
    name = " ".join(("faq-deploy", *words))
    arguments = [_argument(p) for p in command.params if isinstance(p, click.Argument)]
    if isinstance(command, click.Group):
        arguments.append("[VERB]" if command.invoke_without_command else "VERB")
    options = [_option(p) for p in command.params if isinstance(p, click.Option) and not p.hidden]
    usage = " ".join([name, *(["[OPTIONS]"] if options else []), *arguments])
    parts = [f"## {name}", f"```\n{usage}\n```", *_paragraphs(command.help or "")]
    if options:
        parts.append("\n".join(options))
    return "\n\n".join(parts) + "\n"


def _paragraphs(text: str) -> list[str]:
    r"""The help as Markdown: what follows `\b` keeps its lines, as on the terminal."""
    found = []
    for paragraph in inspect.cleandoc(text).split("\n\n"):
        kept = paragraph.strip("\n").startswith("\b")
        lines = [line.rstrip() for line in paragraph.strip("\n").splitlines() if line.strip() not in ("", "\b")]
        if not kept:
            found.append(" ".join(line.strip() for line in lines))
            continue
        code = "\n".join(line.removeprefix("  ") for line in lines[1:])
        found += [lines[0].strip(), f"```\n{code}\n```"] if code else [lines[0].strip()]
    return found


def _argument(parameter: click.Argument) -> str:
    name = parameter.metavar or (parameter.name or "").upper()
    name = f"{name}..." if parameter.nargs == -1 else name
    return name if parameter.required else f"[{name}]"


def _option(parameter: click.Option) -> str:
    """One line: names, value, what it does, default."""
    longest = sorted(parameter.opts, key=len, reverse=True)
    names = ", ".join(f"`{name}`" for name in (*longest, *parameter.secondary_opts))
    value = "" if parameter.is_flag else f" `{parameter.metavar or _values(parameter)}`"
    ends = []
    if parameter.required:
        ends.append("Required.")
    default = _default(parameter)
    if default:
        ends.append(f"Default: {default}.")
    return " ".join([f"- {names}{value}:", (parameter.help or "").strip(), *ends])


def _values(parameter: click.Option) -> str:
    """What a value may be, in the words of no one version of Click."""
    kind = parameter.type
    if isinstance(kind, click.Choice):
        return "|".join(map(str, kind.choices))
    if isinstance(kind, (click.IntRange, click.FloatRange)):
        low = "" if kind.min is None else f"{kind.min:g} {'<' if kind.min_open else '<='} "
        high = "" if kind.max is None else f" {'<' if kind.max_open else '<='} {kind.max:g}"
        return f"{low}N{high}" if low and high else f"N {'>' if kind.min_open else '>='} {kind.min:g}" if low else "N"
    return {"integer": "N", "float": "X", "path": "PATH", "file": "FILE"}.get(kind.name, "TEXT")


def _default(parameter: click.Option) -> str:
    if isinstance(parameter.show_default, str):
        return parameter.show_default
    if not parameter.show_default or parameter.is_flag:
        return ""
    value = parameter.default
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


if __name__ == "__main__":
    write_atomic(PAGE, page())
