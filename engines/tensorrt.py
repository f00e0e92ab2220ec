"""Engines from an ONNX file by TensorRT 10 or 11 (on the GPU) and TensorRT-RTX (ahead of time, without a GPU)."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from engines import onnx_facts
from engines.errors import CannotRunHere, InputError
from engines.files import atomic_path, write_atomic
from engines.host import Gpu, driver
from engines.profile import Profile, Shapes
from engines.tensorrt_package import OLDEST_SM, Messages, TensorRTName, load, open_log, reason, rtx_sms

__all__ = [
    "BuiltEngine",
    "build_rtx",
    "build_tensorrt",
    "check_signed",
    "check_sm",
    "gpu_for_tensorrt",
]


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
    """

    path: Path
    version: str
    seconds: float
    shapes: Mapping[str, Shapes]
    warnings: tuple[str, ...]
    gpu: Gpu | None = None


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
        InputError: an architecture without INT8 or unknown here, or a file that the parser or builder refuses.
        CannotRunHere: tensorrt_rtx is missing.
    """
    check_sm(sm)
    check_signed(onnx_facts.read(onnx_path))

    def configure(trt: ModuleType, config: Any) -> None:
        config.num_compute_capabilities = 1
        if not config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{sm}"), 0):
            raise CannotRunHere(f"TensorRT-RTX does not accept SM {sm}.", "leave it out, or upgrade tensorrt_rtx.")

    return _build("tensorrt-rtx", onnx_path, profile, output, configure, f"for SM {sm}")


def build_tensorrt(
    onnx_path: Path,
    profile: Profile,
    output: Path,
    *,
    timing_cache: Path | None = None,
    workspace_mib: int | None = None,
) -> BuiltEngine:
    """Build an engine with TensorRT 10 or 11 on this machine's first GPU, strongly typed.

    Args:
        onnx_path: QDQ file of target `tensorrt`.
        profile: batch sizes for inputs whose first dimension is dynamic.
        output: the engine file to write.
        timing_cache: file with kernel timings, read if it fits this GPU and version, and written after the build.
        workspace_mib: most GPU memory a kernel may use while it runs, in MiB; None leaves TensorRT's own limit.

    Returns:
        The engine.

    Raises:
        InputError: a file that the parser or builder refuses.
        CannotRunHere: TensorRT is missing or a placeholder, or there is no GPU that runs INT8.
    """
    load("tensorrt")
    check_signed(onnx_facts.read(onnx_path))
    gpu = gpu_for_tensorrt()
    used: list[Any] = []

    def configure(trt: ModuleType, config: Any) -> None:
        if workspace_mib is not None:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace_mib << 20)
        if timing_cache is not None:
            _use_timing_cache(config, timing_cache)
            used.append(config)

    built = _build("tensorrt", onnx_path, profile, output, configure, f"on {gpu.name}", gpu)
    if timing_cache is not None and (cache := used[0].get_timing_cache()) is not None:
        write_atomic(timing_cache, bytes(memoryview(cache.serialize())))
    return built


def gpu_for_tensorrt() -> Gpu:
    """The GPU that TensorRT would build for and run on.

    Returns:
        The driver's first GPU.

    Raises:
        CannotRunHere: there is none, or it is older than INT8 tensor cores.
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
    return found.gpus[0]


def _build(
    name: TensorRTName,
    onnx_path: Path,
    profile: Profile,
    output: Path,
    configure: Callable[[ModuleType, Any], None],
    where: str,
    gpu: Gpu | None = None,
) -> BuiltEngine:
    trt = load(name)
    logger, messages = open_log(name)
    started = time.perf_counter()
    try:
        builder = trt.Builder(logger)
    except (TypeError, RuntimeError) as error:  # the C++ factory returned nothing
        raise CannotRunHere(
            f"{name} {trt.__version__} does not start: {reason(messages, str(error))}.", "run `faq-deploy doctor`."
        ) from error
    # TensorRT 11 knows only strong typing: there the flag is ignored, and may be gone
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if flag is None else 1 << int(flag))
    _parse(trt, network, logger, messages, onnx_path)
    config = builder.create_builder_config()
    configure(trt, config)
    shapes = _add_profile(builder, config, network, profile, onnx_path)
    serialized = builder.build_serialized_network(network, config)
    if serialized is None:
        why = reason(messages, "the builder gave no reason")
        raise InputError(
            f"{onnx_path} could not be built {where}: {why}.",
            "the other GPUs' engines don't depend on it: leave this one out, or change the layer named above.",
        )
    with atomic_path(output) as temporary:
        temporary.write_bytes(memoryview(serialized))
    return BuiltEngine(output, trt.__version__, time.perf_counter() - started, shapes, tuple(messages.warnings), gpu)


def _parse(trt: ModuleType, network: Any, logger: object, messages: Messages, onnx_path: Path) -> None:
    parser = trt.OnnxParser(network, logger)
    if parser.parse_from_file(str(onnx_path)) and network.num_outputs:
        return
    found = [_parser_error(parser.get_error(index)) for index in range(parser.num_errors)]
    why = "; ".join(found) if found else reason(messages, "it has no outputs")
    raise InputError(
        f"{onnx_path} is refused by the ONNX parser of {trt.__name__} {trt.__version__}: {why}.",
        "export the run again with --target tensorrt; if it was, keep that layer out of the model or in float.",
    )


def _parser_error(error: Any) -> str:
    text = " ".join(str(error.desc()).split()).rstrip(".")
    node, operator = error.node_name(), error.node_operator()
    return f"node {node!r} ({operator}): {text}" if node or operator else text


def _add_profile(builder: Any, config: Any, network: Any, profile: Profile, onnx_path: Path) -> dict[str, Shapes]:
    shapes: dict[str, Shapes] = {}
    optimization = builder.create_optimization_profile()
    dynamic = False
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        shape = tuple(int(size) for size in tensor.shape)
        if -1 in shape[1:]:
            raise InputError(
                f"{onnx_path}: input {tensor.name!r} has shape {shape}, dynamic in more than its batch.",
                "export with a fixed image size; only the first dimension may be dynamic.",
            )
        shapes[tensor.name] = profile.shapes(shape)
        if -1 in shape:
            dynamic = True
            optimization.set_shape(tensor.name, *shapes[tensor.name])
    if dynamic and config.add_optimization_profile(optimization) < 0:
        raise InputError(f"{onnx_path}: profile {profile} is not accepted.", "pass another --batch MIN:OPT:MAX.")
    return shapes


def _use_timing_cache(config: Any, file: Path) -> None:
    saved = config.create_timing_cache(file.read_bytes() if file.is_file() else b"")
    # a cache of another GPU or version is not accepted: start an empty one
    if saved is None or not config.set_timing_cache(saved, ignore_mismatch=False):
        config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)
