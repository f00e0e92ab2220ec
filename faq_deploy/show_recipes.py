"""What `recipes` prints."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import textwrap
from collections.abc import Sequence
from typing import Final

from faq_deploy.recipe import Recipe, dump_toml, list_recipes, load_recipe
from faq_deploy.recipe_command import run_command

__all__ = ["listing", "one"]

_PAPER: Final = (
    "The paper is J. L. McKinstry et al., Discovering Low-Precision Networks Close to Full-Precision Networks for "
    "Efficient Embedded Inference (arXiv:1809.04191, submitted to ICLR 2019)."
)

# titles, and how the rows of a group begin
_GROUPS: Final = {
    "Table 1, ImageNet": ("Table 1",),
    "Table 2 and sections 4.2 and 4.3, ImageNet: ResNet-18 at 4 bits": ("Table 2", "4.2", "4.3"),
    "Section 4.9, CIFAR-10": ("4.9",),
}
_LINE: Final = 116  # of a description in TOML
_LIST: Final = re.compile(r'\[\n((?:    (?:\d+|"\w+"),\n)+)\]')  # of numbers or of single words


def listing(*, as_json: bool) -> None:
    """Every recipe: those of the paper's rows with its figures, others with the first sentence of their description."""
    recipes = [load_recipe(name) for name in list_recipes()]
    if as_json:
        print(json.dumps([_facts(recipe) for recipe in recipes], indent=2))
        return
    _start_with([recipe for recipe in recipes if not recipe.paper.row])
    print("\nRows of the paper: top-1 in percent as printed there, float -> quantized.")
    for title, beginnings in _GROUPS.items():
        print(f"\n{title}")
        own = [recipe for recipe in recipes if recipe.paper.row.startswith(beginnings)]
        for recipe in sorted(own, key=lambda recipe: _natural(recipe.paper.row)):
            print(f"  {recipe.name:<30}{_figures(recipe):<16}{recipe.paper.row}".rstrip())
    print()
    for text in (_PAPER, "Each with its command, and how the paper was read: `faq-deploy recipes show NAME`."):
        print(textwrap.fill(text, _width(), break_on_hyphens=False))


def one(name: str, *, as_json: bool) -> None:
    """A recipe as TOML, after the command that runs it, or both as JSON."""
    recipe = load_recipe(name)
    command = run_command(recipe, name)
    if as_json:
        print(json.dumps({"command": command} | recipe.model_dump(mode="json"), indent=2))
        return
    lines = textwrap.wrap(_PAPER, _LINE, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False)
    if recipe.paper.row:
        lines += [f"# {recipe.paper.row}: {_figures(recipe)} (top-1 in percent, as printed)"]
    if recipe.paper.readings:
        lines += [f"# How it was read (docs/readings.md): {', '.join(recipe.paper.readings)}"]
    lines += ["#", f"# {shlex.join(command)}", *(f"# {text}" for text in _placeholders(command)), "#"]
    print("\n".join(lines))
    print(_readable(dump_toml(recipe)), end="")


def _start_with(recipes: Sequence[Recipe]) -> None:
    width = max(len(recipe.name) for recipe in recipes) + 4
    print("To start with")
    for recipe in recipes:
        text = recipe.description.replace("\n", " ").partition(". ")[0].rstrip(".") + "."
        begin, indent = f"  {recipe.name}".ljust(width), " " * width
        print(textwrap.fill(text, _width(), initial_indent=begin, subsequent_indent=indent, break_on_hyphens=False))


def _facts(recipe: Recipe) -> dict[str, object]:
    return {
        "name": recipe.name,
        "description": recipe.description,
        "bits": recipe.bits,
        "target": recipe.target,
        "epochs": recipe.training.epochs,
        "paper": recipe.paper.model_dump(mode="json") if recipe.paper.row else None,
        "command": run_command(recipe),
    }


def _figures(recipe: Recipe) -> str:
    """The paper's, such as `69.76 -> 70.02`; a net from scratch has no first one, a float net no second."""
    paper = recipe.paper
    if paper.top1 is None:
        return ""
    start = "random" if paper.float_top1 is None else f"{paper.float_top1:.2f}"
    return f"{start} -> {paper.top1:.2f}"


def _placeholders(command: Sequence[str]) -> list[str]:
    """What stands for something of the user's in a command."""
    said = {
        "MODEL": "MODEL: torchvision:NAME, timm:NAME, builtin:NAME or path/file.py:factory.",
        "FILE": "FILE: your checkpoint.",
        "IMAGENET1K_V1": "IMAGENET1K_V1: published weights, downloaded; or the file of them.",
        "DIR": "DIR: your images, train/ and val/ with a folder for each class.",
        "cifar10:DIR": "DIR: CIFAR-10, the Python version, unpacked.",
        "runs/cifar-float/float.pth": "The weights: what `train` with recipe cifar-float leaves.",
        "runs/digits-float/float.pth": "The weights: what `train` with recipe digits-float leaves.",
    }
    return [said[word] for word in command if word in said]


def _readable(toml: str) -> str:
    """The same TOML, with lists on one line and a long description on several."""
    lines = _LIST.sub(lambda found: f"[{', '.join(found[1].replace(',', '').split())}]", toml).splitlines(keepends=True)
    start = 'description = "'
    for index, line in enumerate(lines):
        if line.startswith(start) and len(line) > _LINE:
            text = line[len(start) : -2]  # escaped as a multi-line string wants it, too
            plain = text.replace('\\"', '"')
            if "\\" not in plain and '"""' not in plain and not plain.endswith('"'):
                text = plain
            parts = textwrap.wrap(text, _LINE, break_long_words=False, break_on_hyphens=False)
            if " ".join(parts) == text:
                lines[index] = 'description = """\\\n' + " \\\n".join(parts) + '"""\n'
            break
    return "".join(lines)


def _natural(text: str) -> list[str | int]:
    """Sorts ResNet-18 before ResNet-152."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", text)]


def _width() -> int:
    return min(shutil.get_terminal_size().columns, 120)
