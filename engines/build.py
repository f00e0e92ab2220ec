"""The verb `build`: an engine for each wanted runtime, from a run's model.onnx or from any ONNX file."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

import onnx

from engines import engine_folder, engine_manifest, onnx_facts
from engines.build_config import check_hardware, check_options
from engines.build_options import BuildOptions
from engines.engine_folder import WantedEngine
from engines.engine_manifest import EngineManifest
from engines.errors import CannotRunHere, FaqError, InputError, WriteError
from engines.folder_lock import locked
from engines.host import Host, RuntimeName, this_host
from engines.lint import lint
from engines.onnx_facts import OnnxFacts
from engines.qdq_graph import load_model
from engines.run_folder import RunFolder, writes
from engines.tensorrt import check_signed, check_sm
from engines.tensorrt_package import OLDEST_SM, load

__all__ = [
    "DEFAULT_SMS",
    "BuildEvent",
    "BuildResult",
    "Status",
    "build_engines",
    "build_onnx_file",
    "default_runtime",
    "exit_code",
]

Status = Literal["built", "kept", "failed", "refused", "unavailable"]

DEFAULT_SMS: Final = (75, 80, 86, 89, 120)  # where neither --sm nor a GPU says which


@dataclass(frozen=True)
class BuildEvent:
    """Progress: a build started, waits (`text` says for what), or stopped after `seconds` with a `status`."""

    name: str
    phase: Literal["start", "wait", "stop"]
    seconds: float = 0.0
    status: Status | None = None
    text: str = ""


@dataclass(frozen=True)
class BuildResult:
    """What became of one wanted engine.

    Args:
        name: such as "tensorrt-rtx-sm86"; also its folder's name.
        status: built; kept (it was there and still fits); failed (the builder refused it); refused (it makes no
            sense: a GPU without INT8, a file of another target); unavailable (this machine lacks what it needs).
        manifest: its record, where there is an engine.
        reason: why there is none, one sentence.
        remedy: what to do about it.
    """

    name: str
    status: Status
    manifest: EngineManifest | None = None
    reason: str = ""
    remedy: str = ""


@dataclass(frozen=True)
class _Job:
    facts: OnnxFacts
    folder: Path  # engines/
    options: BuildOptions
    version: str
    host: Host
    on_event: Callable[[BuildEvent], None] | None
    force: bool

    def tell(self, event: BuildEvent) -> None:
        """Report progress to whoever asked for it."""
        if self.on_event is not None:
            self.on_event(event)

    def wait(self, name: str, text: str) -> None:
        """Report what a build waits for."""
        self.tell(BuildEvent(name, "wait", text=text))


@writes("build")
def build_engines(
    run: RunFolder,
    runtimes: Sequence[RuntimeName],
    sms: Sequence[int],
    options: BuildOptions,
    *,
    version: str,
    on_event: Callable[[BuildEvent], None] | None = None,
    force: bool = False,
) -> list[BuildResult]:
    """Build the wanted engines of a run into `engines/NAME/`; one that fails does not stop the others.

    Args:
        run: a run after `export`.
        runtimes: what to build for; empty takes `tensorrt-rtx` where `sms` are given, else `default_runtime`.
        sms: GPU architectures for `tensorrt-rtx`; empty takes this machine's GPU, or else DEFAULT_SMS.
        options: batch sizes and all other choices.
        version: of faq-deploy, for the records.
        on_event: told when each build starts and stops.
        force: build again what is there and still fits.

    Returns:
        One result a wanted engine, in the order asked for.

    Raises:
        InputError: no run, no model.onnx or a stale one, a file that the linter finds wrong, or options that no wanted
            runtime has.
    """
    model = run.require_fresh("export", "model.onnx", {"quantized.pt": "quantize"})
    job = _Job(_checked(model), run / "engines", options, version, this_host(), on_event, force)
    results = []
    for wanted in _wanted(runtimes, sms, job):
        result = _make(wanted, job)
        if result.manifest is not None and not wanted.baseline:  # what the run records, `eval` compares
            _record(run, result.name, result.manifest, version)
        results.append(result)
    return results


def build_onnx_file(
    onnx_path: Path,
    output: Path,
    runtimes: Sequence[RuntimeName],
    sms: Sequence[int],
    options: BuildOptions,
    *,
    version: str,
    on_event: Callable[[BuildEvent], None] | None = None,
    force: bool = False,
) -> list[BuildResult]:
    """Like `build_engines` from an ONNX file alone, as on an edge box; engines go to `output/NAME/`.

    Args:
        onnx_path: a QDQ file that `export` wrote, or another tool's.
        output: folder for the engines' folders.
        runtimes: as for `build_engines`.
        sms: as for `build_engines`.
        options: as for `build_engines`.
        version: as for `build_engines`.
        on_event: as for `build_engines`.
        force: as for `build_engines`.

    Returns:
        One result a wanted engine, in the order asked for.

    Raises:
        InputError: no such file, no ONNX file, one that the linter finds wrong, or options that no wanted
            runtime has.
    """
    job = _Job(_checked(onnx_path), output, options, version, this_host(), on_event, force)
    wanted = _wanted(runtimes, sms, job)
    kept = [_kept(engine, job) for engine in wanted]
    if all(kept):  # such as in a folder that can't be written, on the machine that runs them
        return [result for result in kept if result is not None]
    with locked(output, "build", make=True):
        return [_make(engine, job) for engine in wanted]


def default_runtime(facts: OnnxFacts, host: Host) -> RuntimeName:
    """`tensorrt` where it is installed, a GPU runs INT8 and the file suits it; else `onnxruntime`."""
    if host.gpu is None or host.gpu.sm < OLDEST_SM or facts.unsigned_node is not None:
        return "onnxruntime"
    try:
        load("tensorrt")
    except CannotRunHere:
        return "onnxruntime"
    return "tensorrt"


def exit_code(results: Sequence[BuildResult]) -> int:
    """0 if every engine is there; 2 if all were refused; 3 if none could be tried here; else 1."""
    statuses = {result.status for result in results}
    if statuses <= {"built", "kept"}:
        return 0
    if statuses <= {"refused"}:
        return 2
    return 3 if statuses <= {"refused", "unavailable"} else 1


def _checked(onnx_path: Path) -> OnnxFacts:
    facts = onnx_facts.read(onnx_path)
    errors = [finding for finding in lint(_whole(onnx_path), facts.target) if finding.level == "error"]
    if errors:
        others = f" ({len(errors) - 1} more)" if len(errors) > 1 else ""
        raise InputError(f"{onnx_path} would not give the right engine: {errors[0].message}{others}", errors[0].remedy)
    return facts


def _whole(onnx_path: Path) -> onnx.ModelProto:
    """The file as it is stored, which the linter asks for; TensorRT takes any number of inputs."""
    return load_model(onnx_path, unpack=False, any_inputs=True)


def _wanted(runtimes: Sequence[RuntimeName], sms: Sequence[int], job: _Job) -> list[WantedEngine]:
    chosen: tuple[RuntimeName, ...] = tuple(dict.fromkeys(runtimes))
    if not chosen:
        chosen = ("tensorrt-rtx",) if sms else (default_runtime(job.facts, job.host),)
    if sms and "tensorrt-rtx" not in chosen:
        raise InputError(
            f"--sm chooses GPUs for tensorrt-rtx, which is not among the runtimes ({', '.join(chosen)}).",
            "add --runtime tensorrt-rtx, or leave out --sm.",
        )
    check_options(chosen, job.options)
    architectures = tuple(dict.fromkeys(sms)) or ((job.host.gpu.sm,) if job.host.gpu else DEFAULT_SMS)
    wanted: list[WantedEngine] = []
    for runtime in chosen:
        if runtime == "tensorrt-rtx":
            wanted += [WantedEngine(f"{runtime}-sm{sm}", runtime, sm) for sm in architectures]
        else:
            wanted.append(WantedEngine(runtime, runtime))
    if job.options.fp16_baseline:
        on_gpus = [engine for engine in wanted if engine.runtime != "onnxruntime"]
        wanted += [replace(engine, name=f"{engine.name}-fp16", baseline=True) for engine in on_gpus]
    return wanted


def _kept(wanted: WantedEngine, job: _Job) -> BuildResult | None:
    """The engine that is there, if it still fits and is not to be built again."""
    if job.force:
        return None
    manifest = engine_folder.kept(job.folder / wanted.name, wanted, job.facts, job.options, job.host)
    return None if manifest is None else BuildResult(wanted.name, "kept", manifest)


def _make(wanted: WantedEngine, job: _Job) -> BuildResult:
    """Keep, refuse or build one engine."""
    folder, kept = job.folder / wanted.name, _kept(wanted, job)
    if kept is not None:
        return kept
    try:
        if wanted.runtime != "onnxruntime":
            check_signed(job.facts)
        if wanted.sm is not None:
            check_sm(wanted.sm)
        if wanted.runtime == "tensorrt" and job.host.gpu is not None:
            check_hardware(job.host.gpu, job.options.hardware)
    except FaqError as error:
        return _without_engine(wanted, error, "refused")
    job.tell(BuildEvent(wanted.name, "start"))
    started = time.perf_counter()
    try:
        manifest = engine_folder.build(
            folder, wanted, job.facts, job.options, job.version, lambda text: job.wait(wanted.name, text)
        )
        result = BuildResult(wanted.name, "built", manifest)
    except WriteError:
        raise  # the next engine would not fit either
    except FaqError as error:
        result = _without_engine(wanted, error, "failed")
    job.tell(BuildEvent(wanted.name, "stop", time.perf_counter() - started, result.status))
    return result


def _without_engine(wanted: WantedEngine, error: FaqError, status: Status) -> BuildResult:
    if isinstance(error, CannotRunHere):
        status = "unavailable"
    return BuildResult(wanted.name, status, None, error.what, error.remedy)


def _record(run: RunFolder, name: str, manifest: EngineManifest, version: str) -> None:
    files = [f"engines/{name}/{file}" for file in (manifest.file, engine_manifest.MANIFEST)]
    run.record(
        f"build/{name}",
        version=version,
        inputs=["model.onnx"],
        outputs=files,
        versions=manifest.versions,
        facts={"seconds": manifest.seconds, "bytes": manifest.bytes, "sm": manifest.sm, "notes": list(manifest.notes)},
    )
