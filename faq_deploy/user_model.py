"""A user's own network: `path/file.py:factory`, run because the user named it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Final

from torch import nn

from engines.errors import InputError
from faq_deploy.architecture import Architecture, local_weights
from faq_deploy.user_code import failures_named, near_names, require_model_file, run_file

__all__ = ["user_architecture"]

_REMEDY: Final = "correct the model's file; it must run by itself."


def user_architecture(spec: str, weights: str | None) -> Architecture:
    """The model that a function (or class) in a Python file makes.

    The file's folder is importable while it runs, as with `python file.py`. The factory is called without arguments;
    one that has a parameter `num_classes` gets the count where one is known.

    Args:
        spec: `path/file.py:factory`.
        weights: a file to load into it; None and `random` take the model as the factory makes it.

    Returns:
        The architecture, named like the factory; the file has run, the factory has not.

    Raises:
        InputError: no such file or factory, or the code raises: with file, line and reason. Building may raise it too.
    """
    file, factory_name = require_model_file(spec), spec.rpartition(":")[2]
    module = run_file(file, _REMEDY)
    factory = getattr(module, factory_name, None)
    if not callable(factory) or isinstance(factory, nn.Module):
        raise _no_factory(module, file, factory_name, factory)
    takes_num_classes = _takes_num_classes(factory)

    def build(classes: int | None) -> nn.Module:
        if classes is not None and not takes_num_classes:
            raise InputError(
                f"{spec} has no parameter num_classes, so it can't be made for {classes} classes.",
                "add the parameter, or leave off --num-classes.",
            )
        with failures_named(file, f"{factory_name}()", _REMEDY):
            made = factory() if classes is None else factory(num_classes=classes)
        if not isinstance(made, nn.Module):
            raise InputError(
                f"{spec} returned {type(made).__name__}, not a torch.nn.Module.", "return the model from the factory."
            )
        return made

    return Architecture(
        factory_name, build, takes_num_classes=takes_num_classes, weights=local_weights(weights), has_weights=True
    )


def _takes_num_classes(factory: Callable[..., object]) -> bool:
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):
        return False  # some callables written in C have no signature
    return any(p.name == "num_classes" or p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)


def _no_factory(module: ModuleType, file: Path, name: str, found: object) -> InputError:
    if found is not None:
        return InputError(
            f"{file}: {name} is a {type(found).__name__}, not a function that makes the model.",
            f"write `def make(): return {name}` and pass {file}:make.",
        )
    near = near_names(module, name)
    return InputError(
        f"{file} has no {name!r}.", f"it has {', '.join(near)}." if near else "pass path/file.py:factory."
    )
