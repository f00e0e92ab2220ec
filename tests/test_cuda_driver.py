"""The runner through the driver alone: a compiled driver without a GPU counts what is taken and given back."""

from __future__ import annotations

import ctypes
import gc
import shutil
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from engines import cuda_driver, tensorrt_package, tensorrt_runner
from engines.errors import CannotRunHere
from engines.host import Gpu
from engines.reference import ReferenceRunner
from engines.tensorrt_runner import TensorRTRunner
from tests.cuda_double import CudaDouble
from tests.layer_forms import layer
from tests.onnx_nets import saved

SOURCE = Path(__file__).with_name("driver_double.c")
NOTHING = {"current": 0, "retained": 0, "streams": 0, "blocks": 0, "pinned": 0}
RUNNING = {"current": 0, "retained": 1, "streams": 1, "blocks": 3, "pinned": 3}
OUT_OF_MEMORY, UNKNOWN = 2, 999


class HostMemory:
    """Memory of the compiled driver as the TensorRT double looks at it: float32 arrays by address."""

    def __getitem__(self, address: int) -> npt.NDArray[np.float32]:
        size = ctypes.c_size_t.from_address(address - 8).value
        return np.ctypeslib.as_array((ctypes.c_float * (size // 4)).from_address(address))

    def __contains__(self, address: int) -> bool:
        return address > 0


class DriverDouble(CudaDouble):
    """TensorRT's double over the compiled driver's memory and contexts."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library = library
        super().__init__()
        self.memory = HostMemory()  # type: ignore[assignment]
        self.stream = None

    @property
    def stack(self) -> list[str]:
        """The compiled driver's own."""
        return ["primary"] * self.counts()["current"]

    @stack.setter
    def stack(self, value: list[str]) -> None:
        assert value == []

    def counts(self) -> dict[str, int]:
        found = (ctypes.c_int * 5)()
        self.library.double_counts(found)
        return dict(zip(NOTHING, found, strict=True))


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler to make the driver's double with")
    built = tmp_path_factory.mktemp("driver") / "libcuda.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", str(built), str(SOURCE)], check=True)
    return ctypes.CDLL(str(built))


@pytest.fixture
def double(library: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[DriverDouble]:
    library.double_fail(b"", 0)
    made = DriverDouble(library)
    monkeypatch.setattr(cuda_driver, "library", lambda: library)
    monkeypatch.setitem(sys.modules, "pycuda", None)
    monkeypatch.setitem(sys.modules, "pycuda.driver", None)
    monkeypatch.setitem(sys.modules, "tensorrt", made.tensorrt())
    monkeypatch.setattr(tensorrt_runner, "gpu_for_tensorrt", lambda package: Gpu("double", 86, 1 << 30))
    tensorrt_package._logger.cache_clear()
    yield made
    tensorrt_package._logger.cache_clear()
    gc.collect()
    assert made.counts() == NOTHING
    assert made.alive == []


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    file = tmp_path / "model.engine"
    file.write_bytes(b"engine")
    return file


def pictures(count: int) -> npt.NDArray[np.float32]:
    return np.random.default_rng(count).integers(-50, 50, (count, 2, 3, 3)).astype(np.float32)


def expected(images: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    return np.stack([images.sum((1, 2, 3)), images[:, 0, 0, 0]], axis=1)


def test_without_pycuda_the_driver_alone_runs_the_engine(double: DriverDouble, engine: Path) -> None:
    runner = TensorRTRunner(engine)
    assert np.array_equal(runner(pictures(11)), expected(pictures(11)))
    assert double.batches == [4, 4, 3]
    assert {name: found.shape for name, found in runner.outputs(pictures(3)).items()} == {
        "extra": (3, 5),
        "logits": (3, 2),
    }
    assert double.counts() == RUNNING
    runner.close()
    runner.close()


def test_thousands_of_runs_take_nothing_more(double: DriverDouble, engine: Path) -> None:
    runner = TensorRTRunner(engine)
    images = pictures(5)
    for _ in range(3000):
        runner(images)
    assert double.counts() == RUNNING
    runner.close()


@pytest.mark.parametrize("first", [0, 1])
def test_two_runners_close_in_either_order(double: DriverDouble, engine: Path, first: int) -> None:
    runners = [TensorRTRunner(engine), TensorRTRunner(engine)]
    assert double.counts() == {name: 2 * count for name, count in RUNNING.items()}
    runners[first].close()
    assert np.array_equal(runners[1 - first](pictures(2)), expected(pictures(2)))
    runners[1 - first].close()


def test_calls_from_threads_take_turns(double: DriverDouble, engine: Path) -> None:
    runner = TensorRTRunner(engine)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda count: runner(pictures(count)), range(1, 40)))
    assert all(np.array_equal(logits, expected(pictures(count))) for count, logits in enumerate(found, 1))
    runner.close()


def test_runner_that_ends_in_another_thread_leaves_nothing(double: DriverDouble, engine: Path) -> None:
    runner = TensorRTRunner(engine)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(runner.close).result()
    assert double.counts() == NOTHING


LOADING = ("cuInit", "cuDeviceGet", "cuDevicePrimaryCtxRetain", "cuStreamCreate", "cuMemAllocHost_v2", "cuMemAlloc_v2")
RUN = ("cuMemcpyHtoDAsync_v2", "cuMemcpyDtoHAsync_v2", "cuStreamSynchronize")


@pytest.mark.parametrize("call", LOADING)
def test_failure_while_loading_leaves_nothing_taken(double: DriverDouble, engine: Path, call: str) -> None:
    double.library.double_fail(call.encode(), UNKNOWN)
    with pytest.raises(CannotRunHere, match=rf"CUDA failed: {call}: CUDA_ERROR_UNKNOWN \(error 999\)"):
        TensorRTRunner(engine)
    assert double.library.double_failed() == 1


@pytest.mark.parametrize("call", RUN)
def test_failure_during_a_run_frees_everything(double: DriverDouble, engine: Path, call: str) -> None:
    runner = TensorRTRunner(engine)
    double.library.double_fail(call.encode(), UNKNOWN)
    with pytest.raises(CannotRunHere, match=f"CUDA failed: {call}"):
        runner(pictures(2))
    gc.collect()
    assert double.counts() == NOTHING


CONTEXTS = ("cuCtxPushCurrent_v2", "cuCtxPopCurrent_v2", "cuDevicePrimaryCtxRelease_v2")


@pytest.mark.parametrize("call", CONTEXTS[:2])
@pytest.mark.parametrize("use", ["call", "close"])
def test_gpu_that_refuses_to_change_contexts_is_one_sentence_and_closes_the_runner(
    library: ctypes.CDLL, double: DriverDouble, engine: Path, call: str, use: str
) -> None:
    runner = TensorRTRunner(engine)
    library.double_fail(call.encode(), UNKNOWN)
    double.dead = "Push" in call
    with pytest.raises(CannotRunHere, match=rf"CUDA failed: {call}: CUDA_ERROR_UNKNOWN \(error 999\)"):
        runner(pictures(2)) if use == "call" else runner.close()
    gc.collect()
    # nothing can be freed without a context; one that can't be popped stays
    kept = {"streams": 1, "blocks": 3, "pinned": 3} if "Push" in call else {"current": 1}
    assert double.counts() == {**NOTHING, **kept}
    assert double.alive == []
    runner.close()
    library.double_forget()


@pytest.mark.parametrize("cause", ["", "cuStreamSynchronize"])
def test_context_that_is_not_let_go_does_not_hide_the_cause(
    library: ctypes.CDLL, double: DriverDouble, engine: Path, cause: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = TensorRTRunner(engine)
    library.double_fail(CONTEXTS[2].encode(), UNKNOWN)
    if cause:
        monkeypatch.setattr(cuda_driver.Stream, "synchronize", lambda stream: cuda_driver.call(cause, None))
    with pytest.raises(CannotRunHere, match=f"CUDA failed: {cause or CONTEXTS[2]}"):
        runner(pictures(2)) if cause else runner.close()
    gc.collect()
    assert double.counts() == {**NOTHING, "retained": 1}
    library.double_forget()


@pytest.mark.parametrize(("call", "left"), [("cuMemFree_v2", "blocks"), ("cuMemFreeHost", "pinned")])
def test_what_cannot_be_freed_does_not_keep_the_rest(
    library: ctypes.CDLL, double: DriverDouble, engine: Path, call: str, left: str
) -> None:
    runner = TensorRTRunner(engine)
    library.double_fail(call.encode(), UNKNOWN)
    with pytest.raises(CannotRunHere, match=f"CUDA failed: {call}"):
        runner.close()
    assert double.counts() == {**NOTHING, left: 3}
    library.double_forget()


@pytest.mark.parametrize("call", ["cuMemAllocHost_v2", "cuMemAlloc_v2"])
def test_too_little_memory_is_named(double: DriverDouble, engine: Path, call: str) -> None:
    double.library.double_fail(call.encode(), OUT_OF_MEMORY)
    with pytest.raises(CannotRunHere, match="too little free memory"):
        TensorRTRunner(engine)


def test_reference_runner_keeps_no_memory_after_thousands_of_runs(tmp_path: Path) -> None:
    image = np.random.default_rng(0).normal(size=(1, 3, 4, 4)).astype(np.float32)
    runner = ReferenceRunner(saved(layer("Conv", (3, 4, 4), (4, 3, 3, 3)), tmp_path))
    runner(image)
    tracemalloc.start()
    try:
        for _ in range(200):
            runner(image)
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(2000):
            runner(image)
        gc.collect()
        assert (
            tracemalloc.get_traced_memory()[0] - before < 2000 * 16
        )  # bytes: a leak of one small array a run would be more
    finally:
        tracemalloc.stop()
