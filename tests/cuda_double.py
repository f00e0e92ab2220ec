"""Test doubles of pycuda.driver and TensorRT with a heap, a context stack and one small net, for boxes without a GPU.

They refuse what the real ones refuse: work without a current context, addresses that hold no memory, batches outside
the profile, memory that is not contiguous. The net's logits are, per image, the sum of the pixels and the first pixel.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["CudaDouble"]

FloatArray = npt.NDArray[np.float32]


class CudaError(Exception):
    """pycuda.driver.Error."""


class CudaMemoryError(CudaError):
    """pycuda.driver.MemoryError."""


class CudaDouble:
    """The two modules, and what a test wants to know about them.

    Args:
        profile: smallest, best and largest batch; equal sizes make a fixed batch.
        image: (C, H, W).
        inputs: names of the engine's inputs.
    """

    def __init__(
        self,
        profile: tuple[int, int, int] = (1, 2, 4),
        image: tuple[int, int, int] = (2, 3, 3),
        inputs: tuple[str, ...] = ("input",),
    ) -> None:
        self.profile, self.image, self.inputs = profile, image, inputs
        self.stack: list[str] = []  # of current contexts
        self.retained = 0
        self.memory: dict[int, FloatArray] = {}  # GPU memory by address
        self.pinned = 0
        self.alive: list[str] = []  # TensorRT objects, in the order of their making
        self.batches: list[int] = []  # sizes that were run
        self.pieces: list[FloatArray] = []  # their images
        self.fail: dict[str, Callable[[], object]] = {}  # what to do instead, by the name of a call
        self.dead = False  # a GPU that lets no context become current: what it held can only be dropped
        self.recording: list[Callable[[], None]] | None = None  # what a stream records now
        self.graphs: dict[int, list[Callable[[], None]]] = {}
        self.recorded = 0  # graphs so far
        self.next_address = 4096
        self.stream: int | None = 77  # that work must be put on; None takes any

    def during(self, call: str) -> object:
        """Every call of the doubles passes here: the context must be current, and a planned failure happens."""
        if self.stack[-1:] != ["primary"]:
            raise CudaError(f"{call}: no currently active context?")
        return self.fail[call]() if call in self.fail else True

    def pycuda(self) -> ModuleType:
        module = ModuleType("pycuda.driver")
        double = self

        class Device:
            def __init__(self, index: int) -> None:
                assert index == 0

            def retain_primary_context(self) -> SimpleNamespace:
                double.retained += 1
                thread = threading.get_ident()
                return SimpleNamespace(
                    push=lambda: double.stack.append("primary"), detach=lambda: double.detach(thread)
                )

        class Stream:
            handle = 77

            def __init__(self) -> None:
                double.during("Stream")

            def synchronize(self) -> None:
                double.during("synchronize")

        vars(module).update(
            init=lambda: None,
            Device=Device,
            Stream=Stream,
            Context=SimpleNamespace(pop=self.stack.pop),
            Error=CudaError,
            MemoryError=CudaMemoryError,
            pagelocked_empty=self._pagelocked,
            mem_alloc=self._mem_alloc,
            memcpy_htod_async=self._to_gpu,
            memcpy_dtoh_async=self._from_gpu,
        )
        return module

    def tensorrt(self) -> ModuleType:
        module = ModuleType("tensorrt")
        double = self

        class Logger:
            pass

        class Runtime:
            def __init__(self, logger: Logger) -> None:
                double.during("Runtime")
                double.alive.append("runtime")

            def deserialize_cuda_engine(self, data: bytes) -> object:
                return Engine() if data == b"engine" and double.during("deserialize") else None

            def __del__(self) -> None:
                double.alive.remove("runtime")

        class Engine:
            num_io_tensors = len(double.inputs) + 2

            def __init__(self) -> None:
                double.alive.append("engine")

            def create_execution_context(self) -> object:
                return Execution(double) if double.during("create_execution_context") else None

            def get_tensor_name(self, index: int) -> str:
                return (*double.inputs, "extra", "logits")[index]

            def get_tensor_mode(self, name: str) -> str:
                return "in" if name in double.inputs else "out"

            def get_tensor_dtype(self, name: str) -> str:
                return "float"

            def get_tensor_shape(self, name: str) -> tuple[int, ...]:
                smallest, _, largest = double.profile
                return (largest if smallest == largest else -1, *double.image)

            def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
                assert profile == 0
                return [(size, *double.image) for size in double.profile]

            def __del__(self) -> None:
                assert double.dead or double.stack[-1:] == ["primary"], "the engine was freed outside its context"
                double.alive.remove("engine")

        vars(module).update(
            __version__="10.13.3.9",
            Builder=object,
            BuilderFlag=object,
            NetworkDefinitionCreationFlag=object,
            ILogger=Logger,
            Runtime=Runtime,
            TensorIOMode=SimpleNamespace(INPUT="in"),
            DataType=SimpleNamespace(FLOAT="float"),
        )
        return module

    def address(self, size: int) -> int:
        """Take GPU memory for `size` float32 numbers, filled with noise."""
        address, self.next_address = self.next_address, self.next_address + 4096
        self.memory[address] = np.full(size, np.float32(-99))
        return address

    def detach(self, thread: int) -> None:
        """As pycuda does it: pushed and not popped again, and only in the thread that retained the context."""
        if thread == threading.get_ident():
            self.stack.append("primary")
            self.retained -= 1

    def driver(self) -> SimpleNamespace:
        """The driver's library, as far as a context is let go through it."""

        def current(handle: Any) -> int:
            handle._obj.value = len(self.stack)
            return 0

        def pop(handle: Any) -> int:
            self.stack.pop()
            return 0

        def release(device: object) -> int:
            self.retained -= 1
            return 0

        def begin(stream: Any, mode: int) -> int:
            assert (stream.value, mode, self.recording) == (77, 1, None)
            self.recording = []
            return 0

        def end(stream: Any, graph: Any) -> int:
            recorded, self.recording = self.recording, None
            assert recorded is not None
            if not self.during("cuStreamEndCapture"):
                return 901  # CUDA_ERROR_STREAM_CAPTURE_INVALIDATED
            self.recorded += 1
            graph._obj.value = self.recorded
            self.graphs[self.recorded] = recorded
            return 0

        def instantiate(executable: Any, graph: Any, flags: Any) -> int:
            executable._obj.value = graph.value
            return 0

        def launch(executable: Any, stream: Any) -> int:
            self.during("cuGraphLaunch")
            for work in self.graphs[executable.value]:
                work()
            return 0

        def destroy(executable: Any) -> int:
            self.during("cuGraphExecDestroy")
            del self.graphs[executable.value]
            return 0

        return SimpleNamespace(
            cuStreamBeginCapture_v2=begin,
            cuStreamEndCapture=end,
            cuGraphInstantiateWithFlags=instantiate,
            cuGraphDestroy=lambda graph: 0,
            cuGraphLaunch=launch,
            cuGraphExecDestroy=destroy,
            cuGetErrorName=lambda code, text: 0,
            cuCtxGetCurrent=current,
            cuCtxPopCurrent_v2=pop,
            cuDeviceGet=lambda device, index: index,
            cuDevicePrimaryCtxRelease_v2=release,
        )

    def _pagelocked(self, shape: tuple[int, ...], dtype: type[np.float32]) -> Any:
        self.during("pagelocked_empty")
        self.pinned += 1
        array = np.full(shape, np.nan, dtype).view(_Pinned)
        array.owner = SimpleNamespace(free=self._free_pinned)
        return array

    def _free_pinned(self) -> None:
        self.during("free pinned")
        self.pinned -= 1

    def _mem_alloc(self, size: int) -> _Allocation:
        self.during("mem_alloc")
        return _Allocation(self, self.address(size // 4))

    def _to_gpu(self, memory: _Allocation, host: FloatArray, stream: object) -> None:
        self.during("memcpy_htod_async")
        assert host.flags.c_contiguous
        self.memory[int(memory)][: host.size] = host.ravel()

    def _from_gpu(self, host: FloatArray, memory: _Allocation, stream: object) -> None:
        self.during("memcpy_dtoh_async")
        assert host.flags.c_contiguous
        host[...] = self.memory[int(memory)][: host.size].reshape(host.shape)


class _Pinned(np.ndarray[Any, np.dtype[np.float32]]):
    """An array whose `base` can be freed, as pycuda's."""

    owner: Any = None

    @property
    def base(self) -> Any:
        return self.owner


class _Allocation:
    def __init__(self, double: CudaDouble, address: int) -> None:
        self.double, self.number = double, address

    def __int__(self) -> int:
        return self.number

    def free(self) -> None:
        self.double.during("free")
        del self.double.memory[self.number]


class Execution:
    """An execution context."""

    def __init__(self, double: CudaDouble) -> None:
        self.double, self.rows = double, 0
        self.addresses: dict[str, int] = {}
        double.alive.append("execution")

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.rows = shape[0]
        fits = self.double.profile[0] <= shape[0] <= self.double.profile[2] and shape[1:] == self.double.image
        return bool(self.double.during("set_input_shape")) and fits

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return {"logits": (self.rows, 2), "extra": (self.rows, 5)}[name]

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return address in self.double.memory

    def execute_async_v3(self, stream: int) -> bool:
        assert stream == self.double.stream or (self.double.stream is None and stream)
        if not self.double.during("execute_async_v3"):
            return False
        assert set(self.addresses) == {*self.double.inputs, "extra", "logits"}
        if self.double.recording is None:
            self.run(self.rows)
        else:
            self.double.recording.append(partial(self.run, self.rows))
        return True

    def run(self, rows: int) -> None:
        """The kernels, now or when a graph is launched."""
        size = int(np.prod(self.double.image))
        images = self.double.memory[self.addresses["input"]][: rows * size].reshape(rows, size).copy()
        self.double.batches.append(rows)
        self.double.pieces.append(images)
        answers = np.stack([images.sum(1), images[:, 0]], axis=1)
        self.double.memory[self.addresses["logits"]][: answers.size] = answers.ravel()

    def __del__(self) -> None:
        assert self.double.dead or self.double.stack[-1:] == ["primary"], "it was freed outside its CUDA context"
        self.double.alive.remove("execution")
