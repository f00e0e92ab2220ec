"""What this machine has, found without loading any runtime: NVIDIA GPUs by their driver, packages by metadata."""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

__all__ = [
    "C_COMPILERS",
    "Driver",
    "Gpu",
    "Host",
    "RuntimeName",
    "c_compiler",
    "cuda_of",
    "driver",
    "free_memory",
    "installed",
    "same_version",
    "this_host",
    "tool_version",
]

C_COMPILERS: Final = ("cc", "gcc", "clang")

RuntimeName = Literal["onnxruntime", "tensorrt", "tensorrt-rtx"]

# module -> distributions that bring it, newest CUDA first; wheels and Jetson's Debian packages name them differently
_DISTRIBUTIONS: Final[Mapping[str, tuple[str, ...]]] = {
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu"),
    "tensorrt": ("tensorrt", "tensorrt-cu13", "tensorrt-cu12", "tensorrt-cu11"),
    "tensorrt_rtx": ("tensorrt-rtx", "tensorrt-rtx-cu13", "tensorrt-rtx-cu12"),
}
_MODULES: Final[Mapping[RuntimeName, str]] = {
    "onnxruntime": "onnxruntime",
    "tensorrt": "tensorrt",
    "tensorrt-rtx": "tensorrt_rtx",
}
_FREE_SHARE: Final = 0.9  # of a GPU's memory, where the driver does not say
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR, cuda.h


@dataclass(frozen=True)
class Gpu:
    """One NVIDIA GPU. `sm` is its compute capability as one number: 8.6 is 86. Memory in bytes."""

    name: str
    sm: int
    memory: int


@dataclass(frozen=True)
class Driver:
    """The CUDA driver's answer.

    Args:
        cuda: newest CUDA it supports, such as "13.0"; None where no driver answers.
        gpus: in the driver's order; the first one is used.
        trouble: why there are no GPUs; empty where there are some.
    """

    cuda: str | None
    gpus: tuple[Gpu, ...]
    trouble: str = ""


@dataclass(frozen=True)
class Host:
    """What decides whether an engine can run on a machine: its first GPU and each runtime's version."""

    gpu: Gpu | None
    versions: Mapping[str, str]


def driver() -> Driver:
    """Ask the CUDA driver for its version and GPUs (no torch, no pycuda, no CUDA context)."""
    try:
        library = _library()
    except OSError:
        return Driver(None, (), "no NVIDIA driver (libcuda.so.1 was not found)")
    if code := library.cuInit(0):
        return Driver(None, (), f"the NVIDIA driver does not start: {_error_text(library, code)}")
    version, count = ctypes.c_int(), ctypes.c_int()
    library.cuDriverGetVersion(ctypes.byref(version))
    cuda = f"{version.value // 1000}.{version.value % 1000 // 10}"
    if code := library.cuDeviceGetCount(ctypes.byref(count)):
        return Driver(cuda, (), f"the NVIDIA driver lists no GPU: {_error_text(library, code)}")
    if count.value == 0:
        return Driver(cuda, (), "the NVIDIA driver lists no GPU")
    return Driver(cuda, tuple(_gpu(library, index) for index in range(count.value)))


def installed(module: str) -> str | None:
    """Version of the distribution that brings `module`, from metadata; None where it is not installed.

    Args:
        module: an importable name, such as "tensorrt_rtx" or "pycuda".

    Returns:
        The version as the distribution writes it.
    """
    for distribution in _DISTRIBUTIONS.get(module, (module,)):
        try:
            version = importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
        if importlib.util.find_spec(module) is not None:
            return version
    return None


def tool_version() -> str:
    """The version of faq-deploy, for records; `0+unknown` in a checkout that was never installed."""
    try:
        return importlib.metadata.version("faq-deploy")
    except importlib.metadata.PackageNotFoundError:
        return "0+unknown"


def this_host() -> Host:
    """The GPU and the runtimes of this machine, without importing a runtime."""
    found = {name: installed(module) for name, module in _MODULES.items()}
    gpus = driver().gpus
    return Host(gpus[0] if gpus else None, {name: version for name, version in found.items() if version is not None})


def cuda_of(runtime: RuntimeName) -> int | None:
    """Major version of CUDA that an installed package is made for, from metadata.

    Args:
        runtime: of TensorRT or TensorRT-RTX.

    Returns:
        13 for `tensorrt-cu13`; the lowest where there are several, None where no name says it (as on a Jetson).
    """
    pattern = re.compile(rf"{_MODULES[runtime]}_cu(\d+)(_libs|_bindings)?")
    names = (distribution.metadata["Name"] or "" for distribution in importlib.metadata.distributions())
    found = [pattern.fullmatch(name.lower().replace("-", "_").replace(".", "_")) for name in names]
    return min((int(match[1]) for match in found if match is not None), default=None)


def free_memory(gpu: Gpu) -> int:
    """Bytes of GPU memory that nothing uses now.

    The primary context is retained for the question and released again, so that nothing stays taken.

    Args:
        gpu: the driver's first one.

    Returns:
        What the driver says, or nine tenths of the GPU's memory where it does not say.
    """
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    try:
        library = _library()
        if library.cuInit(0) == 0 and _in_primary_context(
            library, lambda: library.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total))
        ):
            return free.value
    except (OSError, AttributeError):  # no driver, or one without these functions
        pass
    return int(gpu.memory * _FREE_SHARE)


def same_version(built: str, found: str) -> bool:
    """Whether an engine built by version `built` loads in version `found`: up to four numbers must be equal.

    A suffix such as `.post1` belongs to the wheel, not to the library, and Debian's metadata names three numbers.
    """
    ours, theirs = (re.findall(r"\d+", text.split(".post")[0])[:4] for text in (built, found))
    length = min(len(ours), len(theirs))
    return length > 0 and ours[:length] == theirs[:length]


def _library() -> ctypes.CDLL:
    return ctypes.CDLL("libcuda.so.1")


def _in_primary_context(library: ctypes.CDLL, ask: Callable[[], int]) -> bool:
    """Call a driver function with the first GPU's primary context current; whether all went well."""
    device, context = ctypes.c_int(), ctypes.c_void_p()
    if library.cuDeviceGet(ctypes.byref(device), 0) or library.cuDevicePrimaryCtxRetain(ctypes.byref(context), device):
        return False
    try:
        if library.cuCtxPushCurrent_v2(context):
            return False
        try:
            return ask() == 0
        finally:
            library.cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p()))
    finally:
        library.cuDevicePrimaryCtxRelease_v2(device)


def _gpu(library: ctypes.CDLL, index: int) -> Gpu:
    device, major, minor, memory = ctypes.c_int(), ctypes.c_int(), ctypes.c_int(), ctypes.c_size_t()
    name = ctypes.create_string_buffer(256)
    library.cuDeviceGet(ctypes.byref(device), index)
    library.cuDeviceGetName(name, len(name), device)
    library.cuDeviceGetAttribute(ctypes.byref(major), _MAJOR, device)
    library.cuDeviceGetAttribute(ctypes.byref(minor), _MINOR, device)
    library.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
    return Gpu(name.value.decode(errors="replace"), major.value * 10 + minor.value, memory.value)


def _error_text(library: ctypes.CDLL, code: int) -> str:
    text = ctypes.c_char_p()
    library.cuGetErrorString(code, ctypes.byref(text))
    return f"{(text.value or b'unknown error').decode(errors='replace')} (error {code})"


def c_compiler() -> str | None:
    """The path of the C compiler that `CC` names, or else of the first of `C_COMPILERS`; None without one."""
    named = os.environ.get("CC", "").split()  # it may have options, which are the caller's to choose
    return next((found for name in (*named[:1], *C_COMPILERS) if (found := shutil.which(name))), None)
