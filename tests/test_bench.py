"""`build --bench`: a real run in onnxruntime, TensorRT on stand-ins, and what is refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest

from engines import bench, cuda_driver, latency, show_build, tensorrt_package, tensorrt_runner
from engines.build import BuildResult
from engines.build_options import BuildOptions
from engines.engine_manifest import EngineManifest
from engines.errors import InputError
from engines.fp16 import float_baseline
from engines.host import Gpu, Host, RuntimeName
from engines.ort import OrtRunner
from engines.profile import Profile
from engines.qdq_graph import load_model
from engines.tensorrt_runner import TensorRTRunner
from tests.cuda_double import CudaDouble
from tests.engine_nets import classifier, exported_run


@pytest.fixture(autouse=True)
def _few_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "_SECONDS", 0.0)


def given(**changes: object) -> dict[str, Any]:
    """The command line's options by name."""
    return {"runtimes": ("onnxruntime",), "sms": (), "batch": "1:2:4", "dla": False, "bench": True, **changes}


def manifest(runtime: RuntimeName, **changes: Any) -> EngineManifest:
    return EngineManifest(
        runtime=runtime, file="model.engine", sha256="", bytes=1, onnx_sha256="", versions={}, seconds=0.0, **changes
    )


def test_onnxruntime_is_timed_with_and_without_quantizers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = exported_run(tmp_path / "run")
    assert show_build.build(run.path, None, given(), force=False, as_json=True) == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)["bench"]
    assert [(row["engine"], row["precision"]) for row in found["measured"]] == [
        ("onnxruntime", "int8"),
        ("onnxruntime", "fp32"),
    ]
    for row in found["measured"]:
        assert [(one["batch"], one["calls"]) for one in row["latencies"]] == [(1, 5), (2, 5), (4, 5)]
        assert all(0 < one["p50_ms"] <= one["p99_ms"] for one in row["latencies"])
    assert sum(kernel["macs"] for kernel in found["kernels"]) == 16 * 16 * 216 + 80
    assert len(found["bounds"]) == 3 * 3 * len(found["gpus"])
    assert captured.err.splitlines()[1:] == [
        "onnxruntime: timing int8 ...",
        "onnxruntime: timing fp32, without quantizers ...",
    ]


def test_the_table_calls_the_roofline_a_prediction(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = classifier(tmp_path / "net.onnx", input_shape=(2, 3, 16, 16))
    assert show_build.build(model, None, given(), force=False, as_json=False) == 0
    printed = capsys.readouterr().out
    assert "Roofline, a prediction from the graph and NVIDIA's data sheets: 55,376 multiply-adds an image" in printed
    assert "From 5 calls on" in printed
    assert "batch 2" in printed
    assert "batch 1" not in printed  # the file has one batch size


def test_without_the_flag_nothing_is_timed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = exported_run(tmp_path / "run")
    assert show_build.build(run.path, None, given(bench=False), force=False, as_json=True) == 0
    assert "bench" not in json.loads(capsys.readouterr().out)


def test_an_open_image_size_is_refused_before_anything_is_built(tmp_path: Path) -> None:
    model = classifier(tmp_path / "net.onnx", input_shape=("N", 3, "H", 16))
    with pytest.raises(InputError, match="has an open size"):
        show_build.build(model, None, given(), force=False, as_json=False)
    assert not (tmp_path / "net.engines").exists()


def test_a_run_that_was_not_exported_is_refused_in_builds_words(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no run"):
        show_build.build(tmp_path, None, given(), force=False, as_json=False)


def test_an_engine_of_another_machine_is_not_timed(tmp_path: Path) -> None:
    wanted = bench.subject(classifier(tmp_path / "net.onnx"), Profile(1, 2, 4))
    results = [
        BuildResult("tensorrt-rtx-sm86", "built", manifest("tensorrt-rtx", sm=86)),
        BuildResult("tensorrt-rtx-sm61", "refused"),
        BuildResult("tensorrt-rtx-sm86-fp16", "built", manifest("tensorrt-rtx", sm=86, baseline=True)),
    ]
    found = bench.bench(wanted, results, tmp_path, BuildOptions(), Host(None, {}), lambda text: None)
    (row,) = found.measured
    assert (row.engine, row.precision, row.latencies) == ("tensorrt-rtx-sm86", "int8", ())
    assert "holds no engine" in row.reason


@pytest.mark.parametrize("fp16_built", [False, True])
def test_tensorrt_is_timed_in_three_precisions_with_clocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fp16_built: bool
) -> None:
    """On stand-ins for TensorRT and CUDA: which engines run, on which batches, and that they are closed.

    An FP16 engine that `build --fp16-baseline` left is timed as it is.
    """
    double = CudaDouble()
    monkeypatch.setitem(sys.modules, "pycuda", ModuleType("pycuda"))
    monkeypatch.setitem(sys.modules, "pycuda.driver", double.pycuda())
    monkeypatch.setitem(sys.modules, "tensorrt", double.tensorrt())
    monkeypatch.setattr(tensorrt_runner, "gpu_for_tensorrt", lambda package: Gpu("double", 86, 1 << 30))
    monkeypatch.setattr(cuda_driver, "library", double.driver)
    tensorrt_package._logger.cache_clear()
    built: list[Path] = []
    loaded: list[tuple[str, bool]] = []

    def write_engine(onnx_path: Path, profile: Profile, engine: Path, **settings: object) -> None:
        assert (load_model(onnx_path).graph.input[0].name, profile) == ("input", Profile(1, 2, 4))
        engine.write_bytes(b"engine")
        built.append(engine)

    def opened(folder: Path, *, baseline: bool = False) -> TensorRTRunner:
        engine = tmp_path / "model.engine"
        engine.write_bytes(b"engine")
        loaded.append((folder.name, baseline))
        return TensorRTRunner(engine)

    monkeypatch.setattr(bench, "build_tensorrt", write_engine)
    monkeypatch.setattr(bench, "open_engine", opened)
    monkeypatch.setattr(bench, "gpu_clocks", lambda: {"clocks.sm": 1695})
    wanted = bench.subject(classifier(tmp_path / "net.onnx"), Profile(1, 2, 4))
    wanted = bench.Subject(wanted.model, wanted.costs, double.image, wanted.batches)
    beside = BuildResult("tensorrt-fp16", "built", manifest("tensorrt", baseline=True))
    found = bench.bench(
        wanted,
        [BuildResult("tensorrt", "built", manifest("tensorrt")), *([beside] if fp16_built else [])],
        tmp_path,
        BuildOptions(profile=Profile(1, 2, 4)),
        Host(Gpu("NVIDIA A10", 86, 24 << 30), {}),
        lambda text: None,
    )
    tensorrt_package._logger.cache_clear()
    assert [(row.precision, row.graphs, row.clocks) for row in found.measured] == [
        (precision, graphs, {"clocks.sm": 1695}) for precision in ("int8", "fp16", "fp32") for graphs in (False, True)
    ]
    assert double.batches == [size for _ in range(6) for size in (1, 2, 4) for _ in range(1 + 5)]
    assert double.recorded == 9
    assert not (double.memory or double.pinned or double.stack or double.retained or double.graphs)
    assert [engine.exists() for engine in built] == ([False] if fp16_built else [False, False])
    assert loaded == [("tensorrt", False), *([("tensorrt-fp16", True)] if fp16_built else [])]
    assert {row.gpu for row in found.bounds} == {"A10"}


def test_the_net_without_quantizers_computes_the_same_up_to_rounding(tmp_path: Path) -> None:
    """In the classifier only the input's and the average's quantizers round."""
    path = classifier(tmp_path / "net.onnx")
    onnx.save(float_baseline(load_model(path)), tmp_path / "float.onnx")
    images = np.random.default_rng(0).integers(-20, 20, (2, 3, 16, 16)).astype(np.float32) * np.float32(2**-5)
    expected, found = OrtRunner(path)(images), OrtRunner(tmp_path / "float.onnx")(images)
    assert np.abs(expected - found).max() < 0.2
