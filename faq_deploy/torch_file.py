"""Our own torch files: tensors, numbers and strings, so that reading one never unpickles anything."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from engines.errors import InputError, NewerFormat

__all__ = ["read_torch_file", "write_torch_file"]


def write_torch_file(path: Path, record: Mapping[str, object]) -> None:
    """Write a record to a file that has no name yet, as in `atomic_path`.

    Args:
        path: the file.
        record: tensors, numbers, strings, and lists and dicts of them.

    Raises:
        OSError: the disk is full.
    """
    with path.open("wb") as stream:
        try:
            torch.save(dict(record), stream)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):  # torch's archive writer hides a full disk in a RuntimeError
                raise error.__context__ from error
            raise


def read_torch_file(path: Path, newest: int, remedy: str) -> dict[str, object]:
    """Read a record, its tensors on the CPU.

    Args:
        path: the file.
        newest: highest format that this version reads.
        remedy: what to do about a damaged file.

    Returns:
        The record without its `format`.

    Raises:
        InputError: damaged, not such a file, or from a newer version.
    """
    damaged = InputError(f"{path} is damaged, or not a file of faq-deploy.", remedy)
    try:
        record = torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # torch raises whatever its unpickler or archive reader trips over
        raise damaged from error
    found = record.pop("format", None) if isinstance(record, dict) else None
    if not isinstance(record, dict) or not isinstance(found, int):
        raise damaged
    if found > newest:
        raise NewerFormat(
            f"{path} was made by a newer faq-deploy (format {found}, this one reads up to {newest}).",
            "upgrade faq-deploy, or make it again with this version.",
        )
    return record
