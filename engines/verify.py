"""The verb `verify`: does this machine compute, from a bundle's file, the integers that the bundle expects?"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np

from engines.build import BuildResult, build_onnx_file
from engines.build_options import BuildOptions
from engines.bundle_samples import input_hashes
from engines.code_engine import open_code_engine
from engines.errors import CannotRunHere, FaqError
from engines.first_difference import Difference, changed_constant, earlier, first_difference
from engines.host import RuntimeName, this_host
from engines.invariance import batch_sentence
from engines.open_engine import open_engine
from engines.opened_bundle import OpenedBundle, opened
from engines.parity import LogitParity, compare_logits
from engines.profile import Profile
from engines.reference import ReferenceRunner
from engines.runner import FloatArray, Runner

__all__ = ["EngineCheck", "FileCheck", "Verification", "verify_bundle"]

EngineStatus = Literal["identical", "differs", "reported", "failed", "unavailable"]

_REFERENCE_SECONDS: Final = 20.0  # for the integer reference, which takes about a second an image at ResNet-18's size
_AT_ONCE: Final = 2  # images whose codes are in memory

Say = Callable[[str], None]


@dataclass(frozen=True)
class FileCheck:
    """The bundle's own file against what the bundle expects, in exact integers and without any runtime.

    Attributes:
        inputs_equal: the samples, normalized here, are the expected network inputs, byte for byte.
        images: samples that the integer reference ran.
        codes: integers that were compared.
        weights: the first weight that is not the one that was bundled.
        first: the first tensor that differs.
    """

    inputs_equal: bool
    images: int
    codes: int
    weights: Difference | None
    first: Difference | None


@dataclass(frozen=True)
class EngineCheck:
    """One engine against what the bundle expects.

    Attributes:
        name: of the engine, such as "tensorrt".
        runtime: what runs it.
        status: "identical"; "differs"; "reported": parts of the net are in float, and something differs that is not
            judged; "failed": the runtime refused to build; "unavailable": it can't run on this machine.
        images: samples that it ran.
        logits: how they compare, where it ran.
        codes: integers that were compared; 0 where the runtime was not asked for them.
        first: the first tensor that differs, where the codes tell.
        batch: a sentence where an image's logits depend on its batch.
        reason: why there is no engine, or no comparison.
        remedy: what to do about it.
        notes: of the build.
    """

    name: str
    runtime: str
    status: EngineStatus
    images: int = 0
    logits: LogitParity | None = None
    codes: int = 0
    first: Difference | None = None
    batch: str = ""
    reason: str = ""
    remedy: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Verification:
    """What `verify` found.

    Attributes:
        bundle: the file.
        run: that it was made from.
        target: of the network.
        float_parts: parts of the net are in float.
        images: number of samples.
        gpu: name of the GPU that an engine ran on; None where none was used.
        file: the file's own check.
        engines: one a wanted engine.
        kept: the folder with the engines, where they were kept.
    """

    bundle: str
    run: str
    target: str | None
    float_parts: bool
    images: int
    gpu: str | None
    file: FileCheck
    engines: tuple[EngineCheck, ...]
    kept: str | None = None

    @property
    def exit_code(self) -> int:
        """0 if all is identical; 1 if something differs; 3 if a wanted engine could not run here."""
        file = self.file
        differs = file.weights is not None or not file.inputs_equal or (file.first and not self.float_parts)
        statuses = {engine.status for engine in self.engines}
        if differs or statuses & {"differs", "failed"}:
            return 1
        return 3 if "unavailable" in statuses else 0


def verify_bundle(
    bundle: Path,
    output: Path | None,
    runtimes: Sequence[RuntimeName],
    options: BuildOptions,
    *,
    version: str,
    say: Say = lambda text: None,
) -> Verification:
    """Check a bundle's file, build its engine for this machine, run the samples, compare.

    Args:
        bundle: the file.
        output: keep the engines in this folder; None keeps them nowhere.
        runtimes: what to build for; empty takes TensorRT where it runs, else onnxruntime.
        options: batch sizes and workspace.
        version: of faq-deploy.
        say: told what is being done.

    Returns:
        What was found.

    Raises:
        InputError: the bundle is damaged, is none, or is from a newer version.
        WriteError: the disk is full.
    """
    say(f"unpacking {bundle}")
    with opened(bundle) as open_bundle:
        file = _check_file(open_bundle, say)
        engines = _check_engines(open_bundle, output or open_bundle.folder / "engines", runtimes, options, version, say)
    host = this_host()
    used = host.gpu is not None and any(e.runtime != "onnxruntime" and e.images for e in engines)
    return Verification(
        bundle=str(bundle),
        run=open_bundle.manifest.run,
        target=open_bundle.manifest.target,
        float_parts=open_bundle.manifest.float_parts,
        images=len(open_bundle.samples.labels),
        gpu=host.gpu.name if used and host.gpu is not None else None,
        file=file,
        engines=engines,
        kept=None if output is None else str(output),
    )


def _check_file(bundle: OpenedBundle, say: Say) -> FileCheck:
    """Inputs, weights, and the integer reference on as many samples as the time allows; one at least."""
    images = bundle.images()
    inputs_equal = bool(np.array_equal(input_hashes(images), bundle.samples.expected.inputs))
    say("running the integer reference on the samples")
    runner = ReferenceRunner(bundle.model)
    started, done, compared, first = time.perf_counter(), 0, 0, None
    for index in range(len(images)):
        difference, codes = first_difference(bundle, runner, images[index : index + 1], index)
        first, done, compared = earlier(bundle, first, difference), done + 1, compared + codes
        if (time.perf_counter() - started) * (done + 1) / done > _REFERENCE_SECONDS:
            break
    runner.close()
    return FileCheck(inputs_equal, done, compared, changed_constant(bundle), first)


def _check_engines(
    bundle: OpenedBundle,
    folder: Path,
    runtimes: Sequence[RuntimeName],
    options: BuildOptions,
    version: str,
    say: Say,
) -> tuple[EngineCheck, ...]:
    """Build and compare; TensorRT-RTX without a GPU would build for all of them, and run on none."""
    no_gpu = this_host().gpu is None
    wanted = [name for name in runtimes if not (name == "tensorrt-rtx" and no_gpu)]
    checks = [
        EngineCheck(
            *(name, name, "unavailable"), reason="tensorrt-rtx needs an NVIDIA GPU.", remedy="see `faq-deploy doctor`."
        )
        for name in dict.fromkeys(runtimes)
        if name not in wanted
    ]
    if wanted or not runtimes:
        say("building the engine for this machine")
        for result in build_onnx_file(bundle.model, folder, wanted, (), options, version=version):
            checks.append(_check_engine(bundle, folder / result.name, result, options, say))
    return tuple(checks)


def _check_engine(
    bundle: OpenedBundle, folder: Path, result: BuildResult, options: BuildOptions, say: Say
) -> EngineCheck:
    manifest = result.manifest
    if manifest is None:
        status: EngineStatus = "failed" if result.status == "failed" else "unavailable"
        return EngineCheck(result.name, result.name, status, reason=result.reason, remedy=result.remedy)
    say(f"running the samples on {result.name}")
    try:
        runner = open_engine(folder, manifest.onnx_sha256)
        try:
            images = bundle.images()
            logits = _logits(runner, images, options)
            batch = batch_sentence(runner, images, _sizes(options.profile, len(images)))
        finally:
            runner.close()
    except CannotRunHere as error:
        return EngineCheck(result.name, manifest.runtime, "unavailable", reason=error.what, remedy=error.remedy)
    parity = compare_logits(logits, bundle.samples.expected.logits)
    codes, first, reason = 0, None, ""
    if manifest.runtime == "onnxruntime" or not parity.equal:
        codes, first, reason = _compare_codes(bundle, manifest.runtime, options)
    same = parity.equal and first is None and not batch
    status = "identical" if same else "differs"
    if not same and bundle.manifest.float_parts and parity.flips == 0:
        status = "reported"
    return EngineCheck(
        name=result.name,
        runtime=manifest.runtime,
        status=status,
        images=len(logits),
        logits=parity,
        codes=codes,
        first=first,
        batch=batch,
        reason=reason,
        notes=manifest.notes,
    )


def _logits(runner: Runner, images: FloatArray, options: BuildOptions) -> FloatArray:
    size = options.profile.best
    return np.concatenate([runner(images[i : i + size]) for i in range(0, len(images), size)])


def _sizes(profile: Profile, images: int) -> list[int]:
    """The batches of a profile, as far as the samples fill them."""
    return sorted({min(size, images) for size in (profile.smallest, profile.best, profile.largest)})


def _compare_codes(
    bundle: OpenedBundle, runtime: RuntimeName, options: BuildOptions
) -> tuple[int, Difference | None, str]:
    """How many codes were compared, the first tensor that differs, and why none could be compared."""
    images, compared, first = bundle.images(), 0, None
    try:
        runner = open_code_engine(bundle.model, runtime, profile=options.profile)
    except FaqError as error:
        return 0, None, f"The codes inside could not be compared: {error.what}"
    try:
        for start in range(0, len(images), _AT_ONCE):
            difference, codes = first_difference(bundle, runner, images[start : start + _AT_ONCE], start)
            first, compared = earlier(bundle, first, difference), compared + codes
    finally:
        runner.close()
    return compared, first, ""
