"""Engines from an ONNX file by TensorRT 10 or 11 (on the GPU) and TensorRT-RTX (ahead of time, without a GPU)."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from engines import onnx_facts, tensorrt_config
from engines.build_config import check_hardware
from engines.build_options import Hardware
from engines.errors import CannotRunHere, InputError
from engines.files import atomic_path
from engines.host import Gpu, cuda_of, driver, free_memory
from engines.profile import Profile, Shapes
from engines.tensorrt_api import TensorRTApi, tensorrt_api
from engines.tensorrt_inspector import layers_as_json
from engines.tensorrt_package import OLDEST_SM, Messages, TensorRTName, open_log, reason, rtx_sms
from engines.timing_cache import Tell, shared_timings, timings_file

if TYPE_CHECKING:
    import tensorrt as trt

__all__ = [
    "BuilderRefusal",
    "BuiltEngine",
    "build_rtx",
    "build_tensorrt",
    "check_signed",
    "check_sm",
    "gpu_for_tensorrt",
]

Configure = Callable[[TensorRTApi, "trt.IBuilderConfig"], None]


class BuilderRefusal(InputError):
    """TensorRT's parser or builder refuses the network itself (exit code 2)."""


@dataclass(frozen=True)
class BuiltEngine:
    """An engine file and how it came to be.

    Args:
        path: the file.
        version: of the package that built it.
        seconds: spent building, parsing included.
        shapes: each input's smallest, best and largest shape.
        warnings: what the builder warned of.
        gpu: the GPU it was built on; None when built ahead of time.
        notes: what did not go as it should, a sentence each.
        layers: the engine inspector's JSON; None when built ahead of time, or where it fails.
    """

    path: Path
    version: str
    seconds: float
    shapes: Mapping[str, Shapes]
    warnings: tuple[str, ...]
    gpu: Gpu | None = None
    notes: tuple[str, ...] = ()
    layers: str | None = None


def check_sm(sm: int) -> None:
    """See that TensorRT-RTX builds INT8 for a GPU architecture.

    Args:
        sm: the architecture as one number; 8.6 is 86.

    Raises:
        InputError: it is too old for INT8, or this TensorRT-RTX doesn't know it.
        CannotRunHere: tensorrt_rtx is missing.
    """
    if sm < OLDEST_SM:
        raise InputError(f"INT8 needs SM 7.5 or newer, so there is no engine for SM {sm}.", f"leave out --sm {sm}.")
    known = rtx_sms()
    if sm not in known:
        names = " ".join(f"--sm {one}" for one in known)
        raise InputError(f"SM {sm} is unknown to this TensorRT-RTX.", f"it builds for {names}.")


def check_signed(facts: onnx_facts.OnnxFacts) -> None:
    """See that TensorRT can hold the codes of a file, before its parser is called.

    Args:
        facts: of the file.

    Raises:
        InputError: there are uint8 codes. The parser refuses zero points other than 0, and silently reads uint8
            with zero point 0 as int8, where codes 128..255 saturate.
    """
    if facts.unsigned_node is not None:
        made_for = f"was made for target {facts.target}" if facts.target else "stores codes as uint8"
        raise InputError(
            f"{facts.path} {made_for}, and TensorRT has no uint8 codes (node {facts.unsigned_node}).",
            "make the run with --target tensorrt.",
        )


def build_rtx(onnx_path: Path, sm: int, profile: Profile, output: Path) -> BuiltEngine:
    """Build a TensorRT-RTX engine for one GPU architecture, ahead of time; no GPU is needed.

    Args:
        onnx_path: QDQ file of target `tensorrt`.
        sm: the architecture as one number; 8.6 is 86.
        profile: batch sizes for inputs whose first dimension is dynamic.
        output: the engine file to write.

    Returns:
        The engine.

    Raises:
        InputError: an architecture without INT8 or unknown here.
        BuilderRefusal: a file that the parser or builder refuses.
        CannotRunHere: tensorrt_rtx is missing.
    """
    check_sm(sm)
    check_signed(onnx_facts.read(onnx_path))
    job = _Job(
        "tensorrt-rtx",
        onnx_path,
        profile,
        f"for SM {sm}",
        lambda api, config: tensorrt_config.use_architecture(config, sm),
    )
    serialized, built, _ = _build(job)
    return _written(built, serialized, output)


def build_tensorrt(
    onnx_path: Path,
    profile: Profile,
    output: Path,
    *,
    hardware: Hardware = "exact",
    version_compatible: bool = False,
    workspace_mib: int | None = None,
    tell: Tell | None = None,
) -> BuiltEngine:
    """Build an engine with TensorRT 10 or 11 on this machine's first GPU, strongly typed.

    Kernel timings of earlier builds on this GPU model are used, and kept for later ones; see `timing_cache`.

    Args:
        onnx_path: QDQ file of target `tensorrt`.
        profile: batch sizes for inputs whose first dimension is dynamic.
        output: the engine file to write.
        hardware: which other GPUs the engine must run on.
        version_compatible: later versions of TensorRT can load it.
        workspace_mib: most GPU memory a kernel may use while it runs, in MiB; None takes what is free.
        tell: told when the build has to wait for another one.

    Returns:
        The engine.

    Raises:
        InputError: `hardware` that this GPU can't build for.
        BuilderRefusal: a file that the parser or builder refuses.
        CannotRunHere: TensorRT is missing or a placeholder, the driver is too old, or no GPU runs INT8.
    """
    api = tensorrt_api("tensorrt")
    check_signed(onnx_facts.read(onnx_path))
    gpu = gpu_for_tensorrt()
    check_hardware(gpu, hardware)
    workspace = free_memory(gpu) if workspace_mib is None else workspace_mib << 20
    notes: list[str] = []
    with shared_timings(timings_file(gpu, api.__version__), tell or (lambda _: None)) as timings:

        def configure(api: TensorRTApi, config: trt.IBuilderConfig) -> None:
            tensorrt_config.tell_layers(api, config)
            tensorrt_config.limit_workspace(api, config, workspace)
            tensorrt_config.allow_other_hardware(api, config, hardware)
            if version_compatible:
                tensorrt_config.allow_other_versions(api, config)
            if not tensorrt_config.use_timings(config, timings.data) and timings.data:
                notes.append("The timing cache did not fit this GPU and version: it was started anew.")

        job = _Job("tensorrt", onnx_path, profile, f"on {gpu.name}", configure)
        serialized, built, config = _build(job)
        timings.result = tensorrt_config.measured_timings(config)
    made = _written(built, serialized, output)
    logger, messages = open_log("tensorrt")
    layers, trouble = layers_as_json(api, logger, messages, serialized, host_code=version_compatible)
    notes += timings.notes + ([trouble] if trouble is not None else [])
    return replace(made, gpu=gpu, notes=tuple(notes), layers=layers)


def gpu_for_tensorrt(package: TensorRTName = "tensorrt") -> Gpu:
    """The GPU that TensorRT would build for and run on.

    Args:
        package: that would do it.

    Returns:
        The driver's first GPU.

    Raises:
        CannotRunHere: there is none, it is older than INT8 tensor cores, or its driver is older than the package.
    """
    found = driver()
    if not found.gpus:
        raise CannotRunHere(
            f"TensorRT needs an NVIDIA GPU here: {found.trouble}.",
            "build on the machine that will run the engine, or use --runtime tensorrt-rtx, which builds ahead of time.",
        )
    if found.gpus[0].sm < OLDEST_SM:
        raise CannotRunHere(
            f"{found.gpus[0].name} is SM {found.gpus[0].sm}: INT8 needs SM 7.5 or newer.", "use --runtime onnxruntime."
        )
    needed = cuda_of(package)
    if needed is not None and found.cuda is not None and int(found.cuda.partition(".")[0]) < needed:
        raise CannotRunHere(
            f"The NVIDIA driver is too old for the installed {package}: it supports CUDA {found.cuda}, and the package "
            f"is made for CUDA {needed}.",
            f"upgrade the driver (CUDA 13 needs 580 or newer), or install {package} for CUDA {found.cuda}.",
        )
    return found.gpus[0]


@dataclass(frozen=True)
class _Job:
    name: TensorRTName
    onnx_path: Path
    profile: Profile
    where: str  # for messages
    configure: Configure


def _build(job: _Job) -> tuple[bytes, BuiltEngine, trt.IBuilderConfig]:
    """The serialized engine, what is known of it, and the configuration with its timings."""
    api = tensorrt_api(job.name)
    logger, messages = open_log(job.name)
    started = time.perf_counter()
    try:
        builder = api.Builder(logger)
    except (TypeError, RuntimeError) as error:  # the C++ factory returned nothing
        raise CannotRunHere(
            f"{job.name} {api.__version__} does not start: {reason(messages, str(error))}.", "run `faq-deploy doctor`."
        ) from error
    network = builder.create_network(tensorrt_config.creation_flags(api))
    _parse(api, job, network, logger, messages)
    config = builder.create_builder_config()
    job.configure(api, config)
    shapes = tensorrt_config.add_profile(api, builder, config, network, job.profile, job.onnx_path)
    serialized = builder.build_serialized_network(network, config)
    if serialized is None:
        raise _not_built(job, reason(messages, "the builder gave no reason"))
    seconds = time.perf_counter() - started
    built = BuiltEngine(job.onnx_path, api.__version__, seconds, shapes, tuple(messages.warnings))
    return bytes(memoryview(serialized)), built, config


def _not_built(job: _Job, why: str) -> CannotRunHere | BuilderRefusal:
    """Whether the machine or the network is at fault, as far as the builder's words tell."""
    what = f"{job.onnx_path} could not be built {job.where}: {why}."
    if "libnvinfer_lean" in why:
        return CannotRunHere(
            f"--version-compatible needs TensorRT's lean runtime, which does not load: {why}.",
            "pip install tensorrt-lean of the same version as tensorrt, or leave out --version-compatible.",
        )
    if job.name == "tensorrt" and re.search("out ?of ?memory", why, re.IGNORECASE):
        return CannotRunHere(
            what, "end other programs on the GPU, or pass a smaller --workspace or --batch MIN:OPT:MAX."
        )
    if job.name == "tensorrt" and "cudaError" in why:
        return CannotRunHere(what, "run `faq-deploy doctor`: CUDA fails on this machine.")
    return BuilderRefusal(
        what, "the other GPUs' engines don't depend on it: leave this one out, or change the layer named above."
    )


def _written(built: BuiltEngine, serialized: bytes, output: Path) -> BuiltEngine:
    with atomic_path(output) as temporary:
        temporary.write_bytes(serialized)
    return replace(built, path=output)


def _parse(
    api: TensorRTApi, job: _Job, network: trt.INetworkDefinition, logger: trt.ILogger, messages: Messages
) -> None:
    parser = api.OnnxParser(network, logger)
    if parser.parse_from_file(str(job.onnx_path)) and network.num_outputs:
        return
    found = [_parser_error(parser.get_error(index)) for index in range(parser.num_errors)]
    why = "; ".join(found) if found else reason(messages, "it has no outputs")
    raise BuilderRefusal(
        f"{job.onnx_path} is refused by the ONNX parser of {job.name} {api.__version__}: {why}.",
        "`faq-deploy lint FILE --target tensorrt` says more; export a run with --target tensorrt.",
    )


def _parser_error(error: trt.ParserError) -> str:
    text = " ".join(str(error.desc()).split()).rstrip(".")
    node, operator = error.node_name(), error.node_operator()
    return f"node {node!r} ({operator}): {text}" if node or operator else text
