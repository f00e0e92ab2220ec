"""CUDA as a runner uses it: the few calls, and what offers them: pycuda, or the driver itself (`cuda_driver`).

Both have the names of `pycuda.driver`. The context is the device's primary one, which PyTorch uses too; it is current
only inside `current`, so that neither gets in the way of the other.
"""

# ruff: noqa: N802 - the protocols have pycuda's names

from __future__ import annotations

import contextlib
import ctypes
import importlib
import threading
from collections.abc import Callable, Iterator
from typing import Any, Protocol, cast

import numpy.typing as npt

from engines import cuda_driver
from engines.errors import CannotRunHere

__all__ = ["Context", "Cuda", "Device", "Memory", "Stream", "current", "load_cuda", "release"]


class Memory(Protocol):
    """GPU memory; `int()` gives its address."""

    def __int__(self) -> int: ...

    def free(self) -> None:
        """Give it back."""
        ...


class Stream(Protocol):
    """A queue of copies and kernels; it goes with its last reference."""

    @property
    def handle(self) -> int:
        """The driver's, for libraries that put their work on it."""
        ...

    def synchronize(self) -> None:
        """Wait until all its work is done."""
        ...


class Context(Protocol):
    """A primary context."""

    def push(self) -> None:
        """Make it current in this thread."""
        ...

    def detach(self) -> None:
        """Release it."""
        ...


class Device(Protocol):
    """A GPU."""

    def retain_primary_context(self) -> Context:
        """Its primary context, kept alive until it is detached."""
        ...


class _Contexts(Protocol):
    def pop(self) -> None:
        """Make current again what was before."""
        ...


class Cuda(Protocol):
    """The calls, as a module: `pycuda.driver` or `engines.cuda_driver`."""

    @property
    def Error(self) -> type[Exception]:
        """Of every refused call; its message names the call and the driver's error."""
        ...

    @property
    def MemoryError(self) -> type[Exception]:
        """There is too little memory."""
        ...

    @property
    def Context(self) -> _Contexts:
        """Its `pop` undoes a push."""
        ...

    @property
    def Device(self) -> Callable[[int], Device]:
        """The GPU of a number."""
        ...

    @property
    def Stream(self) -> Callable[[], Stream]:
        """A new stream."""
        ...

    def init(self) -> None:
        """Start the driver."""
        ...

    def mem_alloc(self, size: int, /) -> Memory:
        """Take GPU memory, in bytes."""
        ...

    def pagelocked_empty(self, shape: tuple[int, ...], dtype: npt.DTypeLike, /) -> npt.NDArray[Any]:
        """An array in pinned host memory; `array.base.free()` gives it back."""
        ...

    def memcpy_htod_async(self, memory: Any, host: npt.NDArray[Any], stream: Any, /) -> None:
        """Copy an array (C contiguous) to the GPU, in the stream's order."""
        ...

    def memcpy_dtoh_async(self, host: npt.NDArray[Any], memory: Any, stream: Any, /) -> None:
        """Copy GPU memory into an array (C contiguous), in the stream's order."""
        ...


def load_cuda() -> Cuda:
    """pycuda; the driver itself where that is not installed.

    Raises:
        CannotRunHere: pycuda is installed and does not load.
    """
    try:
        return cast(Cuda, importlib.import_module("pycuda.driver"))
    except ModuleNotFoundError:
        return cuda_driver
    except ImportError as error:
        raise CannotRunHere(
            f"pycuda does not load: {error}.",
            "install it again for this CUDA version, or uninstall it: it is not needed.",
        ) from error


@contextlib.contextmanager
def current(cuda: Cuda, context: Context) -> Iterator[None]:
    """Make a context current in this thread for a while."""
    context.push()
    try:
        yield
    finally:
        cuda.Context.pop()


def release(cuda: Cuda, context: Context, thread: int) -> None:
    """Let go of the first GPU's primary context, in any thread, and leave the thread's context stack as it was.

    pycuda's `detach` needs two things made good. In the thread that retained the context it pushes it and counts on
    the driver to pop it, which the driver does not do for a primary context: one that may be gone would stay current,
    for PyTorch to stumble over. In any other thread it does nothing.

    Args:
        cuda: that retained it.
        context: the context.
        thread: that retained it, as `threading.get_ident` says.

    Source: `context::detach` in pycuda's src/cpp/cuda.hpp.
    """
    library = cuda_driver.library()

    def now() -> int | None:
        handle = ctypes.c_void_p()
        return handle.value if library.cuCtxGetCurrent(ctypes.byref(handle)) == 0 else -1

    before = now()
    try:
        context.detach()
    finally:
        if now() != before:
            library.cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p()))
    if cuda is not cuda_driver and thread != threading.get_ident():
        cuda_driver.Device(0).release_primary_context()
