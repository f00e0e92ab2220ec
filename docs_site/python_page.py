"""docs/python.md, from the docstrings of the promised names.

python docs_site/python_page.py
"""

from __future__ import annotations

import inspect
import re
import sys
import textwrap
from collections.abc import Collection, Iterator
from pathlib import Path
from types import ModuleType
from typing import Final

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import engines
import faq_deploy
from engines.files import write_atomic
from faq_deploy.recipe import recipe_keys

__all__ = ["PAGE", "page", "promised"]

PAGE: Final = Path(__file__).resolve().parents[1] / "docs" / "python.md"

_HEAD: Final = """# Python reference

Written by `docs_site/python_page.py` from the docstrings; edit those, not this page. [From Python](api.md) is
the manual, with a loop that runs. These names, and no others, stay from one release to the next
([Stability](stability.md)).
"""
# what the package itself calls, or hands over
_INSIDE: Final = {"PreparedModel": {"Args", "claim", "frozen", "mark", "require_calibrated"}}
_SECTIONS: Final = ("Args", "Returns", "Raises", "Attributes", "Buffers", "Source")
_NAMES: Final = ("Args", "Raises", "Attributes", "Buffers")  # sections of `name: what it is`
_NAME: Final = re.compile(r"(\w+(?:, \w+)*): ")
_WIDTH: Final = 100


def promised() -> list[tuple[ModuleType, str]]:
    """The package and the name of all that the page describes."""
    return [(package, name) for package in (faq_deploy, engines) for name in package.__all__]


def page() -> str:
    """The text of docs/python.md."""
    parts = [_HEAD]
    for package in (faq_deploy, engines):
        parts.append(f"## {package.__name__}\n\n{_first_lines(package)}\n")
        for name in sorted(package.__all__, key=_order):
            parts.append("\n\n".join(_name(package, name)) + "\n")
    return "\n".join(parts)


def _order(name: str) -> tuple[int, int, str]:
    """The calls as they follow each other, then what they take and return."""
    calls = ("prepare", "calibrate", "export", "check", "load_recipe", "load")
    return (0, calls.index(name), "") if name in calls else (1, 0, name.lower())


def _first_lines(package: ModuleType) -> str:
    return (inspect.getdoc(package) or "").split(". docs/")[0].split("\n")[0].removesuffix(".") + "."


def _name(package: ModuleType, name: str) -> Iterator[str]:
    """Its heading, signature and text; of a class also what it has."""
    found: object = getattr(package, name)
    yield f"### {package.__name__}.{name}"
    if isinstance(found, str):
        yield "The installed version, as `faq-deploy --version` prints it."
    elif inspect.isclass(found):
        inside = _INSIDE.get(name, set())
        yield from _text(found, inside)
        if name == "Recipe":
            yield "\n".join(f"- `{key}`: {_code(what)}" for key, what in recipe_keys().items())
        yield from _members(found, name, inside)
    elif inspect.isfunction(found):
        yield _signature(f"{package.__name__}.{name}", found)
        yield from _text(found)


def _members(found: type, name: str, inside: set[str]) -> Iterator[str]:
    """Properties as a list, then methods; of those with an underscore only a call of the object itself."""
    members = {own: m for own, m in vars(found).items() if own not in inside and (own[0] != "_" or own == "__call__")}
    properties = {own: member for own, member in members.items() if isinstance(member, property)}
    if properties:
        yield "Properties:"
        yield "\n".join(f"- `{own}`: {next(_text(member))}" for own, member in properties.items())
    for own, member in members.items():
        if inspect.isfunction(member) and member.__doc__:
            yield f"#### {name}.{own}"
            yield _signature(name.lower() if own == "__call__" else own, member)
            yield from _text(member)


def _signature(name: str, function: object) -> str:
    """As Python, one argument a line where it is long."""
    assert callable(function)
    signature = inspect.signature(function)
    given, starred = [], False
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and not starred:
            given.append("*")
            starred = True
        if parameter.name != "self":
            default = "" if parameter.default is parameter.empty else f" = {parameter.default!r}"
            given.append(f"{parameter.name}: {parameter.annotation}{default}")
    short = f"{name}({', '.join(given)}) -> {signature.return_annotation}"
    if len(short) > _WIDTH:
        lines = "".join(f"    {one},\n" for one in given)
        short = f"{name}(\n{lines}) -> {signature.return_annotation}"
    return f"```\n{short}\n```"


def _text(described: object, inside: Collection[str] = ()) -> Iterator[str]:
    """A Google docstring as Markdown."""
    text = inspect.getdoc(described) or ""
    marks = "|".join(_SECTIONS)
    body, *rest = re.split(rf"^({marks}):[ \n]", text, flags=re.MULTILINE)
    yield from (_code(" ".join(paragraph.split())) for paragraph in body.strip().split("\n\n"))
    for section, content in zip(rest[::2], rest[1::2], strict=True):
        if section in inside:
            continue
        lines = textwrap.dedent(content).strip().split("\n")
        if section not in _NAMES:
            yield f"{section}: {_code(' '.join(line.strip() for line in lines))}"
            continue
        entries: list[str] = []
        for line in lines:
            if line.startswith(" ") and entries:
                entries[-1] += " " + line.strip()
            else:
                entries.append(line)
        yield f"{section}:"
        yield "\n".join("- " + _NAME.sub(r"`\1`: ", _code(entry), count=1) for entry in entries)


def _code(text: str) -> str:
    """Text that Markdown shows as it is: underscores and stars outside code are no emphasis."""
    pieces = re.split(r"(`[^`]*`)", text)
    return "".join(p if p.startswith("`") else re.sub(r"([*<>\[\]])", r"\\\1", p) for p in pieces)


if __name__ == "__main__":
    write_atomic(PAGE, page())
