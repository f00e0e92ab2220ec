"""Engines on a real GPU: the same integers as the reference, in every batch, and no memory left behind.

Run with `pytest -m gpu tests/gpu` on a machine with an NVIDIA GPU and TensorRT; elsewhere each test is skipped.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from torch import nn

from engines import cuda_driver, engine_manifest, tensorrt_runner
from engines.build import build_onnx_file
from engines.build_options import BuildOptions
from engines.code_engine import open_code_engine
from engines.host import RuntimeName, driver
from engines.invariance import batch_dependence
from engines.open_engine import open_engine
from engines.profile import Profile
from engines.reference import ReferenceRunner
from engines.tensorrt_runner import TensorRTRunner
from faq_deploy.onnx_export import export_onnx
from tests.nets import Small, with_statistics
from tests.onnx_nets import images, residual_net, saved
from tests.quantized import images as pictures
from tests.quantized import make_recipe, quantized_net

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not driver().gpus, reason=f"no engine can run here: {driver().trouble}"),
]
RUNTIMES: tuple[RuntimeName, ...] = ("tensorrt", "tensorrt-rtx")
BACKENDS = ("pycuda", "driver")
OPTIONS = BuildOptions(profile=Profile(1, 3, 8))


class Mixed(nn.Module):
    """Depthwise and grouped convolutions, SiLU, a gate, a concat and an average pool."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.SiLU())
        self.depthwise = nn.Sequential(nn.Conv2d(16, 16, 3, 1, 1, groups=16), nn.BatchNorm2d(16), nn.ReLU6())
        self.grouped = nn.Sequential(nn.Conv2d(16, 16, 3, 1, 1, groups=2), nn.BatchNorm2d(16), nn.ReLU())
        self.head = nn.Linear(32, 5)

    def forward(self, x):  # type: ignore[no-untyped-def]
        """Logits."""
        import torch

        x = self.stem(x)
        x = torch.cat([self.depthwise(x), self.grouped(x)], 1)
        return self.head(x.mean((2, 3)))


def model_of(kind: str, folder: Path) -> Path:
    if kind.startswith("hand"):
        return saved(residual_net("tensorrt", 0, bits=int(kind[-1])), folder)
    bits = int(kind[-1])
    net = Small() if kind.startswith("small") else Mixed()
    path = folder / "model.onnx"
    stored = quantized_net(with_statistics(net), make_recipe("tensorrt", bits))
    export_onnx(stored, path, pictures(4).numpy(), versions={}, checkpoint_sha256="")
    return path


def batch_for(path: Path, count: int) -> np.ndarray:
    shape = ReferenceRunner(path)._graph.input_shape
    return images(1, count, int(shape[2] or 0))


@pytest.fixture(params=RUNTIMES)
def runtime(request: pytest.FixtureRequest) -> RuntimeName:
    found: RuntimeName = request.param
    return found


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "driver":
        monkeypatch.setattr(tensorrt_runner, "load_cuda", lambda: cuda_driver)
    else:
        pytest.importorskip("pycuda.driver", reason="pycuda is not installed")
    return str(request.param)


@pytest.fixture
def engine(runtime: RuntimeName, tmp_path: Path) -> Callable[[Path], Path]:
    def build(path: Path) -> Path:
        sms = [driver().gpus[0].sm] if runtime == "tensorrt-rtx" else []
        (result,) = build_onnx_file(path, tmp_path / "engines", [runtime], sms, OPTIONS, version="0.1.0")
        if result.status in ("unavailable", "refused"):
            pytest.skip(result.reason)
        assert result.status == "built", result.reason
        return tmp_path / "engines" / result.name

    return build


@pytest.mark.parametrize("kind", ["hand 8", "hand 4", "small 8", "small 4", "mixed 8", "mixed 4"])
def test_engine_gives_the_integers_of_the_reference(
    kind: str, backend: str, engine: Callable[[Path], Path], tmp_path: Path
) -> None:
    path = model_of(kind, tmp_path)
    batch = batch_for(path, 19)
    runner = open_engine(engine(path))
    try:
        assert np.array_equal(runner(batch).view(np.uint32), ReferenceRunner(path)(batch).view(np.uint32))
        assert batch_dependence(runner, batch[:3], [3, 8]) is None
    finally:
        runner.close()


@pytest.mark.parametrize("kind", ["hand 8", "mixed 8"])
def test_codes_inside_are_those_of_the_reference(
    kind: str, runtime: RuntimeName, engine: Callable[[Path], Path], tmp_path: Path
) -> None:
    path = model_of(kind, tmp_path)
    engine(path)  # skips where the runtime is not to be had
    batch = batch_for(path, 8)
    shown, expected = open_code_engine(path, runtime, OPTIONS.profile), ReferenceRunner(path).codes(batch)
    try:
        for size in (1, 3, 8):
            found = shown.codes(batch[:size])
            differing = {name: int((found[name] != codes[:size]).sum()) for name, codes in expected.items()}
            assert differing == dict.fromkeys(expected, 0), size
    finally:
        shown.close()


def test_thousands_of_runs_take_no_more_gpu_memory(
    backend: str, engine: Callable[[Path], Path], tmp_path: Path
) -> None:
    torch = pytest.importorskip("torch")
    path = model_of("hand 8", tmp_path)
    runner = open_engine(engine(path))
    batch = batch_for(path, 8)
    runner(batch)
    before = torch.cuda.mem_get_info()[0]
    for _ in range(3000):
        runner(batch)
    assert before - torch.cuda.mem_get_info()[0] < 3000 * 1024  # bytes: others may use the GPU, a leak would be more
    runner.close()


def test_two_runners_threads_and_torch_share_the_primary_context(
    backend: str, engine: Callable[[Path], Path], tmp_path: Path
) -> None:
    torch = pytest.importorskip("torch")
    path = model_of("hand 8", tmp_path)
    folder = engine(path)
    batch = batch_for(path, 6)
    expected = ReferenceRunner(path)(batch)
    there = torch.arange(7, device="cuda")
    first, second = open_engine(folder), open_engine(folder)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda runner: runner(batch), [first, second] * 8))
    assert all(np.array_equal(logits, expected) for logits in found)
    first.close()
    assert int(there.sum()) == 21
    assert np.array_equal(second(batch), expected)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(second.close).result()
    assert int((there + 1).sum()) == 28


@pytest.mark.parametrize("order", ["torch first", "engine first"])
def test_process_ends_without_an_abort(order: str, engine: Callable[[Path], Path], tmp_path: Path) -> None:
    path = model_of("hand 8", tmp_path)
    folder = engine(path)
    np.save(tmp_path / "batch.npy", batch_for(path, 2))
    with_torch = "import torch; torch.zeros(1, device='cuda')"
    with_engine = (
        "import numpy as np; from pathlib import Path; from engines.open_engine import open_engine;"
        f"r = open_engine(Path({str(folder)!r})); r(np.load({str(tmp_path / 'batch.npy')!r}))"
    )
    lines = [with_torch, with_engine] if order == "torch first" else [with_engine, with_torch]
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    lines.append("raise SystemExit(7)")  # an error while the engine is open: the caller's own code, and no signal
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (7, "")


def test_engine_refused_by_its_record_never_reaches_the_runtime(
    engine: Callable[[Path], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = engine(model_of("hand 8", tmp_path))
    file = folder / engine_manifest.read(folder).file
    file.write_bytes(file.read_bytes()[:-1])

    def never(*arguments: object, **settings: object) -> None:
        raise AssertionError("the runtime was called")

    monkeypatch.setattr(TensorRTRunner, "__init__", never)
    with pytest.raises(Exception, match="cut short"):
        open_engine(folder)
