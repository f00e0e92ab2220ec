"""The verb `doctor`: what this machine can do, and what to install for the rest."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Literal, TypeVar

from engines.errors import CannotRunHere
from engines.extras import pip_install
from engines.host import Driver, c_compiler, cuda_of, driver, installed
from engines.tensorrt_package import OLDEST_SM, TensorRTName, load, rtx_sms
from engines.timing_cache import cache_folder

__all__ = ["Check", "Status", "as_json", "diagnose"]

Status = Literal["ok", "missing", "limited"]

_T = TypeVar("_T")

_MIB: Final = 1 << 20
_GIB: Final = 1 << 30
_ENOUGH_MEMORY: Final = 4 * _GIB  # calibrating a ResNet-18 at 224 pixels takes about 3
_ENOUGH_SHARED: Final = 128 * _MIB  # Docker's default is 64


@dataclass(frozen=True)
class Check:
    """One line of the diagnosis.

    Args:
        name: what was looked at.
        status: "ok", "missing", or "limited": it is there but can't do all.
        detail: what was found.
        remedy: what to do; empty when ok.
    """

    name: str
    status: Status
    detail: str
    remedy: str = ""


def diagnose() -> list[Check]:
    """Look at the machine. torch is not imported, no CUDA context is made, nothing is downloaded."""
    gpu_driver = driver()
    torch = f"{pip_install('torch')} (needed by quantize and export, not by build and the engines)."
    return [
        Check("python", "ok", f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
        _package("faq-deploy", "faq_deploy", "pip install -e . in the source folder."),
        _package("torch", "torch", torch),
        _package("torchvision", "torchvision", torch),
        _driver(gpu_driver),
        _gpu(gpu_driver),
        _cpu(),
        _package("onnx", "onnx", "pip install onnx."),
        _onnxruntime(),
        _tensorrt("tensorrt", gpu_driver),
        _tensorrt("tensorrt-rtx", gpu_driver),
        *_dla(),
        _timing_cache(),
        _pycuda(),
        _c_compiler(),
        _memory(),
        _shared_memory(),
    ]


def as_json(checks: Sequence[Check]) -> str:
    """The diagnosis as a JSON list of objects with name, status, detail and remedy."""
    return json.dumps([asdict(check) for check in checks], indent=2)


def _package(name: str, module: str, remedy: str) -> Check:
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return Check(name, "missing", "not installed", remedy)
    if importlib.util.find_spec(module) is None:
        return Check(name, "missing", f"{version} is listed, but its module {module} is not there", remedy)
    return Check(name, "ok", version)


def _driver(found: Driver) -> Check:
    if found.cuda is None:
        return Check(
            "CUDA driver", "missing", found.trouble, "install NVIDIA's driver (onnxruntime engines run without one)."
        )
    return Check("CUDA driver", "ok", f"supports CUDA {found.cuda}")


def _gpu(found: Driver) -> Check:
    if not found.gpus:
        remedy = "engines for GPUs can be built here by tensorrt-rtx, and run on a machine with a GPU."
        return Check("GPU", "missing", found.trouble, remedy)
    texts = [f"{gpu.name}, SM {gpu.sm}, {gpu.memory / _GIB:.0f} GiB" for gpu in found.gpus]
    if found.gpus[0].sm < OLDEST_SM:
        return Check("GPU", "limited", "; ".join(texts), "INT8 needs SM 7.5 or newer: use --runtime onnxruntime.")
    return Check("GPU", "ok", "; ".join(texts))


def _cpu() -> Check:
    try:
        from engines.ort import cpu_features
    except ImportError as error:
        return Check("CPU", "limited", f"its INT8 features were not read: {error}", "pip install onnx.")
    features = cpu_features()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    known = {"AVX2": features.avx2, "AVX-512": features.avx512, "VNNI": features.vnni}
    said = ", ".join(f"{name} {value}" for name, value in known.items())
    detail = f"{features.model}, {cores} {'core' if cores == 1 else 'cores'}, {said}"
    if features.avx2 == "yes" and features.vnni == "no":
        remedy = "8-bit codes would saturate in INT8 sums here: keep --cpu any, whose 7-bit codes are exact."
        return Check("CPU", "limited", detail, remedy)
    return Check("CPU", "ok", detail)


def _onnxruntime() -> Check:
    version = installed("onnxruntime")
    if version is None:
        return Check("onnxruntime", "missing", "not installed", "pip install onnxruntime.")
    spec = importlib.util.find_spec("onnxruntime")
    folders = spec.submodule_search_locations or [] if spec is not None else []
    libraries = [file.name for folder in folders for file in Path(folder).glob("capi/libonnxruntime_providers_*.so")]
    others = sorted({name.removeprefix("libonnxruntime_providers_").removesuffix(".so") for name in libraries})
    providers = ["cpu", *(name for name in others if name != "shared")]
    return Check("onnxruntime", "ok", f"{version}, providers {', '.join(providers)}")


def _tensorrt(name: TensorRTName, found: Driver) -> Check:
    try:
        module = load(name)
    except CannotRunHere as error:
        return Check(name, "missing", error.what, error.remedy)
    version = str(module.__version__)
    needed = cuda_of(name)
    if found.cuda is not None and needed is not None and int(found.cuda.partition(".")[0]) < needed:
        detail = f"{version}, made for CUDA {needed}, but the driver supports CUDA {found.cuda}"
        return Check(name, "limited", detail, "upgrade the NVIDIA driver (CUDA 13 needs 580 or newer).")
    if name == "tensorrt-rtx":
        return Check(name, "ok", f"{version}, builds ahead of time for SM {', '.join(str(sm) for sm in rtx_sms())}")
    if not found.gpus:
        return Check(name, "limited", f"{version}, but {found.trouble}", "build on the machine that runs the engine.")
    return Check(name, "ok", version)


def _pycuda() -> Check:
    version = installed("pycuda")
    return Check("pycuda", "ok", version or "not installed: engines reach CUDA through the driver itself")


def _c_compiler() -> Check:
    absent = "none: training on a CPU takes a few percent longer, with the same results"
    return Check("C compiler", "ok", c_compiler() or absent)


def _dla() -> list[Check]:
    """Only where there can be one: on ARM, as a Jetson."""
    if platform.machine() != "aarch64":
        return []
    remedy = "build for the GPU of the Jetson (`faq-deploy build` without --dla)."
    return [Check("DLA", "missing", "no engines are built for a DLA", remedy)]


def _timing_cache() -> Check:
    folder = cache_folder()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        remedy = "set XDG_CACHE_HOME to a folder that can be written; without one, TensorRT builds take longer."
        return Check("timing cache", "limited", f"{folder} can't be written", remedy)
    files = list(folder.glob("*.cache"))
    held = f"{len(files)} {'GPU' if len(files) == 1 else 'GPUs'}, {sum(f.stat().st_size for f in files) / _MIB:.1f} MiB"
    return Check("timing cache", "ok", f"{folder}, {held if files else 'empty'}")


def _memory() -> Check:
    info = _value(Path("/proc/meminfo"), _meminfo)
    if info is None:
        return Check("memory", "limited", "this system does not say", "see that about 4 GiB are free.")
    total, available = info
    limit = _value(Path("/sys/fs/cgroup/memory.max"), int)  # a container's own limit
    if limit is not None:
        total, available = min(total, limit), min(available, limit)
    detail = f"{available / _GIB:.1f} of {total / _GIB:.1f} GiB free"
    if available < _ENOUGH_MEMORY:
        return Check("memory", "limited", detail, "use a smaller --batch-size for quantize, such as 32.")
    return Check("memory", "ok", detail)


def _shared_memory(path: Path = Path("/dev/shm")) -> Check:
    try:
        status = os.statvfs(path)
    except OSError:
        return Check("shared memory", "limited", f"{path} is not there", "pass --workers 0.")
    size = status.f_frsize * status.f_blocks
    if size < _ENOUGH_SHARED:
        remedy = "if loading images dies of a bus error, pass --workers 0, or docker run --shm-size 1g."
        return Check("shared memory", "limited", f"{size / _MIB:.0f} MiB", remedy)
    return Check("shared memory", "ok", f"{size / _MIB:,.0f} MiB")


def _meminfo(text: str) -> tuple[int, int]:
    """Total and available bytes."""
    kibibytes = {key: int(value.split()[0]) for key, _, value in (line.partition(":") for line in text.splitlines())}
    return kibibytes["MemTotal"] << 10, kibibytes["MemAvailable"] << 10


def _value(file: Path, parse: Callable[[str], _T]) -> _T | None:
    """What a system file says; None where there is no such file, or it names no number ("max")."""
    try:
        return parse(file.read_text())
    except (OSError, ValueError, KeyError):
        return None
