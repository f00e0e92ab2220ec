"""The command `recipes`."""

from __future__ import annotations

import rich_click as click

from faq_deploy import completion
from faq_deploy.cli_options import json_option

__all__ = ["recipes"]


@click.group(invoke_without_command=True)
@json_option
@click.pass_context
def recipes(context: click.Context, as_json: bool) -> None:
    """List the recipes that come with the tool, those of the paper's rows with its figures, or show one.

    \b
    Examples:
      faq-deploy recipes
      faq-deploy recipes --json
      faq-deploy recipes show faq-4bit
      faq-deploy recipes show table2-growing-batch
    """
    from faq_deploy import show_recipes

    if context.invoked_subcommand is None:
        show_recipes.listing(as_json=as_json)
    elif as_json:
        raise click.UsageError("--json belongs behind show.")


@recipes.command(name="show")
@click.argument("name", shell_complete=completion.recipes)
@json_option
def show_recipe(name: str, as_json: bool) -> None:
    """The TOML of recipe NAME, ready to save and change, behind the command that runs it.

    \b
    Examples:
      faq-deploy recipes show faq-4bit
      faq-deploy recipes show table1-resnet50-4bit > mine.toml
    """
    from faq_deploy import show_recipes

    show_recipes.one(name, as_json=as_json)
