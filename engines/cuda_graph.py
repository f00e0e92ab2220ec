"""Work of a CUDA stream recorded once and launched as one, straight from the driver: pycuda has no graphs."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Final

from engines import cuda_driver

__all__ = ["CudaGraph"]

_THREAD_LOCAL: Final = 1  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL: other threads of the process may use CUDA meanwhile


class CudaGraph:
    """A recorded piece of work. A context must be current in all calls.

    Args:
        stream: the driver's handle of the stream.
        record: puts the work on that stream; nothing of it runs yet.

    Raises:
        cuda_driver.Error: the driver refuses, or the work holds a call that can't be recorded.
    """

    def __init__(self, stream: int, record: Callable[[], None]) -> None:
        self._stream = ctypes.c_void_p(stream)
        self._executable = ctypes.c_void_p()
        graph = ctypes.c_void_p()
        cuda_driver.call("cuStreamBeginCapture_v2", self._stream, _THREAD_LOCAL)
        try:
            record()
        except BaseException:
            cuda_driver.library().cuStreamEndCapture(self._stream, ctypes.byref(graph))
            raise
        cuda_driver.call("cuStreamEndCapture", self._stream, ctypes.byref(graph))
        try:
            flags = ctypes.c_ulonglong(0)
            cuda_driver.call("cuGraphInstantiateWithFlags", ctypes.byref(self._executable), graph, flags)
        finally:
            cuda_driver.library().cuGraphDestroy(graph)

    def launch(self) -> None:
        """Put the work on the stream."""
        cuda_driver.call("cuGraphLaunch", self._executable, self._stream)

    def free(self) -> None:
        """Give it back."""
        cuda_driver.call("cuGraphExecDestroy", self._executable)
