"""Runs TensorRT and TensorRT-RTX engines on the GPU, beside whatever else uses CUDA in the process."""

from __future__ import annotations

import contextlib
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np

from engines import cuda_driver
from engines.batch import native_batch
from engines.cuda import Context, Memory, Stream, current, load_cuda, release
from engines.cuda_graph import CudaGraph
from engines.errors import CannotRunHere, InputError
from engines.runner import FloatArray
from engines.tensorrt import gpu_for_tensorrt
from engines.tensorrt_package import TensorRTName, load, open_log, reason

__all__ = ["TensorRTRunner"]

_PROFILE: Final = 0  # our engines have one optimization profile


class TensorRTRunner:
    """A loaded engine: `logits = runner(batch)`, then `runner.close()`.

    It works in the device's primary context, the one that PyTorch uses too, and makes it current only during a call.
    Calls from several threads take turns. After an error all GPU memory is free and the runner is closed.

    Args:
        engine: file that `faq-deploy build` wrote; go through `open_engine`, which checks it.
        package: what built it.
        host_code: let it bring code for the CPU, as version-compatible engines do; only for files of one's own.

    Raises:
        InputError: the engine's inputs and outputs are not those of an image classifier.
        CannotRunHere: the package or a GPU is missing, the engine is not for this machine, or GPU memory is
            short.
    """

    def __init__(self, engine: Path, package: TensorRTName = "tensorrt", *, host_code: bool = False) -> None:
        self.name: str = package
        self._lock = threading.Lock()
        self._trt = load(package)
        gpu_for_tensorrt(package)
        self._cuda = load_cuda()
        logger, self._messages = open_log(package)
        self._pinned: list[Any] = []
        self._memory: list[Memory] = []
        self._engine_objects: list[Any] = []  # runtime, engine, execution context: freed from the last to the first
        self._stream: Stream | None = None
        self._execution: Any = None
        self._images: Any = None  # pinned and GPU memory of the input
        self._answers: dict[str, tuple[Any, Memory]] = {}  # the same of each output
        self._in_graphs = False
        self._graphs: dict[int, CudaGraph] = {}  # by batch
        try:
            self._cuda.init()
            self._thread = threading.get_ident()
            self._context: Context | None = self._cuda.Device(0).retain_primary_context()
        except self._cuda.Error as error:
            raise self._failed(error) from error
        with self._on_gpu():
            self._load_engine(engine, logger, host_code)
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
        return self._outputs_of(batch, [self.logits_name])[self.logits_name]

    def outputs(self, batch: FloatArray) -> dict[str, FloatArray]:
        """Run one batch and return every output by name, float32, one row an image.

        Args:
            batch: as for a call.

        Raises:
            InputError: as for a call.
            CannotRunHere: as for a call.
        """
        return self._outputs_of(batch, list(self._shapes))

    def _outputs_of(self, batch: FloatArray, names: list[str]) -> dict[str, FloatArray]:
        images = native_batch(batch, (None, *self._input_shape), self.name)
        found = {name: np.empty((len(images), *self._shapes[name]), np.float32) for name in names}
        with self._lock:
            if self._context is None:
                raise InputError(f"the {self.name} runner was closed.", "load the engine again.")
            with self._on_gpu():
                for start in range(0, len(images), self._largest):
                    piece = images[start : start + self._largest]
                    self._run(piece, names)
                    for name in names:
                        found[name][start : start + len(piece)] = self._answers[name][0][: len(piece)]
        return found

    def use_graphs(self) -> None:
        """From now on launch the kernels of a batch as one CUDA graph, recorded when its size first comes."""
        self._in_graphs = True

    def close(self) -> None:
        """Free GPU and pinned memory and let go of the primary context; calling it twice is harmless.

        Raises:
            CannotRunHere: the GPU failed and refuses to free.
        """
        with self._lock:
            if self._context is None:
                return
            failed = self._free_on_gpu(self._context)
            refused = self._release()
        failed = failed or refused
        if isinstance(failed, self._cuda.Error):
            raise self._failed(failed) from failed
        if failed is not None:
            raise failed

    def _load_engine(self, file: Path, logger: object, host_code: bool) -> None:
        try:
            runtime = self._trt.Runtime(logger)
        except (TypeError, RuntimeError):  # the C++ factory returned nothing
            runtime = self._made(None, "the runtime does not start")
        self._engine_objects.append(runtime)
        if host_code:
            runtime.engine_host_code_allowed = True
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
        self._input = inputs[0]
        self.logits_name = "logits" if "logits" in outputs else outputs[0]
        self._shapes: dict[str, tuple[int, ...]] = dict.fromkeys(outputs, ())  # of one image's row
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
        for name in self._shapes:
            shape = tuple(int(size) for size in self._execution.get_tensor_shape(name))
            if shape[:1] != (self._largest,):
                raise InputError(f"{file}: output {name!r} has shape {shape}, not one row an image.", "export again.")
            self._answers[name], self._shapes[name] = self._buffer(name, shape), shape[1:]

    def _buffer(self, name: str, shape: tuple[int, ...]) -> tuple[Any, Any]:
        pinned = self._cuda.pagelocked_empty(shape, np.float32)
        self._pinned.append(pinned)
        memory = self._cuda.mem_alloc(pinned.nbytes)
        self._memory.append(memory)
        self._must(self._execution.set_tensor_address(name, int(memory)), f"tensor {name!r} gets no memory")
        return pinned, memory

    def _run(self, piece: FloatArray, names: list[str]) -> None:
        stream = self._stream
        assert stream is not None
        rows = max(len(piece), self._smallest)  # a short last piece is filled up with zeros
        images, images_memory = self._images
        images[: len(piece)] = piece
        images[len(piece) : rows] = 0
        self._set_batch(rows)
        self._cuda.memcpy_htod_async(images_memory, images[:rows], stream)
        self._execute(rows, stream.handle)
        for name in names:
            answers, answers_memory = self._answers[name]
            self._cuda.memcpy_dtoh_async(answers[:rows], answers_memory, stream)
        stream.synchronize()

    def _execute(self, rows: int, stream: int) -> None:
        def kernels() -> None:
            self._must(self._execution.execute_async_v3(stream), "the engine does not run")

        try:
            if rows in self._graphs:
                return self._graphs[rows].launch()
            kernels()  # also before a recording: TensorRT sets itself up for the batch
            if self._in_graphs:
                self._graphs[rows] = CudaGraph(stream, kernels)
        except cuda_driver.Error as error:
            raise CannotRunHere(f"{self.name}: its kernels make no CUDA graph: {error}.", "run it without.") from error

    def _set_batch(self, rows: int) -> None:
        shape = (rows, *self._input_shape)
        self._must(self._execution.set_input_shape(self._input, shape), f"shape {shape} is not accepted")

    @contextlib.contextmanager
    def _on_gpu(self) -> Iterator[None]:
        """Make the context current; on an error free everything, and say in our words what CUDA said in its own."""
        assert self._context is not None
        failed: BaseException | None = None
        try:
            with current(self._cuda, self._context):
                try:
                    yield
                except BaseException as error:  # also Ctrl-C: the memory must not stay taken
                    failed = error
                    traceback.clear_frames(error.__traceback__)  # their variables point into the memory
                    self._free()
        except self._cuda.Error as error:  # a GPU that failed can refuse even to change contexts
            failed = failed or error
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
            raise self._failed(failed) from failed
        raise failed

    def _failed(self, error: BaseException) -> CannotRunHere:
        return CannotRunHere(f"{self.name}: CUDA failed: {error}.", "run `faq-deploy doctor`.")

    def _must(self, accepted: bool, what: str) -> None:
        if not accepted:
            raise CannotRunHere(
                f"{self.name}: {what}: {reason(self._messages, 'no reason was given')}.", "build the engine again here."
            )

    def _made(self, made: Any, what: str) -> Any:
        self._must(made is not None, what)
        return made

    def _free(self) -> BaseException | None:
        """Free everything and return the first error: after some failures the GPU refuses these calls too."""
        errors: list[BaseException] = []

        def attempt(action: Callable[[], object]) -> None:
            try:
                action()
            except BaseException as error:  # also a second Ctrl-C: the rest must be freed all the same
                errors.append(error.with_traceback(None))  # its frames would keep the stream alive

        if self._stream is not None:  # after Ctrl-C the GPU may still be at work on what is freed next
            attempt(self._stream.synchronize)
        while self._graphs:
            attempt(self._graphs.popitem()[1].free)
        self._execution = None
        while self._engine_objects:
            self._engine_objects.pop()
        self._stream = None
        while self._memory:
            attempt(self._memory.pop().free)
        self._images, self._answers = None, {}
        while self._pinned:
            attempt(self._pinned.pop().base.free)
        return errors[0] if errors else None

    def _free_on_gpu(self, context: Context) -> BaseException | None:
        """Free everything with the context current, and all the same where it can't be made so."""
        failed: BaseException | None = None
        try:
            with current(self._cuda, context):
                failed = self._free()
        except self._cuda.Error as error:
            self._free()
            return failed or error
        return failed

    def _release(self) -> BaseException | None:
        """Let go of the context; the error is returned, since it comes after another one as a rule."""
        context, self._context = self._context, None
        if context is not None:
            try:
                release(self._cuda, context, self._thread)
            except self._cuda.Error as error:
                return error
        return None
