"""docs/recipes.md, from the recipes that come with the tool.

python docs_site/recipes_page.py
"""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import tomli_w
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from engines.files import write_atomic
from faq_deploy.recipe import Recipe, list_recipes, load_recipe, recipe_keys
from faq_deploy.recipe_command import run_command

__all__ = ["PAGE", "page"]

PAGE: Final = Path(__file__).resolve().parents[1] / "docs" / "recipes.md"

_HEAD: Final = """# Recipes

Written by `docs_site/recipes_page.py` from the recipes; edit those, not this page. A recipe is every choice of a run as
TOML. `--recipe` takes the name of one that comes with the tool, or a file of yours:

```
faq-deploy recipes                                   # all of them
faq-deploy recipes show faq-8bit > mine.toml         # one with every key, to change
faq-deploy inspect builtin:digits-resnet --recipe mine.toml
```

`--set KEY=VALUE` changes one key of it, such as `--set training.lr=0.001`. [Keys](#keys) lists them all. What a run was
made with lies in it as `recipe.toml`. A key that is none, or a value that can't be, is refused before anything starts
([recipe](errors.md#recipe)).
"""
_NOT_CHOICES: Final = {"name", "description", "paper"}


def page() -> str:
    """The text of docs/recipes.md."""
    recipes = {name: load_recipe(name) for name in list_recipes()}
    first = {name: recipe for name, recipe in recipes.items() if not recipe.paper.row}
    paper = {name: recipe for name, recipe in recipes.items() if recipe.paper.row}
    parts = [_HEAD, "## To start with\n", *(_section(name, recipe) for name, recipe in first.items())]
    parts += ["## Rows of the paper\n", _rows(paper), *(_section(name, recipe) for name, recipe in paper.items())]
    return "\n".join([*parts, "## Keys\n", _keys()])


def _section(name: str, recipe: Recipe) -> str:
    """Its text, the command that runs it, and what it sets otherwise than by default."""
    own = recipe.model_dump(mode="json", exclude_defaults=True, exclude=_NOT_CHOICES)
    return "\n\n".join(
        [
            f"### {name}",
            _plain(" ".join(recipe.description.split())),
            f"```\n{shlex.join(run_command(recipe))}\n```",
            f"```toml\n{tomli_w.dumps(own).strip()}\n```\n",
        ]
    )


def _rows(recipes: dict[str, Recipe]) -> str:
    """The paper's figures, top-1 in percent."""
    lines = ["Top-1 in percent, as the paper prints it. [Results](results.md) has ours where they were run.\n"]
    lines += ["| recipe | row | float | quantized |", "| --- | --- | --- | --- |"]
    for name, recipe in recipes.items():
        figures = [_figure(recipe.paper.float_top1), _figure(recipe.paper.top1)]
        lines.append(f"| [{name}](#{name}) | {recipe.paper.row} | {' | '.join(figures)} |")
    return "\n".join(lines) + "\n"


def _figure(top1: float | None) -> str:
    return "" if top1 is None else f"{top1:.2f}"


def _keys() -> str:
    """Every key, its default, and what it means."""
    lines = ["| key | default | meaning |", "| --- | --- | --- |"]
    for key, meaning in recipe_keys().items():
        section, _, field = key.rpartition(".")
        if section != "paper" and key not in _NOT_CHOICES:
            lines.append(f"| `{key}` | {_default(section, field)} | {_plain(meaning)} |")
    return "\n".join(lines) + "\n"


def _default(section: str, field: str) -> str:
    model: type[BaseModel] = Recipe
    if section:
        inner = Recipe.model_fields[section].annotation
        assert isinstance(inner, type) and issubclass(inner, BaseModel)
        model = inner
    found: FieldInfo = model.model_fields[field]
    return "required" if found.is_required() else f"`{json.dumps(found.get_default(call_default_factory=True))}`"


def _plain(text: str) -> str:
    """As Markdown: no emphasis, and no cell of a table that ends early."""
    pieces = re.split(r"(`[^`]*`)", text)
    return "".join(p if p.startswith("`") else re.sub(r"([*<>\[\]|])", r"\\\1", p) for p in pieces)


if __name__ == "__main__":
    write_atomic(PAGE, page())
