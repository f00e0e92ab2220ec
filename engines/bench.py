"""What `build --bench` finds: latency of the engines that run here, and the roofline of the network beside it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import onnx

from engines.build import BuildResult
from engines.build_options import BuildOptions
from engines.engine_manifest import EngineManifest
from engines.engine_source import temporary_onnx
from engines.errors import FaqError
from engines.files import scratch_folder
from engines.fp16 import float_baseline, fp16_baseline
from engines.gpu_limits import GPUS, GpuLimits, Precision, limits_of
from engines.host import Host
from engines.int4 import unpack_int4
from engines.kernel_costs import KernelCost, kernel_costs
from engines.latency import Latency, gpu_clocks, measure
from engines.open_engine import open_engine
from engines.ort import OrtRunner
from engines.profile import Profile
from engines.qdq_graph import load_model, read_graph
from engines.roofline import Bound, bound
from engines.runner import Runner
from engines.tensorrt import build_rtx, build_tensorrt
from engines.tensorrt_runner import TensorRTRunner

__all__ = ["Bench", "Measured", "Subject", "bench", "subject"]

_PRECISIONS: Final[tuple[Precision, ...]] = ("int8", "fp16", "fp32")
# of the net without quantizers
_CPU: Final[tuple[Precision, ...]] = ("fp32",)
_GPU: Final[tuple[Precision, ...]] = ("fp16", "fp32")


@dataclass(frozen=True)
class Subject:
    """A network to bench: its QDQ graph, what its kernels cost, one image's shape, and the batches."""

    model: onnx.ModelProto
    costs: tuple[KernelCost, ...]
    image: tuple[int, ...]
    batches: tuple[int, ...]


@dataclass(frozen=True)
class Measured:
    """One engine, or the net without quantizers in its runtime.

    Attributes:
        engine: name of the engine.
        precision: "int8", or of the net without quantizers.
        latencies: by batch; empty where it could not run.
        graphs: whether its kernels were launched as one CUDA graph.
        reason: why it could not.
        clocks: of the GPU right after the calls.
    """

    engine: str
    precision: Precision
    latencies: tuple[Latency, ...] = ()
    graphs: bool = False
    reason: str = ""
    clocks: dict[str, int] | None = None


@dataclass(frozen=True)
class Bench:
    """Measured engines, and what the data sheets would allow."""

    subject: Subject
    measured: tuple[Measured, ...]
    bounds: tuple[Bound, ...]


def subject(onnx_path: Path, profile: Profile) -> Subject:
    """Read a network that is to be benched, before anything is built.

    Args:
        onnx_path: the QDQ file.
        profile: its three batch sizes are taken; a file of one batch size has that alone.

    Returns:
        What `bench` needs.

    Raises:
        InputError: no QDQ file with one input, or one whose image size is open.
    """
    model = unpack_int4(load_model(onnx_path, unpack=False))
    costs = tuple(kernel_costs(model))
    batch, *image = read_graph(model).input_shape
    sizes = (profile.smallest, profile.best, profile.largest) if batch is None else (batch,)
    return Subject(model, costs, tuple(size or 0 for size in image), tuple(dict.fromkeys(sizes)))


def bench(
    wanted: Subject,
    results: Sequence[BuildResult],
    folder: Path,
    options: BuildOptions,
    host: Host,
    tell: Callable[[str], None],
) -> Bench:
    """Time every engine that runs here, and its runtime on the net without quantizers.

    Args:
        wanted: as `subject` read it.
        results: of the build.
        folder: of the engines' folders.
        options: of the build.
        host: this machine.
        tell: told what is measured next.

    Returns:
        Latencies, and bounds for the GPU here where the table has it, else for all of its GPUs.
    """
    measured: list[Measured] = []
    for result in results:
        manifest = result.manifest
        if manifest is None or manifest.baseline:
            continue
        fp16 = f"{result.name}-fp16"  # where the build made it, it is not built once more
        there = folder / fp16 if any(r.name == fp16 and r.manifest is not None for r in results) else None
        measured += _engine(wanted, folder / result.name, manifest, options, there, tell)
    here = limits_of(host.gpu.name) if host.gpu is not None else None
    return Bench(wanted, tuple(measured), tuple(_bounds(wanted, GPUS if here is None else (here,))))


def _engine(
    wanted: Subject,
    folder: Path,
    manifest: EngineManifest,
    options: BuildOptions,
    fp16: Path | None,
    tell: Callable[[str], None],
) -> Iterator[Measured]:
    """The engine; where that runs, its runtime on the net without quantizers too."""
    name = folder.name
    tell(f"{name}: timing int8")
    try:
        yield from _timed(wanted, name, "int8", open_engine(folder))
    except FaqError as error:
        yield Measured(name, "int8", reason=error.what)
        return
    for precision in _CPU if manifest.runtime == "onnxruntime" else _GPU:
        tell(f"{name}: timing {precision}, without quantizers")
        try:
            if precision == "fp16" and fp16 is not None:
                yield from _timed(wanted, name, precision, open_engine(fp16, baseline=True))
                continue
            with _baseline(wanted, manifest, precision, options) as runner:
                yield from _timed(wanted, name, precision, runner)
        except FaqError as error:
            yield Measured(name, precision, reason=error.what)


def _timed(wanted: Subject, name: str, precision: Precision, runner: Runner) -> Iterator[Measured]:
    """A runner's latencies; on a GPU also as CUDA graphs, which a net may not allow."""
    with contextlib.closing(runner):
        yield _latencies(wanted, name, precision, runner)
        if not isinstance(runner, TensorRTRunner):
            return
        runner.use_graphs()
        try:
            yield _latencies(wanted, name, precision, runner, graphs=True)
        except FaqError as error:
            yield Measured(name, precision, graphs=True, reason=error.what)


def _latencies(wanted: Subject, name: str, precision: Precision, runner: Runner, *, graphs: bool = False) -> Measured:
    found = tuple(measure(runner, wanted.image, batch) for batch in wanted.batches)
    clocks = gpu_clocks() if isinstance(runner, TensorRTRunner) else None
    return Measured(name, precision, found, graphs, clocks=clocks)


@contextlib.contextmanager
def _baseline(
    wanted: Subject, manifest: EngineManifest, precision: Precision, options: BuildOptions
) -> Iterator[Runner]:
    """The net without quantizers in an engine's runtime, for as long as the block lasts."""
    model = fp16_baseline(wanted.model) if precision == "fp16" else float_baseline(wanted.model)
    with temporary_onnx(model) as path, scratch_folder() as folder:
        engine = folder / "model.engine"
        if manifest.runtime == "onnxruntime":
            yield OrtRunner(path)
            return
        if manifest.runtime == "tensorrt":
            build_tensorrt(path, options.profile, engine, workspace_mib=options.workspace_mib)
        else:
            assert manifest.sm is not None  # it was built for one
            build_rtx(path, manifest.sm, options.profile, engine)
        yield TensorRTRunner(engine, manifest.runtime)


def _bounds(wanted: Subject, gpus: Sequence[GpuLimits]) -> Iterator[Bound]:
    for gpu in gpus:
        for precision in _PRECISIONS:
            for batch in wanted.batches:
                yield bound(wanted.costs, gpu, precision, batch)
