"""One engine built several times (U21): TensorRT chooses kernels by their time, so that each build may differ."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx

from engines.engine_plan import predict
from engines.errors import CannotRunHere, InputError
from engines.files import sha256_of
from engines.host import RuntimeName, this_host
from engines.profile import Profile
from engines.qdq_graph import load_model, read_graph
from engines.reference import ReferenceRunner
from engines.runner import FloatArray, Runner
from engines.tensorrt import BuiltEngine
from engines.tensorrt_package import TensorRTName
from engines.tensorrt_runner import TensorRTRunner

__all__ = ["Check", "check_here", "rebuild", "same_as_reference"]

_IMAGES = 4

Check = Callable[[Path], "str | None"]


def rebuild(build: Callable[[], BuiltEngine], times: int, check: Check | None = None) -> BuiltEngine:
    """Build `times` times; every build must pass the check, so that the worst one counts. The last is kept.

    Args:
        build: builds the engine over the file of the build before.
        times: at least 1.
        check: runs an engine file and returns what is wrong with it, a sentence without its point, or None. None
            where the engine can't run on this machine.

    Returns:
        The last build; where there were several, its notes say what was seen.

    Raises:
        InputError: a build gives other integers than the ONNX file.
        CannotRunHere: an engine was built and does not run.
    """
    files: list[str] = []
    for number in range(1, times + 1):
        built = build()
        files.append(sha256_of(built.path))
        if times == 1:
            return built
        try:
            trouble = check(built.path) if check is not None else None
        except BaseException:  # also Ctrl-C: an engine that was not seen to run is not left behind
            built.path.unlink(missing_ok=True)
            raise
        if trouble is not None:
            built.path.unlink()
            raise InputError(
                f"Build {number} of {times} {trouble}.",
                "report it with the ONNX file; an engine of this GPU and version can't be trusted without `verify`.",
            )
    different = "each time the same file" if len(set(files)) == 1 else f"{len(set(files))} different files"
    ran = "not run here" if check is None else "all gave the integers of the ONNX file on the same images"
    return replace(built, notes=(*built.notes, f"Built {times} times: {different}; {ran}."))


def check_here(
    runtime: RuntimeName,
    sm: int | None,
    model: onnx.ModelProto,
    onnx_path: Path,
    profile: Profile,
    *,
    host_code: bool = False,
) -> Check | None:
    """How each build is run on this machine.

    Args:
        runtime: `tensorrt` or `tensorrt-rtx`.
        sm: GPU architecture that the engine is for; None for this machine's.
        model: what the builder gets.
        onnx_path: the file that the user gave.
        profile: batch sizes.
        host_code: the engines bring code for the CPU, as version-compatible ones do; we built them, so we trust it.

    Returns:
        A check for `rebuild`; None where the engine can't run here, or has parts in float, whose numbers nobody
        promises to be equal.
    """
    gpu = this_host().gpu
    if gpu is None or sm not in (None, gpu.sm) or predict(model).islands:
        return None
    package: TensorRTName = "tensorrt" if runtime == "tensorrt" else "tensorrt-rtx"
    return same_as_reference(onnx_path, profile, lambda engine: TensorRTRunner(engine, package, host_code=host_code))


def same_as_reference(onnx_path: Path, profile: Profile, open_file: Callable[[Path], Runner]) -> Check:
    """A check for `rebuild`: noise images through an engine must give the integer reference's logits, bit for bit.

    Args:
        onnx_path: that the engine is built from; the images' size must be fixed.
        profile: batch sizes; images come in batches of its best size.
        open_file: loads an engine file.

    Returns:
        The check. The reference runs once, when it is first called.

    Raises:
        InputError: the reference can't run the file.
    """
    expected: list[tuple[FloatArray, FloatArray]] = []

    def check(engine: Path) -> str | None:
        if not expected:
            images = _noise(onnx_path, max(_IMAGES, profile.smallest))
            expected.append((images, ReferenceRunner(onnx_path)(images)))
        images, logits = expected[0]
        runner = open_file(engine)
        try:
            found = runner(images)
        finally:
            runner.close()
        differing = int((found.view(np.uint32) != logits.view(np.uint32)).sum())
        if not differing:
            return None
        return f"gives {differing} of {logits.size} logits other than the integer reference"

    return check


def _noise(onnx_path: Path, count: int) -> FloatArray:
    shape = read_graph(load_model(onnx_path)).input_shape[1:]
    sizes = [size for size in shape if size is not None]
    if len(sizes) != len(shape):
        raise CannotRunHere(f"{onnx_path} leaves the size of its images open.", "build it once, without --rebuilds.")
    images: FloatArray = np.random.default_rng(0).normal(0, 1, (count, *sizes)).astype(np.float32)
    return images
