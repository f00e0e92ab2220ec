"""A user's Python file, run because the user named it; what it raises becomes one sentence with the line."""

from __future__ import annotations

import contextlib
import difflib
import importlib.util
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

from engines.errors import FaqError, InputError

__all__ = ["failures_named", "named_in_file", "near_names", "require_model_file", "run_file"]


def run_file(file: Path, remedy: str) -> ModuleType:
    """The module that a Python file is.

    Args:
        file: it exists.
        remedy: what to do where it raises.

    Raises:
        InputError: it is no Python file, or its code raises.
    """
    name = f"faq_deploy_user_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise InputError(f"{file} is not a Python file.", "pass path/file.py:NAME.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look for a module by its name
    with failures_named(file, "the file", remedy):
        spec.loader.exec_module(module)
    return module


def require_model_file(spec: str) -> Path:
    """The file of a model of the user's own.

    Args:
        spec: `path/file.py:factory`.

    Raises:
        InputError: there is no such file.
    """
    file = Path(spec.rpartition(":")[0]).expanduser()
    if not file.is_file():
        raise InputError(f"{file} does not exist, so there is no model {spec}.", "pass path/file.py:factory.")
    return file


def named_in_file(spec: str, what: str, remedy: str) -> tuple[Callable[..., object], Path]:
    """The function or class that a command line names, and its file, which is run.

    Args:
        spec: `path/file.py:NAME`.
        what: it is wanted for, for messages.
        remedy: what to do where the file raises.

    Raises:
        InputError: no such file or name, or its code raises.
    """
    file_name, _, name = spec.rpartition(":")
    file = Path(file_name).expanduser()
    if not file_name.endswith(".py"):
        raise InputError(f"{spec!r} names no {what}: it is not of the form FILE.py:NAME.", "pass FILE.py:NAME.")
    if not file.is_file():
        raise InputError(f"{file} does not exist, so there are no {what} {spec}.", "pass FILE.py:NAME.")
    module = run_file(file, remedy)
    found = getattr(module, name, None)
    if found is not None and not callable(found):
        raise InputError(
            f"{file}: {name} is a {type(found).__name__}, not a function or class.",
            f"write `def make(): return {name}` and pass {file}:make.",
        )
    if not callable(found):
        near = near_names(module, name)
        raise InputError(
            f"{file} has no function or class {name!r}.", f"it has {', '.join(near)}." if near else "define it there."
        )
    return found, file


@contextlib.contextmanager
def failures_named(file: Path, what: str, remedy: str) -> Iterator[None]:
    """Make the file's folder importable, and turn what its code raises into one sentence with the line.

    Args:
        file: of the code that runs.
        what: of it runs.
        remedy: what to do about a failure.

    Raises:
        InputError: the code raised.
    """
    folder = str(file.resolve().parent)
    sys.path.insert(0, folder)
    try:
        yield
    except FaqError:
        raise
    except (Exception, SystemExit) as error:
        reason = " ".join(str(error).split())[:200]
        line = _line(file, error)
        place = str(file) if line is None else f"{file}:{line}"
        raise InputError(
            f"{place}: {what} raised {type(error).__name__}{f': {reason}' if reason else ''}.",
            remedy,
        ) from error
    finally:
        if folder in sys.path:  # the code may have taken it out itself
            sys.path.remove(folder)


def near_names(module: ModuleType, name: str) -> list[str]:
    """What a user's file defines that `name` may have meant, or else the first three and how many more there are."""
    own = [key for key, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__]
    return difflib.get_close_matches(name, own, n=3, cutoff=0.5) or [
        *own[:3],
        *([f"and {len(own) - 3} more"] if len(own) > 3 else []),
    ]


def _line(file: Path, error: BaseException) -> int | None:
    """The deepest line of the user's file that led to the error; None if none did, as where a call does not fit."""
    own = file.resolve()
    if isinstance(error, SyntaxError) and error.filename and Path(error.filename).resolve() == own:
        return error.lineno or 1
    frames = reversed(traceback.extract_tb(error.__traceback__))
    return next((frame.lineno or 1 for frame in frames if Path(frame.filename).resolve() == own), None)
