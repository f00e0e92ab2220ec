"""What a shell completes besides verbs, options and their choices: runs, engines, recipes, data. Needs Click alone."""

from __future__ import annotations

import glob
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import click
from click.shell_completion import CompletionItem, get_completion_class

__all__ = [
    "PROGRAM",
    "SHELLS",
    "data_places",
    "devices",
    "engines",
    "files",
    "recipes",
    "runs",
    "runs_or_models",
    "script",
]

PROGRAM: Final = "faq-deploy"
SHELLS: Final = ("bash", "zsh", "fish")

_RECIPES: Final = Path(__file__).parent / "recipes"
_MANIFEST: Final = "manifest.json"


def script(shell: str, command: click.Command) -> str:
    """The text that teaches a shell to complete `faq-deploy`.

    Args:
        shell: one of `SHELLS`.
        command: all of it.
    """
    found = get_completion_class(shell)
    assert found is not None
    return found(command, {}, PROGRAM, f"_{PROGRAM.replace('-', '_').upper()}_COMPLETE").source()


def recipes(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Recipes by name, and TOML files."""
    named = sorted(file.stem for file in _RECIPES.glob("*.toml"))
    return _plain([name for name in named if name.startswith(incomplete)]) or [CompletionItem(incomplete, type="file")]


def runs(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Run folders, here and one folder below; else any folder."""
    return _plain(_runs(incomplete)) or [CompletionItem(incomplete, type="dir")]


def runs_or_models(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Run folders and ONNX files; else any file."""
    models = sorted(glob.glob(f"{glob.escape(incomplete)}*.onnx"))
    return _plain([*_runs(incomplete), *models]) or [CompletionItem(incomplete, type="file")]


def engines(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The engines of the run that the command line names."""
    words = [ctx.params.get("run"), *ctx.args]  # in the latter while the option lacks its value
    folders = [Path(word, "engines") for word in words if word is not None]
    names = sorted(path.parent.name for folder in folders for path in folder.glob(f"*/{_MANIFEST}"))
    return _plain(name for name in names if name.startswith(incomplete))


def files(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Any file."""
    return [CompletionItem(incomplete, type="file")]


def devices(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Where to train; whether there is a GPU, only torch knows."""
    return _plain(name for name in ("auto", "cpu", "cuda") if name.startswith(incomplete))


def data_places(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Folders and shards, and the embedded data by its name."""
    if incomplete and "digits".startswith(incomplete):
        return _plain(["digits", *(f"{name}/" for name in _folders(incomplete))])
    return [CompletionItem(incomplete, type="file")]


def _runs(incomplete: str) -> list[str]:
    start = glob.escape(incomplete)
    found = (*glob.iglob(f"{start}*/{_MANIFEST}"), *glob.iglob(f"{start}*/*/{_MANIFEST}"))
    return sorted(name.removesuffix(f"/{_MANIFEST}") for name in found if "/engines/" not in name)


def _folders(incomplete: str) -> list[str]:
    return sorted(name.rstrip("/") for name in glob.iglob(f"{glob.escape(incomplete)}*/"))


def _plain(names: Iterable[str]) -> list[CompletionItem]:
    return [CompletionItem(name) for name in names]
