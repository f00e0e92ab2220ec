"""C15: the one way to a loaded engine; what its record refuses never reaches a runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from engines import engine_manifest, open_engine
from engines.engine_manifest import EngineManifest
from engines.errors import CannotRunHere, FaqError, InputError
from engines.files import sha256_of
from engines.host import Gpu, Host, RuntimeName
from engines.ort import OrtRunner
from tests.onnx_nets import images, residual_net, saved

HOST = Host(
    Gpu("NVIDIA A10", 86, 24 << 30), {"tensorrt": "10.13.3.9", "tensorrt-rtx": "1.7.1", "onnxruntime": "1.32.0"}
)


class Loaded(Exception):
    """A runtime got the file."""


@pytest.fixture(autouse=True)
def runtimes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[object, ...]]:
    """Runtimes that note what they are given and end there."""
    calls: list[tuple[object, ...]] = []

    def load(*arguments: object, **options: object) -> None:
        calls.append((*arguments, options))
        raise Loaded

    monkeypatch.setattr(open_engine, "TensorRTRunner", load)
    monkeypatch.setattr(open_engine, "OrtRunner", load)
    monkeypatch.setattr(open_engine, "this_host", lambda: HOST)
    return calls


def engine(folder: Path, runtime: RuntimeName = "tensorrt", **changes: object) -> Path:
    """A folder with an engine that fits HOST, but for `changes` in its record."""
    folder.mkdir()
    file = folder / "model.engine"
    file.write_bytes(bytes(range(256)))
    record = EngineManifest(
        runtime=runtime,
        file=file.name,
        sha256=sha256_of(file),
        bytes=256,
        onnx_sha256="0" * 64,
        versions={runtime: HOST.versions[runtime]},
        sm=None if runtime == "onnxruntime" else 86,
        gpu="NVIDIA A10" if runtime == "tensorrt" else None,
        seconds=1.0,
    )
    engine_manifest.write(folder, record.model_copy(update=changes))
    return folder


@pytest.mark.parametrize("runtime", ["tensorrt", "tensorrt-rtx"])
@pytest.mark.parametrize("allowed", [False, True])
def test_engine_that_fits_is_loaded_and_brings_code_only_where_its_record_says_so(
    tmp_path: Path, runtimes: list[tuple[object, ...]], runtime: RuntimeName, allowed: bool
) -> None:
    folder = engine(tmp_path / "e", runtime, options={"version_compatible": allowed})
    with pytest.raises(Loaded):
        open_engine.open_engine(folder, "0" * 64)
    assert runtimes == [(folder / "model.engine", runtime, {"host_code": allowed})]


@pytest.mark.parametrize("runtime", ["tensorrt", "tensorrt-rtx", "onnxruntime"])
@pytest.mark.parametrize("data", [b"", bytes(range(255)), b"\x01" + bytes(range(1, 256)), bytes(300)])
def test_changed_file_reaches_no_runtime(
    tmp_path: Path, runtimes: list[tuple[object, ...]], runtime: RuntimeName, data: bytes
) -> None:
    folder = engine(tmp_path / "e", runtime)
    (folder / "model.engine").write_bytes(data)
    with pytest.raises(InputError):
        open_engine.open_engine(folder)
    assert runtimes == []


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"sm": 75, "gpu": "Tesla T4"}, CannotRunHere, "SM 75"),
        ({"gpu": "NVIDIA A40"}, CannotRunHere, "was built on NVIDIA A40"),
        ({"versions": {"tensorrt": "10.12.0.36"}}, CannotRunHere, "was built by tensorrt 10.12.0.36"),
        ({"baseline": True}, InputError, "without quantizers"),
        ({"onnx_sha256": "1" * 64}, InputError, "from another ONNX file"),
    ],
)
def test_engine_of_another_machine_or_file_reaches_no_runtime(
    tmp_path: Path,
    runtimes: list[tuple[object, ...]],
    changes: dict[str, object],
    error: type[FaqError],
    said: str,
) -> None:
    with pytest.raises(error, match=said):
        open_engine.open_engine(engine(tmp_path / "e", "tensorrt", **changes), "0" * 64)
    assert runtimes == []


def test_net_without_quantizers_is_loaded_where_that_is_meant(
    tmp_path: Path, runtimes: list[tuple[object, ...]]
) -> None:
    folder = engine(tmp_path / "e", "tensorrt", baseline=True)
    with pytest.raises(Loaded):
        open_engine.open_engine(folder, baseline=True)
    assert [found[0] for found in runtimes] == [folder / "model.engine"]


def test_engine_of_onnxruntime_is_opened_the_same_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_engine, "OrtRunner", OrtRunner)
    path, folder = saved(residual_net("tensorrt", 0), tmp_path), engine(tmp_path / "e", "onnxruntime")
    file = folder / "model.engine"
    file.write_bytes(path.read_bytes())
    record = engine_manifest.read(folder)
    changes = {"sha256": sha256_of(file), "bytes": file.stat().st_size, "onnx_sha256": sha256_of(path)}
    engine_manifest.write(folder, record.model_copy(update=changes))
    runner = open_engine.open_engine(folder, sha256_of(path))
    assert np.array_equal(runner(images(1, 2, 33)), OrtRunner(path)(images(1, 2, 33)))
    runner.close()
