"""The little of CUDA that a runner needs, straight from the driver's library, for boxes without pycuda.

pycuda must be compiled against a CUDA toolkit, which edge boxes seldom have, and NVIDIA's own Python bindings come in
one release for each CUDA version. The driver API is a stable C interface that the driver itself brings, on PCs and
Jetsons alike, so that ctypes is enough. Names and behaviour are those of `pycuda.driver`.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

__all__ = [
    "Context",
    "Device",
    "Error",
    "MemoryError",
    "Stream",
    "call",
    "init",
    "library",
    "mem_alloc",
    "memcpy_dtoh_async",
    "memcpy_htod_async",
    "pagelocked_empty",
]

_OUT_OF_MEMORY: Final = 2  # CUDA_ERROR_OUT_OF_MEMORY, cuda.h
_NON_BLOCKING: Final = 1  # CU_STREAM_NON_BLOCKING: it does not wait for the legacy stream, which others may use


class Error(Exception):
    """The driver refused a call; the message names the call and the error."""


class MemoryError(Error):
    """The GPU, or the host's pinned memory, has too little left."""


@functools.cache
def library() -> ctypes.CDLL:
    """The driver's library.

    Raises:
        OSError: there is none.
    """
    return ctypes.CDLL("libcuda.so.1")


def init() -> None:
    """Start the driver; calling it again is harmless."""
    call("cuInit", 0)


class Device:
    """A GPU.

    Args:
        index: in the driver's order.
    """

    def __init__(self, index: int) -> None:
        self._handle = ctypes.c_int()
        call("cuDeviceGet", ctypes.byref(self._handle), index)

    def retain_primary_context(self) -> Context:
        """The context that PyTorch and the CUDA runtime use too; `detach` lets go of it."""
        context = ctypes.c_void_p()
        call("cuDevicePrimaryCtxRetain", ctypes.byref(context), self._handle)
        return Context(context, self._handle)

    def release_primary_context(self) -> None:
        """Undo one `retain_primary_context`; the driver destroys the context when nobody else holds it."""
        call("cuDevicePrimaryCtxRelease_v2", self._handle)


class Context:
    """A primary context, current between `push` and `pop`."""

    def __init__(self, handle: ctypes.c_void_p, device: ctypes.c_int) -> None:
        self._handle, self._device = handle, device

    def push(self) -> None:
        """Make it current in this thread."""
        call("cuCtxPushCurrent_v2", self._handle)

    @staticmethod
    def pop() -> None:
        """Make current again what was before."""
        call("cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_void_p()))

    def detach(self) -> None:
        """Release it; the driver destroys it when nobody else holds it."""
        call("cuDevicePrimaryCtxRelease_v2", self._device)


class Stream:
    """A queue of copies and kernels. `handle` is the driver's, as a number."""

    def __init__(self) -> None:
        self._pointer = ctypes.c_void_p()
        call("cuStreamCreate", ctypes.byref(self._pointer), _NON_BLOCKING)

    @property
    def handle(self) -> int:
        """For libraries that put their work on it."""
        return self._pointer.value or 0

    def synchronize(self) -> None:
        """Wait until all its work is done."""
        call("cuStreamSynchronize", self._pointer)

    def __del__(self) -> None:
        if self._pointer.value:
            library().cuStreamDestroy_v2(self._pointer)


class _Allocation:
    """GPU memory; `int()` gives its address."""

    def __init__(self, size: int) -> None:
        self._pointer = ctypes.c_uint64()
        call("cuMemAlloc_v2", ctypes.byref(self._pointer), ctypes.c_size_t(size))

    def __int__(self) -> int:
        return self._pointer.value

    def free(self) -> None:
        """Give it back."""
        call("cuMemFree_v2", self._pointer)


class _Pinned:
    """Host memory that the GPU can reach without a copy; the `base` of the array that shows it."""

    def __init__(self, shape: Sequence[int], dtype: np.dtype[Any]) -> None:
        size = int(np.prod(shape)) * dtype.itemsize
        self._pointer = ctypes.c_void_p()
        call("cuMemAllocHost_v2", ctypes.byref(self._pointer), ctypes.c_size_t(max(size, 1)))
        self.__array_interface__ = {
            "version": 3,
            "shape": tuple(shape),
            "typestr": dtype.str,
            "data": (self._pointer.value, False),
        }

    def free(self) -> None:
        """Give it back; the array must not be used any more."""
        call("cuMemFreeHost", self._pointer)


def mem_alloc(size: int) -> _Allocation:
    """Take GPU memory.

    Args:
        size: in bytes.

    Raises:
        MemoryError: there is too little.
    """
    return _Allocation(size)


def pagelocked_empty(shape: Sequence[int], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """An array in pinned host memory; `array.base.free()` gives the memory back.

    Args:
        shape: of the array.
        dtype: of its elements.

    Raises:
        MemoryError: there is too little.
    """
    return np.asarray(_Pinned(shape, np.dtype(dtype)))


def memcpy_htod_async(memory: _Allocation, host: npt.NDArray[Any], stream: Stream) -> None:
    """Copy an array (C contiguous) to the GPU, in the stream's order."""
    pointer, size = ctypes.c_void_p(host.ctypes.data), ctypes.c_size_t(host.nbytes)
    call("cuMemcpyHtoDAsync_v2", ctypes.c_uint64(int(memory)), pointer, size, ctypes.c_void_p(stream.handle))


def memcpy_dtoh_async(host: npt.NDArray[Any], memory: _Allocation, stream: Stream) -> None:
    """Copy GPU memory into an array (C contiguous), in the stream's order."""
    pointer, size = ctypes.c_void_p(host.ctypes.data), ctypes.c_size_t(host.nbytes)
    call("cuMemcpyDtoHAsync_v2", pointer, ctypes.c_uint64(int(memory)), size, ctypes.c_void_p(stream.handle))


def call(name: str, *arguments: object) -> None:
    """Call a function of the driver's library.

    Args:
        name: of the function.
        arguments: as ctypes takes them.

    Raises:
        Error: it did not succeed.
    """
    code = int(getattr(library(), name)(*arguments))
    if code:
        text = ctypes.c_char_p()
        library().cuGetErrorName(code, ctypes.byref(text))
        said = f"{name}: {(text.value or b'unknown error').decode(errors='replace')} (error {code})"
        raise MemoryError(said) if code == _OUT_OF_MEMORY else Error(said)
