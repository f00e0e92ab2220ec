"""Errors on the command line: two lines on stderr and an exit code, no traceback."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping
from typing import Final, NoReturn

import click.exceptions as click_exceptions
import rich_click as click

from engines.errors import FaqError
from engines.extras import Extra, pip_install
from faq_deploy.launcher import started_processes

__all__ = ["ErrorGroup"]

# what Click raises where a group is called without a command, from 8.2 on
_NO_ARGUMENTS: Final[type[click.UsageError] | tuple[()]] = getattr(click_exceptions, "NoArgsIsHelpError", ())

_EXTRAS: Final[Mapping[str, Extra]] = {
    "torch": "torch",
    "torchvision": "torch",
    "lightning_fabric": "torch",
    "jinja2": "torch",
    "matplotlib": "torch",
    "scipy": "torch",
    "sklearn": "demo",
    "timm": "timm",
}
# what a machine without the extra can do instead
_INSTEAD: Final = {
    "eval": "; without it: `faq-deploy bundle RUN` here or elsewhere, then `faq-deploy eval --bundle FILE`."
}


class ErrorGroup(click.RichGroup):
    """Turns errors that a user can act on into two lines and an exit code."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        with _usage_errors():
            return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> object:
        with _usage_errors():
            return self._invoke(ctx)

    def _invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except FaqError as error:
            _fail(error.id, error.what, error.remedy, error.exit_code, told=error.told)
        except ModuleNotFoundError as error:
            extra = _EXTRAS.get((error.name or "").partition(".")[0])
            if extra is None:
                raise
            _fail(
                "not-installed",
                f"`faq-deploy {ctx.invoked_subcommand}` needs {error.name}, which is not installed.",
                f"{pip_install(extra)}{_INSTEAD.get(ctx.invoked_subcommand or '', '')}",
                3,
            )
        except ImportError as error:  # it is there, and a library that it needs is not
            package = (error.name or "").partition(".")[0]
            if package not in _EXTRAS:
                raise
            _fail(
                "not-installed",
                f"{package} is installed but can't be loaded: {str(error).splitlines()[0].rstrip('.')}.",
                f"install it again, or see `faq-deploy doctor`: pip install --force-reinstall {package}",
                3,
            )
        except BrokenPipeError:  # the reader of our output left
            raise
        except OSError as error:
            place = f"{error.filename}: " if error.filename else ""
            _fail(
                "file-access",
                f"{place}{error.strerror or error}.",
                "check that the file is there and may be read, and its disk.",
                2,
            )
        except KeyboardInterrupt:
            _fail("interrupted", "Stopped.", "nothing half-written was left behind; run the command again.", 130)


@contextlib.contextmanager
def _usage_errors() -> Iterator[None]:
    """Print what Click finds wrong with a command line in the same two lines as everything else."""
    try:
        yield
    except click.UsageError as error:
        if error.ctx is None or isinstance(error, _NO_ARGUMENTS):  # the latter is the help itself
            raise
        what = " ".join(error.format_message().split())
        _fail("usage", what if what.endswith((".", "?")) else f"{what}.", f"see `{error.ctx.command_path} --help`.", 2)


def _fail(name: str, what: str, remedy: str, code: int, *, told: bool = False) -> NoReturn:
    if not told and _is_first_to_tell():
        click.echo(f"Error: {what} [{name}]\nNote: {remedy}", err=True)
    sys.exit(code)


def _is_first_to_tell() -> bool:
    """Of several processes of one run, only one prints what all of them run into."""
    ranks = sys.modules.get("faq_deploy.ranks")  # not there yet: until now all have done the same
    if ranks is None:
        return os.environ.get("RANK", "0") == "0" or started_processes() == 1
    first: bool = ranks.is_first_to_tell()
    return first
