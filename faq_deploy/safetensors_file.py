"""The safetensors format: a JSON header with names, types, shapes and places, then the plain bytes of the tensors."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Final

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from engines.errors import InputError
from engines.json_text import read_json

__all__ = ["is_safetensors", "read_safetensors"]

_LENGTH_BYTES: Final = 8  # of the header, little-endian
_TYPES: Final = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid")

    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


def is_safetensors(path: Path) -> bool:
    """Whether the file looks like one: by its name, or by a header length that fits followed by JSON."""
    if path.suffix == ".safetensors":
        return True
    with path.open("rb") as stream:
        start = stream.read(_LENGTH_BYTES + 1)
    return start[_LENGTH_BYTES:] == b"{" and int.from_bytes(start[:_LENGTH_BYTES], "little") < path.stat().st_size


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Read all tensors of a .safetensors file, on the CPU.

    Args:
        path: the file.

    Returns:
        Names to tensors, in the file's order (by size of type, then name: not that of the model).

    Raises:
        InputError: the file is damaged, or holds a type that no CNN's weights have.

    Source:
        The format's description at huggingface.co/docs/safetensors.
    """
    content = bytearray(path.read_bytes())
    start = _LENGTH_BYTES + int.from_bytes(content[:_LENGTH_BYTES], "little")
    try:
        header = read_json(content[_LENGTH_BYTES:start])
        entries = {name: _Entry.model_validate(value) for name, value in header.items() if name != "__metadata__"}
    except (ValueError, ValidationError, AttributeError) as error:
        raise InputError(
            f"{path} is not a safetensors file, or its header is damaged.", "download or copy it again."
        ) from error
    return {name: _tensor(path, name, entry, content, start) for name, entry in entries.items()}


def _tensor(path: Path, name: str, entry: _Entry, content: bytearray, start: int) -> Tensor:
    if entry.dtype not in _TYPES:
        raise InputError(
            f"{path}: {name} is of type {entry.dtype}, which is not among {', '.join(_TYPES)}.",
            "pass float32 or half-precision weights.",
        )
    dtype = _TYPES[entry.dtype]
    first, end = entry.data_offsets
    count = math.prod(entry.shape)
    fits = 0 <= first <= end <= len(content) - start and min(entry.shape, default=0) >= 0
    if not fits or end - first != count * dtype.itemsize:
        raise InputError(f"{path} is cut short or damaged: {name} lies outside of it.", "download or copy it again.")
    if count == 0:
        return torch.zeros(entry.shape, dtype=dtype)
    # a copy, because offsets need not be multiples of the type's size
    return torch.frombuffer(content[start + first : start + end], dtype=dtype).reshape(entry.shape)
