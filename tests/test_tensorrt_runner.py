"""The pycuda runner: every memory layout, batches of any size, and nothing left behind after an error.

The first part runs on stand-ins for pycuda and TensorRT; what is marked `gpu` runs a real engine.
"""

from __future__ import annotations

import concurrent.futures
import gc
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import numpy.typing as npt
import pytest

from engines import cuda_driver, tensorrt_package, tensorrt_runner
from engines.build import build_onnx_file
from engines.build_options import BuildOptions
from engines.errors import CannotRunHere, InputError
from engines.host import Gpu
from engines.open_engine import open_engine
from engines.ort import OrtRunner
from engines.profile import Profile
from engines.tensorrt_runner import TensorRTRunner
from tests.cuda_double import CudaDouble, CudaError, CudaMemoryError
from tests.engine_nets import classifier
from tests.test_runner import LAYOUTS

Install = Callable[[CudaDouble], Path]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Puts a double in the place of the two packages and returns an engine file."""

    def put(double: CudaDouble) -> Path:
        package = ModuleType("pycuda")
        monkeypatch.setitem(sys.modules, "pycuda", package)
        monkeypatch.setitem(sys.modules, "pycuda.driver", double.pycuda())
        monkeypatch.setitem(sys.modules, "tensorrt", double.tensorrt())
        monkeypatch.setattr(tensorrt_runner, "gpu_for_tensorrt", lambda package: Gpu("double", 86, 1 << 30))
        monkeypatch.setattr(cuda_driver, "library", double.driver)
        tensorrt_package._logger.cache_clear()
        engine = tmp_path / "model.engine"
        engine.write_bytes(b"engine")
        return engine

    yield put
    tensorrt_package._logger.cache_clear()


def _images(count: int) -> npt.NDArray[np.float32]:
    # small integers: their sums are exact in any order
    return np.random.default_rng(count).integers(-50, 50, (count, 2, 3, 3)).astype(np.float32)


def _expected(images: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    return np.stack([images.sum((1, 2, 3)), images[:, 0, 0, 0]], axis=1)


def _nothing_left(double: CudaDouble) -> bool:
    gc.collect()
    return not (double.memory or double.pinned or double.alive or double.stack or double.retained)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_of_the_same_numbers_gives_the_same_logits(install: Install, layout: str) -> None:
    runner = TensorRTRunner(install(CudaDouble()))
    images = _images(4)
    same = LAYOUTS[layout](images)
    assert np.array_equal(same, images)
    assert np.array_equal(runner(same), _expected(images))
    runner.close()


def test_a_graph_is_recorded_for_each_batch_and_gives_the_same_logits(install: Install) -> None:
    double = CudaDouble((1, 2, 4))
    runner = TensorRTRunner(install(double))
    runner.use_graphs()
    for count in (4, 4, 7, 3, 4):
        assert np.array_equal(runner(_images(count)), _expected(_images(count)))
    assert double.batches == [4, 4, 4, 3, 3, 4]  # a recording runs nothing by itself
    assert len(double.graphs) == double.recorded == 2  # of 4 and of 3 images
    runner.close()
    assert not double.graphs
    assert _nothing_left(double)


def test_work_that_cant_be_recorded_is_told_and_leaves_nothing(install: Install) -> None:
    double = CudaDouble()
    runner = TensorRTRunner(install(double))
    runner.use_graphs()
    double.fail["cuStreamEndCapture"] = lambda: False
    with pytest.raises(CannotRunHere, match=r"its kernels make no CUDA graph: cuStreamEndCapture: .* .error 901"):
        runner(_images(1))
    assert not double.graphs
    assert _nothing_left(double)


def test_read_only_images_are_accepted(install: Install) -> None:
    runner = TensorRTRunner(install(CudaDouble()))
    images = _images(3)
    images.flags.writeable = False
    assert np.array_equal(runner(images), _expected(images))
    runner.close()


@pytest.mark.parametrize(
    ("profile", "count", "pieces"),
    [
        ((1, 2, 4), 1, [1]),
        ((1, 2, 4), 4, [4]),
        ((1, 2, 4), 11, [4, 4, 3]),
        ((3, 3, 4), 9, [4, 4, 3]),  # the last image alone is under the smallest batch: filled up
        ((4, 4, 4), 6, [4, 4]),  # a fixed batch
        ((1, 2, 4), 0, []),
    ],
)
def test_any_batch_is_cut_into_pieces_that_fit_the_profile(
    install: Install, profile: tuple[int, int, int], count: int, pieces: list[int]
) -> None:
    double = CudaDouble(profile)
    runner = TensorRTRunner(install(double))
    images = _images(count)
    logits = runner(images)
    assert double.batches == pieces
    assert logits.dtype == np.float32
    assert np.array_equal(logits, _expected(images))
    if pieces and sum(pieces) > count:  # leftovers of an earlier piece must not fill up a short one
        assert not double.pieces[-1][count - sum(pieces) :].any()
    runner.close()


def test_batch_of_another_shape_is_refused(install: Install) -> None:
    runner = TensorRTRunner(install(CudaDouble()))
    with pytest.raises(InputError, match=r"takes a batch of shape \(N, 2, 3, 3\), not \(1, 3, 3, 2\)"):
        runner(np.zeros((1, 3, 3, 2), np.float32))
    runner.close()


def test_numbers_that_float32_cannot_hold_are_refused(install: Install) -> None:
    runner = TensorRTRunner(install(CudaDouble()))
    with pytest.raises(InputError, match="float64"):
        runner(np.full((1, 2, 3, 3), 0.1))
    runner.close()


def test_close_frees_everything_and_can_be_repeated(install: Install) -> None:
    double = CudaDouble()
    runner = TensorRTRunner(install(double))
    assert double.retained == 1
    assert double.stack == []  # the context is current only during calls
    runner(_images(5))
    assert double.stack == []
    assert double.alive == ["runtime", "engine", "execution"]
    runner.close()
    runner.close()
    assert _nothing_left(double)
    with pytest.raises(InputError, match="runner was closed"):
        runner(_images(1))


def test_two_runners_close_in_either_order(install: Install) -> None:
    double = CudaDouble()
    engine = install(double)
    first, second = TensorRTRunner(engine), TensorRTRunner(engine)
    first.close()
    assert np.array_equal(second(_images(3)), _expected(_images(3)))
    second.close()
    assert _nothing_left(double)


def test_threads_take_turns(install: Install) -> None:
    double = CudaDouble()
    runner = TensorRTRunner(install(double))
    double.fail["memcpy_htod_async"] = lambda: time.sleep(0.001)  # time for another thread to get in between
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda count: runner(_images(count)), range(1, 20)))
    for count, logits in enumerate(results, start=1):
        assert np.array_equal(logits, _expected(_images(count)))
    runner.close()
    assert _nothing_left(double)


@pytest.mark.parametrize("fails", [False, True])
def test_runner_that_ends_in_another_thread_leaves_nothing(install: Install, fails: bool) -> None:
    double = CudaDouble()
    runner = TensorRTRunner(install(double))

    def end() -> None:
        if not fails:
            runner.close()
            return
        double.fail["execute_async_v3"] = _raise(CudaError("an illegal memory access was encountered"))
        with pytest.raises(CannotRunHere, match="illegal memory access"):
            runner(_images(3))

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        pool.submit(end).result()
    assert _nothing_left(double)


def _raise(error: BaseException) -> Callable[[], object]:
    def fail() -> object:
        raise error

    return fail


@pytest.mark.parametrize("call", ["Stream", "mem_alloc", "pagelocked_empty", "create_execution_context"])
def test_too_little_memory_while_loading_frees_what_was_taken(install: Install, call: str) -> None:
    double = CudaDouble()
    double.fail[call] = _raise(CudaMemoryError("out of memory"))
    with pytest.raises(CannotRunHere, match="tensorrt: the GPU has too little free memory") as caught:
        TensorRTRunner(install(double))
    assert caught.value.exit_code == 3
    del caught
    assert _nothing_left(double)


@pytest.mark.parametrize("call", ["memcpy_htod_async", "execute_async_v3", "memcpy_dtoh_async", "synchronize"])
def test_failure_during_a_call_frees_everything_and_closes(install: Install, call: str) -> None:
    double = CudaDouble()
    runner = TensorRTRunner(install(double))
    double.fail[call] = _raise(CudaError("an illegal memory access was encountered"))
    with pytest.raises(CannotRunHere, match="CUDA failed: an illegal memory access was encountered"):
        runner(_images(3))
    assert _nothing_left(double)
    with pytest.raises(InputError, match="runner was closed"):
        runner(_images(3))


@pytest.mark.parametrize("call", ["create_execution_context", "execute_async_v3", "set_input_shape"])
def test_tensorrt_that_answers_no_is_an_error_not_a_crash(install: Install, call: str) -> None:
    double = CudaDouble()
    engine = install(double)
    double.fail[call] = lambda: False
    with pytest.raises(CannotRunHere, match="tensorrt: "):
        TensorRTRunner(engine)(_images(1))
    assert _nothing_left(double)


def test_interrupt_during_a_call_frees_everything(install: Install) -> None:
    double = CudaDouble()
    runner = TensorRTRunner(install(double))
    double.fail["synchronize"] = _raise(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        runner(_images(3))
    assert _nothing_left(double)


def test_interrupt_waits_for_the_gpu_before_anything_is_freed(install: Install) -> None:
    double = CudaDouble()
    runner = TensorRTRunner(install(double))
    alive: list[list[str]] = []
    double.fail["memcpy_dtoh_async"] = _raise(KeyboardInterrupt())  # the kernels are queued by then
    double.fail["synchronize"] = lambda: alive.append(list(double.alive))
    with pytest.raises(KeyboardInterrupt):
        runner(_images(3))
    assert alive == [["runtime", "engine", "execution"]]
    assert _nothing_left(double)


@pytest.mark.parametrize("free", ["free", "free pinned"])
def test_gpu_that_refuses_to_free_after_a_failure_is_still_one_sentence(install: Install, free: str) -> None:
    double = CudaDouble()
    runner = TensorRTRunner(install(double))
    for call in ("synchronize", free):
        double.fail[call] = _raise(CudaError("an illegal memory access was encountered"))
    with pytest.raises(CannotRunHere, match="CUDA failed: an illegal memory access was encountered"):
        runner(_images(3))
    gc.collect()
    assert (double.retained, double.stack, double.alive) == (0, [], [])


@pytest.mark.parametrize("error", [CudaError("gone"), KeyboardInterrupt()])
def test_close_lets_go_of_the_context_though_memory_is_not_freed(install: Install, error: BaseException) -> None:
    double = CudaDouble()
    runner = TensorRTRunner(install(double))
    double.fail["free"] = _raise(error)
    with pytest.raises(CannotRunHere if isinstance(error, CudaError) else KeyboardInterrupt):
        runner.close()
    assert (double.retained, double.stack, double.pinned) == (0, [], 0)
    runner.close()


def test_file_that_tensorrt_does_not_load_frees_everything(install: Install) -> None:
    double = CudaDouble()
    engine = install(double)
    engine.write_bytes(b"something else")
    with pytest.raises(CannotRunHere, match=r"model\.engine does not load"):
        TensorRTRunner(engine)
    assert _nothing_left(double)


def test_engine_with_two_inputs_is_refused(install: Install) -> None:
    double = CudaDouble(inputs=("input", "mask"))
    with pytest.raises(InputError, match="has 2 inputs and 2 outputs"):
        TensorRTRunner(install(double))
    assert _nothing_left(double)


@pytest.mark.gpu
def test_real_engine_gives_the_logits_of_onnxruntime(tmp_path: Path) -> None:
    model = classifier(tmp_path / "model.onnx")
    (result,) = build_onnx_file(model, tmp_path, ["tensorrt"], [], BuildOptions(Profile(2, 4, 8)), version="0.1.0")
    if result.status == "unavailable":
        pytest.skip(result.reason)
    assert result.status == "built", result.reason
    images = np.random.default_rng(0).normal(size=(21, 3, 16, 16)).astype(np.float32)
    oracle = OrtRunner(model, oracle=True)
    runner = open_engine(tmp_path / "tensorrt")
    try:
        assert np.array_equal(runner(images), oracle(images))
        assert np.array_equal(runner(np.asfortranarray(images[::-1])), oracle(images[::-1]))
    finally:
        runner.close()
