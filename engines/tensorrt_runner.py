"""Runs TensorRT and TensorRT-RTX engines on the GPU through pycuda, beside whatever else uses CUDA in the process."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import numpy as np

from engines import engine_manifest
from engines.batch import native_batch
from engines.errors import CannotRunHere, InputError
from engines.host import this_host
from engines.runner import FloatArray
from engines.tensorrt import gpu_for_tensorrt
from engines.tensorrt_package import TensorRTName, load, open_log, reason

__all__ = ["TensorRTRunner", "open_engine"]

_PROFILE: Final = 0  # our engines have one optimization profile


def open_engine(folder: Path, onnx_sha256: str | None = None) -> TensorRTRunner:
    """Check an engine's record against its files and this machine, then load it.

    Args:
        folder: `engines/NAME`, as `faq-deploy build` leaves it.
        onnx_sha256: of the ONNX file that it must have been built from; None to take the record's word.

    Returns:
        A runner; close it after use.

    Raises:
        InputError: the engine is missing, changed, built from another file, or of another runtime.
        CannotRunHere: no GPU, another one, or another version of the runtime.
    """
    manifest = engine_manifest.check(folder, onnx_sha256, this_host())
    if manifest.runtime == "onnxruntime":
        raise InputError(f"{folder} is an onnxruntime engine, not a TensorRT one.", "open it with runtime onnxruntime.")
    return TensorRTRunner(folder / manifest.file, manifest.runtime)


class TensorRTRunner:
    """A loaded engine: `logits = runner(batch)`, then `runner.close()`.

    It works in the device's primary context, the one that PyTorch uses too, and makes it current only during a call.
    Calls from several threads take turns. After an error all GPU memory is free and the runner is closed.

    Args:
        engine: file that `faq-deploy build` wrote, checked by `open_engine`.
        package: what built it.

    Raises:
        InputError: the engine's inputs and outputs are not those of an image classifier.
        CannotRunHere: the package, pycuda or a GPU is missing, the engine is not for this machine, or GPU memory is
            short.
    """

    def __init__(self, engine: Path, package: TensorRTName = "tensorrt") -> None:
        self.name: str = package
        self._lock = threading.Lock()
        self._trt = load(package)
        gpu_for_tensorrt()
        self._cuda = _load_pycuda()
        logger, self._messages = open_log(package)
        self._pinned: list[Any] = []
        self._memory: list[Any] = []
        self._engine_objects: list[Any] = []  # runtime, engine, execution context: freed from the last to the first
        self._stream: Any = None
        self._execution: Any = None
        self._images: Any = None  # pinned and GPU memory of the input
        self._answers: Any = None  # the same of the logits
        self._cuda.init()
        self._context: Any = self._cuda.Device(0).retain_primary_context()
        with self._on_gpu():
            self._load_engine(engine, logger)
            self._allocate(engine)

    def __call__(self, batch: FloatArray) -> FloatArray:
        """Run one batch of any size, in pieces that fit the engine's profile.

        Args:
            batch: float32, shape (N, C, H, W), any memory layout, N >= 0.

        Returns:
            float32 logits, shape (N, classes).

        Raises:
            InputError: the wrong shape or number type, NaN, or the runner was closed.
            CannotRunHere: the GPU failed; the runner is closed then.
        """
        images = native_batch(batch, (None, *self._input_shape), self.name)
        logits = np.empty((len(images), *self._logits_shape), np.float32)
        with self._lock:
            if self._context is None:
                raise InputError(f"the {self.name} runner was closed.", "load the engine again.")
            with self._on_gpu():
                for start in range(0, len(images), self._largest):
                    piece = images[start : start + self._largest]
                    logits[start : start + len(piece)] = self._run(piece)
        return logits

    def close(self) -> None:
        """Free GPU and pinned memory and let go of the primary context; calling it twice is harmless."""
        with self._lock:
            if self._context is not None:
                with _current(self._cuda, self._context):
                    self._free()
                self._release()

    def _load_engine(self, file: Path, logger: object) -> None:
        try:
            runtime = self._trt.Runtime(logger)
        except (TypeError, RuntimeError):  # the C++ factory returned nothing
            runtime = self._made(None, "the runtime does not start")
        self._engine_objects.append(runtime)
        engine = self._made(runtime.deserialize_cuda_engine(file.read_bytes()), f"{file} does not load")
        self._engine_objects.append(engine)
        self._execution = self._made(engine.create_execution_context(), "there is too little GPU memory to run it")
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        inputs = [name for name in names if engine.get_tensor_mode(name) == self._trt.TensorIOMode.INPUT]
        outputs = [name for name in names if name not in inputs]
        if len(inputs) != 1 or not outputs:
            raise InputError(
                f"{file} has {len(inputs)} inputs and {len(outputs)} outputs, not one batch of images and logits.",
                "build it from a file that `faq-deploy export` wrote.",
            )
        if wrong := [name for name in names if engine.get_tensor_dtype(name) != self._trt.DataType.FLOAT]:
            raise InputError(f"{file}: tensor {wrong[0]!r} is not float32.", "export the model again.")
        self._input, self._outputs = inputs[0], outputs
        self._logits = "logits" if "logits" in outputs else outputs[0]
        shape = tuple(engine.get_tensor_shape(self._input))
        sizes = (shape[0],) * 2
        if shape[0] < 0:
            smallest, _, largest = engine.get_tensor_profile_shape(self._input, _PROFILE)
            sizes = (smallest[0], largest[0])
        self._smallest, self._largest = int(sizes[0]), int(sizes[1])
        self._input_shape = tuple(int(size) for size in shape[1:])

    def _allocate(self, file: Path) -> None:
        self._stream = self._cuda.Stream()
        self._set_batch(self._largest)
        self._images = self._buffer(self._input, (self._largest, *self._input_shape))
        for name in self._outputs:
            shape = tuple(int(size) for size in self._execution.get_tensor_shape(name))
            if shape[:1] != (self._largest,):
                raise InputError(f"{file}: output {name!r} has shape {shape}, not one row an image.", "export again.")
            pinned, memory = self._buffer(name, shape)
            if name == self._logits:
                self._answers, self._logits_shape = (pinned, memory), shape[1:]

    def _buffer(self, name: str, shape: tuple[int, ...]) -> tuple[Any, Any]:
        pinned = self._cuda.pagelocked_empty(shape, np.float32)
        self._pinned.append(pinned)
        memory = self._cuda.mem_alloc(pinned.nbytes)
        self._memory.append(memory)
        self._must(self._execution.set_tensor_address(name, int(memory)), f"tensor {name!r} gets no memory")
        return pinned, memory

    def _run(self, piece: FloatArray) -> FloatArray:
        rows = max(len(piece), self._smallest)  # a short last piece is filled up with zeros
        (images, images_memory), (answers, answers_memory) = self._images, self._answers
        images[: len(piece)] = piece
        images[len(piece) : rows] = 0
        self._set_batch(rows)
        self._cuda.memcpy_htod_async(images_memory, images[:rows], self._stream)
        self._must(self._execution.execute_async_v3(self._stream.handle), "the engine does not run")
        self._cuda.memcpy_dtoh_async(answers[:rows], answers_memory, self._stream)
        self._stream.synchronize()
        logits: FloatArray = answers[: len(piece)]
        return logits

    def _set_batch(self, rows: int) -> None:
        shape = (rows, *self._input_shape)
        self._must(self._execution.set_input_shape(self._input, shape), f"shape {shape} is not accepted")

    @contextlib.contextmanager
    def _on_gpu(self) -> Iterator[None]:
        """Make the context current; on an error free everything, and say in our words what CUDA said in its own."""
        failed: BaseException | None = None
        with _current(self._cuda, self._context):
            try:
                yield
            except BaseException as error:  # also Ctrl-C: the memory must not stay taken
                failed = error
                traceback.clear_frames(error.__traceback__)  # their variables point into the memory
                self._free()
        if failed is None:
            return
        self._release()
        if isinstance(failed, self._cuda.MemoryError):
            raise CannotRunHere(
                f"{self.name}: the GPU has too little free memory for its batches.",
                "end other programs on the GPU, or build with a smaller --batch MIN:OPT:MAX.",
            ) from failed
        if isinstance(failed, self._cuda.Error):
            raise CannotRunHere(f"{self.name}: CUDA failed: {failed}.", "run `faq-deploy doctor`.") from failed
        raise failed

    def _must(self, accepted: bool, what: str) -> None:
        if not accepted:
            raise CannotRunHere(
                f"{self.name}: {what}: {reason(self._messages, 'no reason was given')}.", "build the engine again here."
            )

    def _made(self, made: Any, what: str) -> Any:
        self._must(made is not None, what)
        return made

    def _free(self) -> None:
        self._execution = None
        while self._engine_objects:
            self._engine_objects.pop()
        self._stream = None
        while self._memory:
            self._memory.pop().free()
        self._images = self._answers = None
        while self._pinned:
            self._pinned.pop().base.free()

    def _release(self) -> None:
        context, self._context = self._context, None
        _detach(context)


def _load_pycuda() -> ModuleType:
    try:
        return importlib.import_module("pycuda.driver")
    except ModuleNotFoundError as error:
        raise CannotRunHere("running an engine needs pycuda, which is not installed.", "pip install pycuda.") from error
    except ImportError as error:
        raise CannotRunHere(f"pycuda does not load: {error}.", "install it again for this CUDA version.") from error


@contextlib.contextmanager
def _current(cuda: ModuleType, context: Any) -> Iterator[None]:
    context.push()
    try:
        yield
    finally:
        cuda.Context.pop()


def _detach(context: Any) -> None:
    """Release the primary context and leave the thread's context stack as it was.

    pycuda pushes a context to detach it and counts on the driver to pop it. For a primary context the driver does
    not: a context that may be gone would stay current, for PyTorch to stumble over.
    """
    library = ctypes.CDLL("libcuda.so.1")

    def now() -> int | None:
        handle = ctypes.c_void_p()
        return handle.value if library.cuCtxGetCurrent(ctypes.byref(handle)) == 0 else -1

    before = now()
    context.detach()
    if now() != before:
        library.cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p()))
