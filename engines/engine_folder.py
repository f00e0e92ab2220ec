"""One engine's folder, `engines/NAME`: whether what it holds still fits, and filling it."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import onnx
from google.protobuf.message import EncodeError

from engines import engine_manifest, failing_part, rebuilds
from engines.build_config import option_notes
from engines.build_options import BuildOptions, recorded
from engines.engine_manifest import EngineManifest
from engines.engine_plan import EnginePlan, inspected, predict
from engines.engine_source import EngineSource, engine_source
from engines.errors import FaqError, InputError
from engines.external_data import sha256_with_data
from engines.files import atomic_path, sha256_of, write_atomic
from engines.host import Host, RuntimeName
from engines.onnx_facts import OnnxFacts
from engines.ort import OrtRunner
from engines.profile import Profile
from engines.tensorrt import BuilderRefusal, BuiltEngine, build_rtx, build_tensorrt
from engines.timing_cache import Tell

__all__ = ["WantedEngine", "build", "kept"]

_ENGINE_FILE: Final = "model.engine"
_ONNX_FILE: Final = "model.onnx"
_LAYERS_FILE: Final = "layers.json"  # the engine inspector's words
_MOST_WARNINGS: Final = 5


@dataclass(frozen=True)
class WantedEngine:
    """What to build: `name` is the folder's too; `sm` for TensorRT-RTX only; `baseline` the net in FP16."""

    name: str
    runtime: RuntimeName
    sm: int | None = None
    baseline: bool = False


def kept(
    folder: Path, wanted: WantedEngine, facts: OnnxFacts, options: BuildOptions, host: Host
) -> EngineManifest | None:
    """The record of an engine that needs no new build; None where there is none, or it no longer fits.

    It fits when its file is unchanged and it was built from the same ONNX file, with the same options, for the GPU
    here, by the runtime's version that is installed here (any version where none is installed).
    """
    try:
        manifest = engine_manifest.check(folder, facts.sha256)
    except InputError:
        return None
    if (manifest.runtime, manifest.baseline) != (wanted.runtime, wanted.baseline):
        return None
    if wanted.sm is not None and manifest.sm != wanted.sm:
        return None
    if manifest.options != recorded(options, wanted.runtime):
        return None
    if wanted.runtime == "onnxruntime":
        return manifest
    installed = host.versions.get(wanted.runtime)
    if installed is not None and not engine_manifest.loads_in(manifest, installed):
        return None
    if manifest.gpu is not None and host.gpu is not None and not engine_manifest.runs_on(manifest, host.gpu):
        return None
    return manifest if manifest.profile == _shapes(facts, options.profile) else None


def build(
    folder: Path,
    wanted: WantedEngine,
    facts: OnnxFacts,
    options: BuildOptions,
    version: str,
    tell: Tell | None = None,
) -> EngineManifest:
    """Build the engine and write its record, the record last.

    Args:
        folder: the engine's own folder.
        wanted: what to build.
        facts: of the ONNX file.
        options: of the build.
        version: of faq-deploy.
        tell: told when the build has to wait.

    Returns:
        The record as written.

    Raises:
        InputError: the runtime refuses the file.
        CannotRunHere: the runtime or a GPU is missing.
    """
    started = time.perf_counter()
    with engine_source(facts, wanted.runtime, wanted.sm, options, baseline=wanted.baseline) as source:
        if wanted.runtime == "onnxruntime":
            engine, built, runtime_version = folder / _ONNX_FILE, None, _copy_onnx(facts, source, folder / _ONNX_FILE)
        else:
            engine = folder / _ENGINE_FILE
            built = _build_or_explain(folder, wanted, facts, source, options, tell)
            runtime_version = built.version
    for name in (failing_part.FAILING, _LAYERS_FILE):  # of an earlier build
        (folder / name).unlink(missing_ok=True)
    gpu = built.gpu if built is not None else None
    plan, notes = None, _notes(wanted, facts) + source.notes
    if built is not None:
        plan, trouble = _plan(wanted, source, built)
        notes += (option_notes(options) if wanted.runtime == "tensorrt" else ()) + built.notes + trouble
        notes += _warnings(built.warnings)
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
        baseline=wanted.baseline,
        options=recorded(options, wanted.runtime),
        plan=plan,
        notes=notes,
    )
    if built is not None and built.layers is not None:
        write_atomic(folder / _LAYERS_FILE, built.layers)
    engine_manifest.write(folder, manifest)
    return manifest


def _build_or_explain(
    folder: Path,
    wanted: WantedEngine,
    facts: OnnxFacts,
    source: EngineSource,
    options: BuildOptions,
    tell: Tell | None,
) -> BuiltEngine:
    def into(onnx_path: Path, output: Path) -> BuiltEngine:
        if wanted.runtime == "tensorrt":
            return build_tensorrt(
                onnx_path,
                options.profile,
                output,
                hardware=options.hardware,
                version_compatible=options.version_compatible,
                workspace_mib=options.workspace_mib,
                tell=tell,
            )
        if wanted.sm is None:
            raise InputError("tensorrt-rtx builds for one GPU architecture at a time.", "pass --sm, such as --sm 86.")
        return build_rtx(onnx_path, wanted.sm, options.profile, output)

    try:
        check = None
        if options.rebuilds > 1 and not wanted.baseline:
            check = rebuilds.check_here(
                wanted.runtime,
                wanted.sm,
                source.model,
                facts.path,
                options.profile,
                host_code=options.version_compatible,
            )
        return rebuilds.rebuild(lambda: into(source.path, folder / _ENGINE_FILE), options.rebuilds, check)
    except BuilderRefusal as refusal:
        raise failing_part.explained(
            refusal, source, facts.path, folder, lambda part: into(part, part.with_suffix(".engine"))
        ) from refusal
    except FaqError as error:  # it names the temporary file, which is gone when the user reads it
        raise type(error)(error.what.replace(str(source.path), str(facts.path)), error.remedy) from error


def _plan(wanted: WantedEngine, source: EngineSource, built: BuiltEngine) -> tuple[EnginePlan | None, tuple[str, ...]]:
    """What a TensorRT engine runs: its own account where a GPU gave one, else a prediction, and why it is one."""
    if wanted.baseline:  # nothing in it is quantized
        return None, ()
    trouble: tuple[str, ...] = ()
    if built.layers is not None:
        try:
            return inspected(built.layers, source.model), ()
        except InputError as error:
            trouble = (f"The engine's own account of its layers could not be read: {error.what}",)
    return predict(source.model, built.gpu.sm if built.gpu is not None else wanted.sm), trouble


def _shapes(facts: OnnxFacts, profile: Profile) -> dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]:
    return {name: profile.shapes(shape) for name, shape in facts.inputs.items()}


def _copy_onnx(facts: OnnxFacts, source: EngineSource, engine: Path) -> str:
    """onnxruntime reads ONNX itself: its engine is the file, once a session with all optimizations has taken it."""
    _check_session(facts, source)
    with atomic_path(engine) as temporary:
        if source.path == facts.path and not facts.data:
            shutil.copyfile(facts.path, temporary)
            changed = sha256_of(temporary) != facts.sha256
        else:  # one file for both, which can't be parted again
            temporary.write_bytes(_in_one_file(facts, source.model))
            changed = sha256_with_data(facts.path, facts.data) != facts.sha256
        if changed:
            raise InputError(f"{facts.path} was changed during the build.", "build again.")
    import onnxruntime

    return str(onnxruntime.__version__)


def _check_session(facts: OnnxFacts, source: EngineSource) -> None:
    if len(facts.inputs) == 1:
        OrtRunner(source.path).close()
        return
    import onnxruntime

    try:
        onnxruntime.InferenceSession(str(source.path), providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no base class
        first = " ".join(str(error).split())
        raise InputError(
            f"{facts.path} is refused by onnxruntime {onnxruntime.__version__}: {first}.", "upgrade onnxruntime."
        ) from error


def _in_one_file(facts: OnnxFacts, model: onnx.ModelProto) -> bytes:
    try:
        return bytes(model.SerializeToString(deterministic=True))
    except (EncodeError, ValueError) as error:
        raise InputError(
            f"{facts.path} and its weights are more than one ONNX file can hold (2 GiB).", "give a smaller model."
        ) from error


def _notes(wanted: WantedEngine, facts: OnnxFacts) -> tuple[str, ...]:
    notes = []
    if facts.bits == 4 and not wanted.baseline:
        engine = "onnxruntime" if wanted.runtime == "onnxruntime" else "TensorRT"
        notes.append(f"4-bit values in INT8 kernels: {engine} has no INT4 convolution.")
    if wanted.runtime == "tensorrt-rtx":
        notes.append(
            f"Built ahead of time and not run: it needs a GPU of SM {wanted.sm} and this TensorRT-RTX version."
        )
    if wanted.runtime == "tensorrt-rtx" and not wanted.baseline:
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
