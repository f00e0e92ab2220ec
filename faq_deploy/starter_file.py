"""A starter recipe as commented TOML, and the commands that use it."""

from __future__ import annotations

import json
import shlex
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from engines.engine_commands import build_words, eval_words
from engines.errors import InputError
from engines.host import Host
from faq_deploy.starter_rules import Choice

if TYPE_CHECKING:
    from faq_deploy.new_run import QuantizeOptions

__all__ = ["next_commands", "require_free", "starter_toml"]

_WIDTH: Final = 116


def starter_toml(choices: Sequence[Choice], found: Sequence[str], commands: Sequence[Sequence[str]]) -> str:
    """The text of the file.

    Args:
        choices: in order; those without a section first.
        found: sentences about what was looked at.
        commands: what to type next, each as words.

    Returns:
        TOML that `load_recipe` takes.
    """
    lines = [*_comment("Written by `faq-deploy init`. Every value may be changed; `faq-deploy recipes show faq-8bit`"),
             *_comment("shows a recipe with all sections.")]  # fmt: skip
    lines += ["#", *(line for sentence in found for line in _comment(sentence, hanging=True))]
    lines += ["#", *(f"#   {_printable(shlex.join(words))}" for words in commands)]
    section = ""
    for choice in choices:
        own, _, key = choice.key.rpartition(".")
        if own != section:
            lines += ["", f"[{own}]"]
            section = own
        elif not section:
            lines.append("")
        lines += [*_comment(f"{choice.reason}."), f"{key} = {json.dumps(choice.value)}"]
    return "\n".join(lines) + "\n"


def next_commands(
    options: QuantizeOptions, name: str, float_recipe: str | None, target: object, host: Host
) -> tuple[tuple[str, ...], ...]:
    """What to type after `init`, to the verdict.

    Args:
        options: of `init`, with what it found out about the images.
        name: of the model, for the run's folder.
        float_recipe: to train by, where there are no weights; else None.
        target: of the recipe.
        host: this machine, which `build` and `eval` are for.
    """
    run, weights = f"runs/{name}", options.weights
    common = [options.model or "MODEL", *_data_words(options)]
    trainings = []
    if float_recipe is not None:
        trainings = [("faq-deploy", "train", *common, "--recipe", float_recipe, "-o", f"{run}-float")]
        weights = f"{run}-float/float.pth"
    words = ["faq-deploy", "quantize", common[0], *([] if weights is None else ["--weights", weights])]
    if options.num_classes is not None:
        words += ["--num-classes", str(options.num_classes)]
    words += ["--ema"] * options.prefer_ema
    words += [*common[1:], "--recipe", str(options.output), "-o", run]
    build = build_words(run, target, host)
    steps = ["build/tensorrt-rtx"] if "tensorrt-rtx" in build else []
    return (*trainings, tuple(words), ("faq-deploy", "export", run), build, eval_words(run, steps, host))


def require_free(path: Path, *, force: bool) -> None:
    """Refuse a recipe file that can't be written.

    Args:
        path: of the file.
        force: whether one that is there may be replaced.

    Raises:
        InputError: it is named otherwise, is a folder, or is there and may not be replaced.
    """
    if path.suffix != ".toml":
        raise InputError(f"{path} is not named as a TOML file.", f"pass -o {path.name or 'recipe'}.toml.")
    if path.is_dir():
        raise InputError(f"{path} is a folder.", "pass -o with the name of a file.")
    if path.exists() and not force:
        raise InputError(f"{path} exists already.", "pass --force to replace it, or another name with -o.")


def _data_words(options: QuantizeOptions) -> list[str]:
    data = options.data
    given = {
        "--data": data.data,
        "--train-fraction": data.train_fraction,
        "--class-order": data.class_order,
        "--resize": data.resize,
        "--crop": data.crop,
        "--mean": _numbers(data.mean),
        "--std": _numbers(data.std),
        "--pixel-scale": data.scale,
        "--interpolation": data.interpolation,
        "--color": data.color,
        "--orientation": data.orientation,
        "--on-bad-image": None if data.on_bad == "error" else data.on_bad,
    }
    return [word for option, value in given.items() if value is not None for word in (option, f"{value}")]


def _numbers(values: tuple[float, ...] | None) -> str | None:
    return None if values is None else ",".join(map(str, values))


def _comment(text: str, *, hanging: bool = False) -> list[str]:
    indent = "#   " if hanging else "# "
    return textwrap.wrap(
        _printable(text),
        _WIDTH,
        initial_indent="# ",
        subsequent_indent=indent,
        break_on_hyphens=False,
        break_long_words=False,
    )


def _printable(text: str) -> str:
    """A name of a file may hold a line break, which would end the comment."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)
