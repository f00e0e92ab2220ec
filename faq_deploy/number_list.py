"""Numbers as the command line writes them, for commands with and without torch."""

from __future__ import annotations

from engines.errors import InputError

__all__ = ["numbers"]


def numbers(option: str, text: str | None) -> tuple[float, ...] | None:
    """The numbers of `--mean` or `--std`, an InputError if they are none."""
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        example = "0.485,0.456,0.406" if option == "--mean" else "0.229,0.224,0.225"
        raise InputError(f"{option} {text} is not a list of numbers.", f"write {option} {example}") from error
