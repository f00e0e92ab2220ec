"""docs/errors.md: every error, from the source that raises it and docs_site/errors.toml.

python docs_site/errors_page.py
"""

from __future__ import annotations

import ast
import functools
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

from engines.error_ids import ERROR_IDS, error_id
from engines.files import write_atomic

__all__ = ["PAGE", "TEXTS", "Raised", "page", "raised"]

ROOT: Final = Path(__file__).resolve().parents[1]
PAGE: Final = ROOT / "docs" / "errors.md"
TEXTS: Final[dict[str, dict[str, str]]] = tomllib.loads((ROOT / "docs_site" / "errors.toml").read_text("utf-8"))

_HEAD: Final = """# Errors

Written by `docs_site/errors_page.py` from the source and `docs_site/errors.toml`; edit those, not this page.

An error is two lines on stderr: what is wrong, with its id in brackets, and after `Note:` what to do about it. There is
no traceback, and nothing half-written. From Python it is a `faq_deploy.FaqError` with `id`, `what` and `remedy`. The
exit code is 2, or where it says so 3 (this machine can't do it) or 130 (stopped). Ids stay as they are, words may
change.

Under each id are all sentences that have it, with names in `{}` for what differs.
"""
_CLASSES: Final = {
    "BadImage": "engines.preprocess",
    "BuilderRefusal": "engines.tensorrt",
    "CannotRunHere": "engines.errors",
    "FaqError": "engines.errors",
    "FolderInUse": "engines.folder_lock",
    "InputError": "engines.errors",
    "Interrupted": "faq_deploy.interrupt",
    "NewerFormat": "engines.errors",
    "NotInstalled": "engines.errors",
    "RankLost": "faq_deploy.ranks",
    "WriteError": "engines.errors",
}


@dataclass(frozen=True)
class Raised:
    """An error as the source makes it: its class, where that is, and its sentences, with `{}` around what differs.

    A sentence that is put together elsewhere is "".
    """

    kind: str
    place: str
    id: str
    what: str
    remedy: str


@functools.cache
def raised() -> tuple[Raised, ...]:
    """All errors that the packages make."""
    files = [path for package in ("engines", "faq_deploy") for path in sorted((ROOT / package).rglob("*.py"))]
    return tuple(found for path in files for found in _in_file(path))


def _in_file(path: Path) -> Iterator[Raised]:
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    tree = ast.parse(path.read_text("utf-8"))
    constants = dict(_constants(tree))
    for function, call in _calls(tree, "<module>"):
        name = call.func.id if isinstance(call.func, ast.Name) else ""
        if name in _CLASSES:
            which = error_id(f"{_CLASSES[name]}.{name}", module, function)
            sentences = [_sentence(argument, constants) for argument in call.args[:2]]
            yield Raised(name, f"{module}.{function}", which, *(sentences if len(sentences) == 2 else ("", "")))


def _constants(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Names of sentences at the top of a module."""
    for node in tree.body:
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value is not None:
            target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0]
            text = _sentence(node.value, {})
            if isinstance(target, ast.Name) and text:
                yield target.id, text


def _calls(node: ast.AST, function: str) -> Iterator[tuple[str, ast.Call]]:
    """Every call, and the function that it stands in."""
    for inner in ast.iter_child_nodes(node):
        if isinstance(inner, ast.Call):
            yield function, inner
        named = isinstance(inner, (ast.FunctionDef, ast.AsyncFunctionDef))
        yield from _calls(inner, inner.name if named else function)  # type: ignore[attr-defined]


def _sentence(node: ast.expr, constants: dict[str, str]) -> str:
    """A string with `{name}` for each value in it."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.Name):
        return constants.get(node.id, "")
    if isinstance(node, ast.JoinedStr):
        return "".join(_sentence(part, constants) for part in node.values)
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "pip_install":
        return f"pip install 'faq-deploy[{ast.literal_eval(node.args[0])}]'"  # as where it is installed
    if isinstance(node, ast.FormattedValue):
        if isinstance(node.value, ast.Name) and node.value.id in constants:
            return constants[node.value.id]
        inner = re.sub(r"\b(self|facts|manifest|error|options|run|images)\.", "", ast.unparse(node.value))
        word = re.match(r"_?([a-z][a-z_]*)(?![(\w])", inner)
        return "{" + (word[1] if word else "...") + "}"
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _sentence(node.left, constants) + _sentence(node.right, constants)
    if isinstance(node, ast.IfExp):
        return _sentence(node.body, constants)
    return ""


def page() -> str:
    """The text of docs/errors.md."""
    known = raised()
    rows = "".join(f"| [`{name}`](#{name}) | {_first(TEXTS[name]['cause'])} |\n" for name in ERROR_IDS)
    parts = [_HEAD, f"| id | what is wrong |\n| --- | --- |\n{rows}"]
    return "\n".join([*parts, *(_section(name, known) for name in ERROR_IDS)])


def _first(text: str) -> str:
    """Its first sentence."""
    return re.split(r"(?<=[.])\s|: ", text)[0].rstrip(".") + "."


def _section(name: str, known: tuple[Raised, ...]) -> str:
    text = TEXTS[name]
    parts = [f"## {name}", text["cause"], f"**Remedy.** {text['remedy']}"]
    if "shown" in text:
        parts.append(f"```\n{text['shown'].strip()}\n```")
    sentences = {one.what: one.remedy for one in known if one.id == name and one.what.strip("{.}")}
    if sentences:
        parts.append("\n".join(f"- {_shown(what)}" + _after(remedy) for what, remedy in sentences.items()))
    return "\n\n".join(parts) + "\n"


def _after(remedy: str) -> str:
    return f" *{_shown(remedy)}*" if remedy.strip("{.}") else ""


def _shown(sentence: str) -> str:
    """As Markdown: nothing in it is markup but what stands between backticks."""
    pieces = re.split(r"(`[^`]*`)", " ".join(sentence.split()))
    return "".join(p if p.startswith("`") else re.sub(r"([*<>\[\]_])", r"\\\1", p) for p in pieces)


if __name__ == "__main__":
    write_atomic(PAGE, page())
