"""The errors a user can meet: one sentence that names the thing, one that says what to do."""

from __future__ import annotations

import sys

from engines.error_ids import error_id

__all__ = ["CannotRunHere", "FaqError", "InputError", "NewerFormat", "NotInstalled", "WriteError"]


class FaqError(Exception):
    """A failure that the user can act on. The CLI prints it without a traceback.

    Args:
        what: one sentence that names the thing and what is wrong with it.
        remedy: what to do about it; printed after `Note:`.

    Attributes:
        id: a word for what it is about, by the place that raises it, such as "weights-file"; docs/errors.md lists all.
        told: another process of the same run says it; the CLI exits without a word.
    """

    exit_code = 2
    told = False

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(what, remedy)
        self.what = what
        self.remedy = remedy
        raised_in = sys._getframe(1)
        own = type(self)
        self.id = error_id(
            f"{own.__module__}.{own.__name__}", raised_in.f_globals["__name__"], raised_in.f_code.co_name
        )

    def __str__(self) -> str:
        return f"{self.what}\nNote: {self.remedy}"


class InputError(FaqError):
    """Bad usage or bad input (exit code 2)."""


class WriteError(InputError):
    """A file could not be written: a full disk, or no permission (exit code 2)."""


class NewerFormat(InputError):
    """A file of a newer faq-deploy (exit code 2)."""


class CannotRunHere(FaqError):
    """The environment lacks what is needed: a GPU, TensorRT, a package (exit code 3)."""

    exit_code = 3


class NotInstalled(CannotRunHere):
    """A package that is needed is absent (exit code 3)."""
