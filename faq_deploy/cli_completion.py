"""The command `completion`."""

from __future__ import annotations

import rich_click as click

from faq_deploy.completion import SHELLS, script

__all__ = ["completion"]


@click.command()
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the script that lets SHELL complete verbs, options, runs, engines and recipes.

    For bash the first line below goes into ~/.bashrc, for zsh the second one into ~/.zshrc.

    \b
    Examples:
      eval "$(faq-deploy completion bash)"
      eval "$(faq-deploy completion zsh)"
      faq-deploy completion fish \\
          > ~/.config/fish/completions/faq-deploy.fish
    """
    click.echo(script(shell, context.find_root().command))
