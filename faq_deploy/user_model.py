"""A user's own network: `path/file.py:factory`, run because the user named it."""

from __future__ import annotations

import contextlib
import difflib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

from torch import nn

from engines.errors import FaqError, InputError
from faq_deploy.architecture import Architecture, local_weights

__all__ = ["user_architecture"]


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
    file_name, _, factory_name = spec.rpartition(":")
    file = Path(file_name).expanduser()
    if not file.is_file():
        raise InputError(f"{file} does not exist, so there is no model {spec}.", "pass path/file.py:factory.")
    module = _run(file)
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
        with _failures_named(file, f"{factory_name}()"):
            made = factory() if classes is None else factory(num_classes=classes)
        if not isinstance(made, nn.Module):
            raise InputError(
                f"{spec} returned {type(made).__name__}, not a torch.nn.Module.", "return the model from the factory."
            )
        return made

    return Architecture(
        factory_name, build, takes_num_classes=takes_num_classes, weights=local_weights(weights), has_weights=True
    )


def _run(file: Path) -> ModuleType:
    name = f"faq_deploy_user_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise InputError(f"{file} is not a Python file.", "pass path/file.py:factory.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look for a module by its name
    with _failures_named(file, "the file"):
        spec.loader.exec_module(module)
    return module


@contextlib.contextmanager
def _failures_named(file: Path, what: str) -> Iterator[None]:
    """Make the file's folder importable, and turn what its code raises into one sentence with the line."""
    folder = str(file.resolve().parent)
    sys.path.insert(0, folder)
    try:
        yield
    except FaqError:
        raise
    except (Exception, SystemExit) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"{file}:{_line(file, error)}: {what} raised {type(error).__name__}{f': {reason}' if reason else ''}.",
            "correct the model's file; it must run by itself.",
        ) from error
    finally:
        if folder in sys.path:  # the code may have taken it out itself
            sys.path.remove(folder)


def _line(file: Path, error: BaseException) -> int:
    """The deepest line of the user's file that led to the error; 1 if none did."""
    own = file.resolve()
    if isinstance(error, SyntaxError) and error.filename and Path(error.filename).resolve() == own:
        return error.lineno or 1
    frames = reversed(traceback.extract_tb(error.__traceback__))
    return next((frame.lineno or 1 for frame in frames if Path(frame.filename).resolve() == own), 1)


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
    own = [key for key, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__]
    near = difflib.get_close_matches(name, own, n=3, cutoff=0.5) or own[:3]
    return InputError(
        f"{file} has no {name!r}.", f"it has {', '.join(near)}." if near else "pass path/file.py:factory."
    )
