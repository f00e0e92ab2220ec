"""What `recipes` prints."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from faq_deploy.recipe import dump_toml, list_recipes, load_recipe

__all__ = ["listing", "one"]


def listing() -> None:
    """Every recipe with the first sentence of its description."""
    table = Table(box=None, pad_edge=False, show_header=False)
    for name in list_recipes():
        recipe = load_recipe(name)
        table.add_row(name, recipe.description.replace("\n", " ").partition(". ")[0].rstrip(".") + ".")
    console = Console()
    console.print(table, markup=False, highlight=False)
    console.print("Show one with `faq-deploy recipes show NAME`.", markup=False, highlight=False)


def one(name: str) -> None:
    """A recipe as TOML."""
    print(dump_toml(load_recipe(name)), end="")
