"""What `recipes` prints."""

from __future__ import annotations

from typing import Final

from rich.console import Console
from rich.table import Table

from faq_deploy.recipe import dump_toml, list_recipes, load_recipe

__all__ = ["listing", "one"]

_PAPER: Final = (
    "The paper is J. L. McKinstry et al., Discovering Low-Precision Networks Close to Full-Precision Networks for "
    "Efficient Embedded Inference (arXiv:1809.04191, submitted to ICLR 2019)."
)


def listing() -> None:
    """Every recipe with the first sentence of its description."""
    table = Table(box=None, pad_edge=False, show_header=False)
    for name in list_recipes():
        recipe = load_recipe(name)
        table.add_row(name, recipe.description.replace("\n", " ").partition(". ")[0].rstrip(".") + ".")
    console = Console()
    console.print(table, markup=False, highlight=False)
    console.print(_PAPER, markup=False, highlight=False)
    console.print("Show one with `faq-deploy recipes show NAME`.", markup=False, highlight=False)


def one(name: str) -> None:
    """A recipe as TOML, with the paper that its sections refer to."""
    recipe = load_recipe(name)
    print(f"# {_PAPER}\n{dump_toml(recipe)}", end="")
