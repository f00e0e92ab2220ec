"""What a command line has wrong that can be seen before PyTorch is loaded, which takes seconds. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from engines.errors import InputError
from faq_deploy.architecture import require_weights
from faq_deploy.cli_loading import has_torch
from faq_deploy.data import require_place
from faq_deploy.launcher import started_processes
from faq_deploy.output_folder import check_output
from faq_deploy.recipe import load_recipe
from faq_deploy.starter_file import require_free
from faq_deploy.user_code import require_model_file

__all__ = ["look_at_model", "look_at_starter", "look_at_training", "require_model", "require_onnx"]

_SUFFIXES: Final = frozenset({".bin", ".ckpt", ".pt", ".pth", ".safetensors", ".tar"})


def look_at_training(model: str | None, options: Mapping[str, Any]) -> None:
    """Refuse what `quantize` and `train` would refuse later, in the same words.

    Args:
        model: as on the command line.
        options: of the command line, by name.

    Raises:
        InputError: a folder to write to that won't do, no model, or a model's file, weights, recipe or images that are
            not there.
    """
    if has_torch() and not options["resume"] and started_processes() == 1:  # of several processes one looks, later
        check_output(options["output"], force=options["force"])
        _look(model, options)


def look_at_starter(model: str, options: Mapping[str, Any]) -> None:
    """The same of `init`.

    Args:
        model: as on the command line.
        options: of the command line, by name.

    Raises:
        InputError: a file to write to that won't do; else as `look_at_training`.
    """
    if has_torch():
        require_free(options["output"], force=options["force"])
        _look(model, options)


def look_at_model(model: str, options: Mapping[str, Any]) -> None:
    """The same of `inspect`.

    Args:
        model: as on the command line.
        options: of the command line, by name.

    Raises:
        InputError: as `look_at_training`.
    """
    if has_torch():
        _look(model, options)


def require_model(model: str | None) -> str:
    """What MODEL is.

    Raises:
        InputError: none was named.
    """
    if not model:
        raise InputError("No MODEL was named.", "name one, such as torchvision:resnet18 or my_net.py:build.")
    return model


def require_onnx(path: Path) -> None:
    """Refuse a file to evaluate that is not there.

    Raises:
        InputError: it isn't.
    """
    if not path.exists():
        raise InputError(
            f"{path} does not exist.", "name an ONNX file that `faq_deploy.export` wrote, or a run's folder."
        )


def _look(model: str | None, options: Mapping[str, Any]) -> None:
    """At the model, and at what the verb has of recipe, weights and images."""
    spec = require_model(model)
    recipe, weights, data = (options.get(name) for name in ("recipe", "weights", "data"))
    if recipe:
        load_recipe(recipe)
    if ".py:" in spec:
        require_model_file(spec)
    if weights and _is_path(weights):
        require_weights(weights)
    if data:
        require_place(data)


def _is_path(weights: str) -> bool:
    """Whether no weights are published under such a name."""
    return "/" in weights or Path(weights).suffix in _SUFFIXES
