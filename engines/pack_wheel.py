"""The wheel of the installed faq-deploy, made without build tools: what a bundle brings to a machine that has none."""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import importlib.util
import io
import re
import zipfile
from collections.abc import Mapping
from email.parser import Parser
from pathlib import Path
from typing import Final, NamedTuple

from engines.errors import CannotRunHere

__all__ = ["Wheel", "pack_wheel"]

_DISTRIBUTION: Final = "faq-deploy"
_MODULES: Final = ("cli",)
# what each package holds beside its *.py, as pyproject.toml lists it
_PACKAGES: Final[Mapping[str, tuple[str, ...]]] = {
    "calibration": ("py.typed",),
    "engines": ("py.typed",),
    "faq_deploy": ("py.typed", "recipes/*.toml", "templates/*.j2"),
}
_TAG: Final = "py3-none-any"
_DAY: Final = (1980, 1, 1, 0, 0, 0)  # the first that zip knows: the same files give the same wheel
_REMEDY: Final = "install faq-deploy with pip, from a wheel or with `pip install -e .`, and bundle again."


class Wheel(NamedTuple):
    """A wheel.

    Attributes:
        name: its file name, such as `faq_deploy-0.1.0-py3-none-any.whl`: pip takes it under no other.
        data: the zip archive.
    """

    name: str
    data: bytes


def pack_wheel() -> Wheel:
    """Pack what is installed here, editable or not.

    The metadata are those of the install: after a change to pyproject.toml an editable one has to be installed again.

    Returns:
        A pure Python wheel; the same files give the same bytes.

    Raises:
        CannotRunHere: faq-deploy is not installed, or a part of it is missing.

    Source:
        Python Packaging User Guide, "Binary distribution format" and "Recording installed projects".
    """
    installed = _installed()
    metadata = installed.read_text("METADATA") or installed.read_text("PKG-INFO")
    entry_points = installed.read_text("entry_points.txt")
    if metadata is None or entry_points is None:
        raise CannotRunHere("The install of faq-deploy is damaged: its metadata are missing.", _REMEDY)
    code = _code()
    folder = f"{_DISTRIBUTION.replace('-', '_')}-{installed.version}.dist-info"
    described = {
        f"{folder}/METADATA": metadata.encode(),
        f"{folder}/WHEEL": _wheel_file(installed.version),
        f"{folder}/entry_points.txt": entry_points.encode(),
        f"{folder}/top_level.txt": "".join(f"{name}\n" for name in sorted((*_MODULES, *_PACKAGES))).encode(),
        **{f"{folder}/licenses/{name}": text for name, text in _licences(installed, metadata).items()},
    }
    return Wheel(f"{folder.removesuffix('.dist-info')}-{_TAG}.whl", _zipped({**code, **described}, f"{folder}/RECORD"))


def _installed() -> importlib.metadata.Distribution:
    """The install's record; before it, on sys.path, may lie what setuptools left in a source tree, older perhaps."""
    found = list(importlib.metadata.distributions(name=_DISTRIBUTION))
    if not found:
        raise CannotRunHere("faq-deploy is not installed as a package, so that no wheel can be made of it.", _REMEDY)
    return next((record for record in found if record.read_text("METADATA") is not None), found[0])


def _code() -> dict[str, bytes]:
    """Every module and data file, by its path in the wheel."""
    found: dict[str, bytes] = {}
    for name in _MODULES:
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            raise _incomplete(name)
        found[f"{name}.py"] = Path(spec.origin).read_bytes()
    for name, patterns in _PACKAGES.items():
        root = _folder(name)
        paths = [*root.rglob("*.py"), *(path for pattern in patterns for path in root.glob(pattern))]
        for path in paths:
            found[f"{name}/{path.relative_to(root).as_posix()}"] = path.read_bytes()
    return found


def _folder(package: str) -> Path:
    spec = importlib.util.find_spec(package)  # of a top-level name: nothing is imported
    if spec is None or not spec.submodule_search_locations:
        raise _incomplete(package)
    return Path(next(iter(spec.submodule_search_locations)))


def _licences(installed: importlib.metadata.Distribution, metadata: str) -> dict[str, bytes]:
    """The licence files that the metadata name: in the install, or else beside the packages (a source tree)."""
    names = Parser().parsestr(metadata, headersonly=True).get_all("License-File") or []
    found: dict[str, bytes] = {}
    for name in names:
        text = next((t for f in (f"licenses/{name}", name) if (t := installed.read_text(f)) is not None), None)
        beside = _folder("engines").parent / name
        if text is None and not beside.is_file():
            raise _incomplete(name)
        found[name] = text.encode() if text is not None else beside.read_bytes()
    return found


def _wheel_file(version: str) -> bytes:
    lines = ("Wheel-Version: 1.0", f"Generator: faq-deploy ({version})", "Root-Is-Purelib: true", f"Tag: {_TAG}")
    return "".join(f"{line}\n" for line in lines).encode()


def _zipped(files: Mapping[str, bytes], record: str) -> bytes:
    """The archive: code first, then what describes it, RECORD last, as installers prefer it."""
    ordered = sorted(files, key=lambda name: (".dist-info/" in name, name))
    lines = [f"{_field(name)},sha256={_digest(files[name])},{len(files[name])}\n" for name in ordered]
    lines.append(f"{_field(record)},,\n")
    whole = {**{name: files[name] for name in ordered}, record: "".join(lines).encode()}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in whole.items():
            info = zipfile.ZipInfo(name, _DAY)
            info.compress_type, info.create_system, info.external_attr = zipfile.ZIP_DEFLATED, 3, 0o100644 << 16
            archive.writestr(info, data)
    return buffer.getvalue()


def _digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()


def _field(name: str) -> str:
    """A name as RECORD, a CSV file, wants it."""
    return '"' + name.replace('"', '""') + '"' if re.search(r'[",\n]', name) else name


def _incomplete(name: str) -> CannotRunHere:
    return CannotRunHere(f"The install of faq-deploy is incomplete: {name} is missing.", _REMEDY)
