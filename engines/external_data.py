"""Weights that an ONNX file keeps in other files: found, and only beside it, before anything reads them."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import onnx

from engines.errors import InputError
from engines.files import sha256_of

__all__ = ["data_files", "sha256_with_data"]

_FOUR_BITS: Final = (onnx.TensorProto.INT4, onnx.TensorProto.UINT4)


def data_files(model: onnx.ModelProto, path: Path) -> tuple[Path, ...]:
    """The files that hold a model's weights beside the ONNX file.

    Args:
        model: as loaded without external data.
        path: the ONNX file; locations are relative to its folder.

    Returns:
        Each file once, in the order of the tensors; empty where the ONNX file holds everything itself.

    Raises:
        InputError: one of them lies outside the folder, is missing, or is shorter than the tensors in it.
    """
    files: dict[Path, None] = {}
    for tensor in _external(model):
        entries = {entry.key: entry.value for entry in tensor.external_data}
        location = entries.get("location", "")
        file = path.parent / location
        what = f"{path} keeps weights in another file that could not be read: {file}"
        if not location or not _inside(file, path.parent):
            raise InputError(f"{what} is a link, or lies outside the folder.", "put that file beside the ONNX file.")
        if not file.is_file():
            raise InputError(f"{what} is missing.", "put that file, whole, beside the ONNX file.")
        size, needed = file.stat().st_size, _end(tensor, entries)
        if size < needed:
            raise InputError(
                f"{what} is cut short ({size:,} of at least {needed:,} bytes).",
                "put that file, whole, beside the ONNX file.",
            )
        files[file] = None
    return tuple(files)


def sha256_with_data(path: Path, files: tuple[Path, ...]) -> str:
    """One hash of an ONNX file and its data files; the ONNX file's own where there are none.

    Args:
        path: the ONNX file.
        files: as `data_files` gives them.

    Returns:
        Hexadecimal digits.
    """
    own = sha256_of(path)
    if not files:
        return own
    lines = [own, *(f"{file.relative_to(path.parent).as_posix()} {sha256_of(file)}" for file in sorted(files))]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _external(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    held = [attribute.t for node in model.graph.node for attribute in node.attribute if attribute.HasField("t")]
    for tensor in (*model.graph.initializer, *held):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            yield tensor


def _inside(file: Path, folder: Path) -> bool:
    """Whether a path stays in a folder, also behind links."""
    return not file.is_symlink() and file.resolve().is_relative_to(folder.resolve())


def _end(tensor: onnx.TensorProto, entries: dict[str, str]) -> int:
    """The last byte of a tensor in its file."""
    start = entries.get("offset", "0")
    length = entries.get("length", "")
    count = math.prod(tensor.dims)
    if tensor.data_type in _FOUR_BITS:
        whole = -(-count // 2)
    else:
        whole = count * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    return (int(start) if start.isdigit() else 0) + (int(length) if length.isdigit() else whole)
