"""The record beside each engine, and the checks on it that need neither the runtime nor a GPU."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from engines.engine_plan import EnginePlan
from engines.errors import CannotRunHere, InputError, NewerFormat, NotInstalled
from engines.files import sha256_of, write_atomic
from engines.host import Gpu, Host, RuntimeName, same_version
from engines.json_text import read_json
from engines.profile import Shapes

__all__ = [
    "FORMAT",
    "MANIFEST",
    "EngineManifest",
    "check",
    "check_host",
    "loads_in",
    "read",
    "runs_on",
    "write",
]

FORMAT: Final = 1  # raised when an older tool could no longer read an engine's record
MANIFEST: Final = "manifest.json"

_AMPERE: Final = 80


class EngineManifest(BaseModel):
    """`manifest.json` in an engine's folder.

    Attributes:
        format: of this record.
        runtime: what runs the engine.
        file: the engine's file name, in the same folder.
        sha256: of the engine file.
        bytes: size of the engine file.
        onnx_sha256: of the ONNX file that it was built from.
        versions: of the runtime (by its name here) and of faq-deploy.
        sm: GPU architecture that it was built for, as one number (8.6 is 86); None for CPUs.
        gpu: name of the GPU that it was built on; None when built ahead of time.
        profile: each input's smallest, best and largest shape; empty where any batch is as good.
        seconds: that the build took.
        target: "tensorrt", "onnxruntime" or "paper"; None for ONNX files from elsewhere.
        baseline: it is the net without quantizers, in FP16, to compare speed with: its codes are not compared.
        options: the choices of the build that it depends on, by name.
        plan: what became of its layers, predicted or told by the engine.
        notes: what a user should know of this engine, a sentence each.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: int = FORMAT
    runtime: RuntimeName
    file: str = Field(pattern=r"^[^/\\]+$")
    sha256: str
    bytes: int
    onnx_sha256: str
    versions: dict[str, str]
    sm: int | None = None
    gpu: str | None = None
    profile: dict[str, Shapes] = {}
    seconds: float
    target: str | None = None
    baseline: bool = False
    options: dict[str, object] = {}
    plan: EnginePlan | None = None
    notes: tuple[str, ...] = ()


def write(folder: Path, manifest: EngineManifest) -> None:
    """Write an engine's record into its folder."""
    write_atomic(folder / MANIFEST, manifest.model_dump_json(indent=2) + "\n")


def read(folder: Path) -> EngineManifest:
    """Read an engine's record.

    Args:
        folder: `engines/NAME`.

    Returns:
        The record.

    Raises:
        InputError: there is none, it is damaged, or it is from a newer version.
    """
    file = folder / MANIFEST
    try:
        raw = read_json(file.read_text())
    except FileNotFoundError:
        raise InputError(f"{folder} holds no engine ({MANIFEST} is missing).", _again(folder)) from None
    except (OSError, ValueError) as error:
        raise InputError(f"{file} can't be read: {str(error).splitlines()[0]}.", _again(folder)) from error
    found = raw.get("format") if isinstance(raw, dict) else None
    if isinstance(found, int) and found > FORMAT:
        raise NewerFormat(
            f"{folder} was made by a newer faq-deploy (engine format {found}, this one reads up to {FORMAT}).",
            "upgrade faq-deploy, or build the engine with this version.",
        )
    try:
        return EngineManifest.model_validate(raw)
    except ValidationError as error:
        place = ".".join(str(part) for part in error.errors()[0]["loc"]) or "all of it"
        raise InputError(f"{file} is damaged at {place}: {error.errors()[0]['msg']}.", _again(folder)) from error


def check(folder: Path, onnx_sha256: str | None = None, host: Host | None = None) -> EngineManifest:
    """Read an engine's record and hold the engine, its ONNX file and this machine against it.

    Call it before a runtime sees the file: runtimes crash on files that are not engines, or name the wrong cause.

    Args:
        folder: `engines/NAME`.
        onnx_sha256: of the ONNX file that the engine must have been built from; None where there is none to compare.
        host: the machine that would run the engine; None checks the files alone.

    Returns:
        The record.

    Raises:
        InputError: no engine, a changed or foreign file, or one built from another ONNX file.
        CannotRunHere: this machine has another version of the runtime, another GPU, or none.
    """
    manifest = read(folder)
    _check_file(folder, manifest)
    if onnx_sha256 is not None and manifest.onnx_sha256 != onnx_sha256:
        raise InputError(
            f"{folder / manifest.file} was built from another ONNX file (sha256 {manifest.onnx_sha256[:12]}..., "
            f"the run's model.onnx has {onnx_sha256[:12]}...).",
            _again(folder),
        )
    if host is not None:
        check_host(folder, manifest, host)
    return manifest


def check_host(folder: Path, manifest: EngineManifest, host: Host) -> None:
    """See that a machine has the runtime version and the GPU that an engine was built for.

    Args:
        folder: `engines/NAME`.
        manifest: the engine's record.
        host: the machine that would run it.

    Raises:
        CannotRunHere: it has not.
    """
    engine = folder / manifest.file
    name = manifest.runtime
    found = host.versions.get(name)
    if found is None:
        raise NotInstalled(f"{engine} needs {name}, which is not installed here.", "run `faq-deploy doctor`.")
    if name == "onnxruntime":  # its file is the ONNX file itself, which any version reads
        return
    if not loads_in(manifest, found):
        built = manifest.versions.get(name, "an unrecorded version")
        raise CannotRunHere(
            f"{engine} was built by {name} {built}, and {found} is installed here.",
            f"build it again here, or install {name} {built}.",
        )
    if host.gpu is None:
        raise CannotRunHere(f"{engine} needs an NVIDIA GPU (SM {manifest.sm}), and there is none here.", _MOVE)
    if runs_on(manifest, host.gpu):
        return
    here = f"the GPU here is {host.gpu.name}"
    if manifest.gpu is not None and manifest.sm == host.gpu.sm:
        raise CannotRunHere(f"{engine} was built on {manifest.gpu}, and {here}.", _MOVE)
    newer = " and newer GPUs" if manifest.options.get("hardware") == "ampere+" else ""
    raise CannotRunHere(f"{engine} was built for SM {manifest.sm}{newer}, and {here} (SM {host.gpu.sm}).", _MOVE)


def loads_in(manifest: EngineManifest, version: str) -> bool:
    """Whether an engine loads in a version of its runtime: the one that built it, or one it was made to allow.

    Args:
        manifest: the engine's record.
        version: of the runtime, as installed.

    Returns:
        True for the same version, and for later ones where it was built `--version-compatible`: of the same major
        number, or TensorRT 11 for 10.
    """
    built = manifest.versions.get(manifest.runtime, "")
    if same_version(built, version):
        return True
    if not manifest.options.get("version_compatible"):
        return False
    ours, theirs = (tuple(int(number) for number in re.findall(r"\d+", text)[:3]) for text in (built, version))
    return bool(ours and theirs) and ours <= theirs and (theirs[0] == ours[0] or (ours[0], theirs[0]) == (10, 11))


def runs_on(manifest: EngineManifest, gpu: Gpu) -> bool:
    """Whether an engine runs on a GPU: on the model that it was built on, or on those it was made to allow.

    Args:
        manifest: the engine's record.
        gpu: that would run it.

    Returns:
        True for the same model (TensorRT timed its kernels on that very one); for all of its compute capability where
        it was built ahead of time or for `same-cc`; for all from Ampere on where it was built for `ampere+`.
    """
    hardware = manifest.options.get("hardware", "exact")
    if hardware == "ampere+":
        return gpu.sm >= _AMPERE
    return manifest.sm == gpu.sm and (manifest.gpu in (None, gpu.name) or hardware == "same-cc")


_MOVE: Final = "run it on a machine with that GPU, or build the engine again on this one."


def _check_file(folder: Path, manifest: EngineManifest) -> None:
    engine = folder / manifest.file
    if not os.path.isfile(engine):  # Path.is_file raises for names that no file can have
        raise InputError(f"{engine} is missing although {MANIFEST} lists it.", _again(folder))
    size = engine.stat().st_size
    if size == 0:
        raise InputError(f"{engine} is empty (0 of {manifest.bytes:,} bytes).", _again(folder))
    found = sha256_of(engine)
    if found == manifest.sha256:
        return
    if found == manifest.onnx_sha256:
        raise InputError(f"{engine} is the ONNX file, not an engine built from it.", _again(folder))
    if size != manifest.bytes:
        what = "cut short, or another file" if size < manifest.bytes else "another file"
        raise InputError(
            f"{engine} has {size:,} bytes and `faq-deploy build` wrote {manifest.bytes:,}: it is {what}.",
            _again(folder),
        )
    raise InputError(
        f"{engine} is not what `faq-deploy build` wrote: its sha256 is {found[:12]}..., not {manifest.sha256[:12]}...",
        _again(folder),
    )


def _again(folder: Path) -> str:
    return f"copy {folder} again, or build the engine again with `faq-deploy build`."
