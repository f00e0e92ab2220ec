"""A weights file on disk: what it is, and what it holds, read without running code from it."""

from __future__ import annotations

import argparse
import collections
import pathlib
import pickle
import pickletools
import re
import warnings
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, cast

import numpy as np
import torch

from engines.errors import InputError
from faq_deploy.safetensors_file import is_safetensors, read_safetensors

__all__ = ["read_weights_file"]

# What training scripts save beside the weights, and what can do no harm however a file calls it: parsed arguments,
# paths, counters and NumPy scalars. Plain containers, numbers, text and tensors are torch's own list.
_HARMLESS: Final[tuple[type, ...]] = (
    argparse.Namespace,
    collections.Counter,
    np.dtype,
    *(type(np.dtype(code)) for code in "?bBhHiIlLqQefd"),
)
# These have other names in other versions of Python and NumPy, and files carry the name.
_NUMPY_SCALAR: Final = cast(Callable[..., object], np.float64(0).__reduce__()[0])
_HARMLESS_NAMED: Final[tuple[tuple[Callable[..., object], str], ...]] = (
    (_NUMPY_SCALAR, "numpy.core.multiarray.scalar"),
    (_NUMPY_SCALAR, "numpy._core.multiarray.scalar"),
    (pathlib.PosixPath, "pathlib.PosixPath"),
    (pathlib.PosixPath, "pathlib._local.PosixPath"),
)

_AGAIN: Final = "download or copy it again."
_WANTED: Final = "pass what torch.save(model.state_dict(), path) wrote."
_FIRST_BYTES: Final = (  # first bytes, what such a file is, remedy
    (b"version https://git-lfs", "a Git-LFS pointer", "run `git lfs pull` in its repository."),
    (b"<", "a web page (a failed download?)", "download it again, and look at what the link gives."),
    (b"\x1f\x8b", "compressed with gzip", "unpack it with gunzip or tar first."),
    (b"\x89HDF", "an HDF5 file (Keras)", _WANTED),
    (b"\x93NUMPY", "a NumPy array", _WANTED),
)
_ZIP: Final = b"PK\x03\x04"
_PICKLE: Final = b"\x80"
_OLD_FORM_PICKLES: Final = 4  # a magic number, a version, facts about the machine, and then what was saved


def read_weights_file(path: Path) -> object:
    """Read a checkpoint as torch.save or safetensors wrote it, tensors on the CPU.

    Nothing in the file is run: only tensors, plain containers and a short list of harmless types are built.

    Args:
        path: a .pth, .pt, .ckpt, .bin (new or old form) or .safetensors file.

    Returns:
        What was saved: a state dict, or a dict that holds one somewhere.

    Raises:
        InputError: there is no such file, it is something else, it is damaged, or it could only be read by running
            code from it.
    """
    if not path.is_file():
        raise InputError(
            f"The weights {path} {'are a folder, not a file' if path.exists() else 'do not exist'}.",
            "check the path after --weights.",
        )
    with path.open("rb") as stream:
        start = stream.read(256)
    if is_safetensors(path):
        return read_safetensors(path)
    _refuse_other_kinds(path, start)
    if start.startswith(_ZIP):
        _refuse_other_archives(path)
    try:
        with torch.serialization.safe_globals([*_HARMLESS, *_HARMLESS_NAMED]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch, on protocols and storages of old files
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise _cannot_unpickle(path, error, start.startswith(_ZIP)) from error
    except Exception as error:
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise InputError(f"{path} is cut short or damaged ({reason.rstrip('.')}).", _AGAIN) from error


def _refuse_other_kinds(path: Path, start: bytes) -> None:
    if not start:
        raise InputError(f"{path} is empty.", _AGAIN)
    if path.suffix == ".onnx":
        raise InputError(f"{path} is an ONNX file, not PyTorch weights.", _WANTED)
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n")
    for first_bytes, kind, remedy in _FIRST_BYTES:
        if text.startswith(first_bytes):
            raise InputError(f"{path} is {kind}, not PyTorch weights.", remedy)
    if not start.startswith((_ZIP, _PICKLE)):
        raise InputError(f"{path} is not a file of PyTorch weights (it starts with {start[:8]!r}).", _WANTED)


def _refuse_other_archives(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except Exception as error:  # a damaged directory makes zipfile fail in a dozen ways
        raise InputError(f"{path} is cut short or damaged: the archive's directory can't be read.", _AGAIN) from error
    inner = {name.partition("/")[2] for name in names}
    if "constants.pkl" in inner:
        raise InputError(
            f"{path} is a TorchScript archive: it holds a program, not only weights.",
            "save the weights: torch.save(torch.jit.load(path).state_dict(), new_path).",
        )
    if "archive_format" in inner:
        raise InputError(f"{path} is a program saved by torch.export, not only weights.", _WANTED)
    if "data.pkl" not in inner:
        raise InputError(f"{path} is a zip archive that torch.save did not write.", _WANTED)


def _cannot_unpickle(path: Path, error: pickle.UnpicklingError, is_zip: bool) -> InputError:
    needed = _needed_types(path, str(error), is_zip)
    if not needed:
        return InputError(f"{path} is damaged, or is a pickle that torch.save did not write.", _AGAIN)
    remedy = (
        "where you trust it, load it in the project that made it and save the weights alone: "
        "torch.save(model.state_dict(), path)."
    )
    if any(name.startswith("torch.nn.") for name in needed):
        ours = [name for name in needed if not name.startswith("torch.")] or needed
        return InputError(
            f"{path} is a whole pickled model ({ours[0]}), not a state dict, and unpickling it could run any code.",
            remedy,
        )
    return InputError(f"{path} asks for {needed[0]} to be unpickled, which could run any code: not loaded.", remedy)


def _needed_types(path: Path, message: str, is_zip: bool) -> Sequence[str]:
    """Names that a file wants called or built and that are on no list. None of them is imported here."""
    named = re.findall(r"GLOBAL ([\w.]+)", message) or re.findall(r"[Uu]nsupported (?:class|type) ([\w.]+)", message)
    if not named:
        return []
    if not is_zip:
        asked = _names_in_old_form(path)
        return [*named, *(name for name in asked if name.startswith("torch.nn."))] if asked else []
    harmless = {f"{kind.__module__}.{kind.__qualname__}" for kind in _HARMLESS} | {name for _, name in _HARMLESS_NAMED}
    return sorted(set(torch.serialization.get_unsafe_globals_in_checkpoint(path)) - harmless) or named


def _names_in_old_form(path: Path) -> list[str]:
    """Names that a file of torch.save's old form asks for, or none where it ends too early. Reads, builds nothing."""
    names = []
    try:
        with path.open("rb") as stream:
            for _ in range(_OLD_FORM_PICKLES):
                operations = pickletools.genops(stream)
                names += [str(argument).replace(" ", ".") for code, argument, _ in operations if code.name == "GLOBAL"]
    except ValueError:
        return []
    return names
