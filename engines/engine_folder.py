"""One engine's folder, `engines/NAME`: whether what it holds still fits, and filling it."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from google.protobuf.message import EncodeError

from engines import engine_manifest
from engines.engine_manifest import EngineManifest
from engines.errors import InputError
from engines.external_data import sha256_with_data
from engines.files import atomic_path, sha256_of
from engines.host import Host, RuntimeName, same_version
from engines.onnx_facts import OnnxFacts
from engines.ort import OrtRunner
from engines.profile import Profile
from engines.qdq_graph import load_model
from engines.tensorrt import BuiltEngine, build_rtx, build_tensorrt

__all__ = ["WantedEngine", "build", "kept"]

_ENGINE_FILE: Final = "model.engine"
_ONNX_FILE: Final = "model.onnx"
_TIMING_CACHE: Final = "timing.cache"
_MOST_WARNINGS: Final = 5


@dataclass(frozen=True)
class WantedEngine:
    """What to build: `name` is the folder's too; `sm` for TensorRT-RTX only."""

    name: str
    runtime: RuntimeName
    sm: int | None = None


def kept(folder: Path, wanted: WantedEngine, facts: OnnxFacts, profile: Profile, host: Host) -> EngineManifest | None:
    """The record of an engine that needs no new build; None where there is none, or it no longer fits.

    It fits when its file is unchanged and it was built from the same ONNX file, for the same batch sizes and GPU, by
    the runtime's version that is installed here (any version where none is installed).
    """
    try:
        manifest = engine_manifest.check(folder, facts.sha256)
    except InputError:
        return None
    if manifest.runtime != wanted.runtime or (wanted.sm is not None and manifest.sm != wanted.sm):
        return None
    if wanted.runtime == "onnxruntime":
        return manifest
    installed = host.versions.get(wanted.runtime)
    if installed is not None and not same_version(manifest.versions.get(wanted.runtime, ""), installed):
        return None
    if manifest.gpu is not None and host.gpu is not None and manifest.gpu != host.gpu.name:
        return None
    return manifest if manifest.profile == _shapes(facts, profile) else None


def build(folder: Path, wanted: WantedEngine, facts: OnnxFacts, profile: Profile, version: str) -> EngineManifest:
    """Build the engine and write its record, the record last.

    Args:
        folder: the engine's own folder.
        wanted: what to build.
        facts: of the ONNX file.
        profile: batch sizes.
        version: of faq-deploy.

    Returns:
        The record as written.

    Raises:
        InputError: the runtime refuses the file.
        CannotRunHere: the runtime or a GPU is missing.
    """
    started = time.perf_counter()
    built: BuiltEngine | None = None
    if wanted.runtime == "onnxruntime":
        engine = folder / _ONNX_FILE
        runtime_version = _copy_onnx(facts, engine)
    else:
        engine = folder / _ENGINE_FILE
        if wanted.runtime == "tensorrt":
            built = build_tensorrt(facts.path, profile, engine, timing_cache=folder / _TIMING_CACHE)
        elif wanted.sm is not None:
            built = build_rtx(facts.path, wanted.sm, profile, engine)
        else:
            raise InputError("tensorrt-rtx builds for one GPU architecture at a time.", "pass --sm, such as --sm 86.")
        runtime_version = built.version
    gpu = built.gpu if built is not None else None
    manifest = EngineManifest(
        runtime=wanted.runtime,
        file=engine.name,
        sha256=sha256_of(engine),
        bytes=engine.stat().st_size,
        onnx_sha256=facts.sha256,
        versions={wanted.runtime: runtime_version, "faq-deploy": version},
        sm=gpu.sm if gpu is not None else wanted.sm,
        gpu=gpu.name if gpu is not None else None,
        profile=dict(built.shapes) if built is not None else {},
        seconds=round(time.perf_counter() - started, 3),
        target=facts.target,
        notes=_notes(wanted, facts) + (_warnings(built.warnings) if built is not None else ()),
    )
    engine_manifest.write(folder, manifest)
    return manifest


def _shapes(facts: OnnxFacts, profile: Profile) -> dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]:
    return {name: profile.shapes(shape) for name, shape in facts.inputs.items()}


def _copy_onnx(facts: OnnxFacts, engine: Path) -> str:
    """onnxruntime reads ONNX itself: its engine is the file, once a session with all optimizations has taken it."""
    OrtRunner(facts.path).close()
    with atomic_path(engine) as temporary:
        if facts.data:  # one file for both, which can't be parted again
            temporary.write_bytes(_in_one_file(facts))
        else:
            shutil.copyfile(facts.path, temporary)
        if sha256_with_data(facts.path if facts.data else temporary, facts.data) != facts.sha256:
            raise InputError(f"{facts.path} was changed during the build.", "build again.")
    import onnxruntime

    return str(onnxruntime.__version__)


def _in_one_file(facts: OnnxFacts) -> bytes:
    try:
        return bytes(load_model(facts.path).SerializeToString(deterministic=True))
    except (EncodeError, ValueError) as error:
        raise InputError(
            f"{facts.path} and its weights are more than one ONNX file can hold (2 GiB).", "give a smaller model."
        ) from error


def _notes(wanted: WantedEngine, facts: OnnxFacts) -> tuple[str, ...]:
    notes = []
    if facts.bits == 4:
        engine = "onnxruntime" if wanted.runtime == "onnxruntime" else "TensorRT"
        notes.append(f"4-bit values in INT8 kernels: {engine} has no INT4 convolution.")
    if wanted.runtime == "tensorrt-rtx":
        notes.append(
            f"Built ahead of time and not run: it needs a GPU of SM {wanted.sm} and this TensorRT-RTX version."
        )
        notes.append(
            "TensorRT-RTX's support matrix lists INT8 only for weight-only GEMM, and not on Turing: how fast its INT8 "
            "convolutions are isn't documented for every GPU, so measure on yours."
        )
    if wanted.runtime == "onnxruntime" and facts.target == "tensorrt":
        notes.append(
            "Made for TensorRT: onnxruntime gives the same codes but leaves part of the net in float32; "
            "a run with --target onnxruntime is faster here."
        )
    return tuple(notes)


def _warnings(said: tuple[str, ...]) -> tuple[str, ...]:
    different = tuple(dict.fromkeys(said))
    more = len(different) - _MOST_WARNINGS
    return different[:_MOST_WARNINGS] + ((f"The builder gave {more} more warnings.",) if more > 0 else ())
