"""A user's Python file, run because the user named it; what it raises becomes one sentence with the line."""

from __future__ import annotations

import contextlib
import difflib
import importlib.util
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from engines.errors import FaqError, InputError

__all__ = ["failures_named", "near_names", "run_file"]


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
        raise InputError(
            f"{file}:{_line(file, error)}: {what} raised {type(error).__name__}{f': {reason}' if reason else ''}.",
            remedy,
        ) from error
    finally:
        if folder in sys.path:  # the code may have taken it out itself
            sys.path.remove(folder)


def near_names(module: ModuleType, name: str) -> list[str]:
    """What a user's file defines that `name` may have meant, or else what it defines at all: three at most."""
    own = [key for key, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__]
    return difflib.get_close_matches(name, own, n=3, cutoff=0.5) or own[:3]


def _line(file: Path, error: BaseException) -> int:
    """The deepest line of the user's file that led to the error; 1 if none did."""
    own = file.resolve()
    if isinstance(error, SyntaxError) and error.filename and Path(error.filename).resolve() == own:
        return error.lineno or 1
    frames = reversed(traceback.extract_tb(error.__traceback__))
    return next((frame.lineno or 1 for frame in frames if Path(frame.filename).resolve() == own), 1)
