"""`doctor` says what a machine has and, for each thing missing, what to install; it loads no torch to find out."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from engines import doctor
from engines.doctor import Check, as_json, diagnose
from engines.host import Driver, Gpu

ROOT = Path(__file__).parents[1]
NAMES = [
    "python", "faq-deploy", "torch", "torchvision", "CUDA driver", "GPU", "CPU", "onnx", "onnxruntime", "tensorrt",
    "tensorrt-rtx", "timing cache", "pycuda", "C compiler", "memory", "shared memory",
]  # fmt: skip


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Callable[[Driver], dict[str, Check]]:
    def look(found: Driver) -> dict[str, Check]:
        monkeypatch.setattr(doctor, "driver", lambda: found)
        return {check.name: check for check in diagnose()}

    return look


def test_every_part_is_looked_at_and_each_shortcoming_has_a_remedy() -> None:
    checks = diagnose()
    assert [check.name for check in checks] == NAMES
    for check in checks:
        assert check.detail
        assert bool(check.remedy) == (check.status != "ok"), check


def test_onnxruntime_is_there_with_its_version_and_cpu_provider() -> None:
    check = next(check for check in diagnose() if check.name == "onnxruntime")
    assert check.status == "ok"
    assert check.detail.startswith(f"{importlib.metadata.version('onnxruntime')}, providers cpu")


def test_missing_packages_come_with_their_pip_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", nothing)
    for module in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, module, None)  # as if not installed
    checks = {check.name: check for check in diagnose()}
    pip = {name: check.remedy for name, check in checks.items() if check.remedy.startswith("pip install")}
    assert {name: remedy.split(" (")[0].rstrip(".").replace(str(ROOT), "ROOT") for name, remedy in pip.items()} == {
        "faq-deploy": "pip install -e . in the source folder",
        "torch": "pip install -e 'ROOT[torch]'",
        "torchvision": "pip install -e 'ROOT[torch]'",
        "onnx": "pip install onnx",
        "onnxruntime": "pip install onnxruntime",
        "tensorrt": "pip install -e 'ROOT[tensorrt]'",
        "tensorrt-rtx": "pip install -e 'ROOT[rtx]'",
    }
    assert {checks[name].status for name in pip} == {"missing"}


def test_placeholder_tensorrt_is_missing(
    monkeypatch: pytest.MonkeyPatch, gpus: Callable[[Driver], dict[str, Check]]
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", ModuleType("tensorrt"))
    check = gpus(Driver("13.0", (Gpu("NVIDIA A10", 86, 24 << 30),)))["tensorrt"]
    assert check.status == "missing"
    assert "only a placeholder" in check.detail


def test_tensorrt_without_a_gpu_is_limited(
    monkeypatch: pytest.MonkeyPatch, gpus: Callable[[Driver], dict[str, Check]]
) -> None:
    module = ModuleType("tensorrt")
    vars(module).update(
        Builder=object, NetworkDefinitionCreationFlag=object, BuilderFlag=object, __version__="11.4.0.106"
    )
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    assert gpus(Driver(None, (), "no NVIDIA driver"))["tensorrt"].status == "limited"
    with_gpu = gpus(Driver("13.0", (Gpu("NVIDIA A10", 86, 24 << 30),)))["tensorrt"]
    assert (with_gpu.status, with_gpu.detail) == ("ok", "11.4.0.106")


def test_gpu_is_named_with_its_architecture(gpus: Callable[[Driver], dict[str, Check]]) -> None:
    checks = gpus(Driver("13.0", (Gpu("NVIDIA A10", 86, 24 << 30),)))
    assert (checks["GPU"].status, checks["GPU"].detail) == ("ok", "NVIDIA A10, SM 86, 24 GiB")
    assert checks["CUDA driver"].detail == "supports CUDA 13.0"
    old = gpus(Driver("12.4", (Gpu("GTX 1080", 61, 8 << 30),)))["GPU"]
    assert (old.status, old.detail) == ("limited", "GTX 1080, SM 61, 8 GiB")


@pytest.mark.parametrize(
    ("flags", "status"), [("avx2 avx512f avx512_vnni", "ok"), ("avx2 avx_vnni", "ok"), ("avx2", "limited")]
)
def test_cpu_without_vnni_is_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: str, status: str) -> None:
    from engines import ort

    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"model name\t: Test CPU\nflags\t\t: fpu {flags}\n")
    found = ort.cpu_features(cpuinfo)
    monkeypatch.setattr(ort, "cpu_features", lambda: found)
    check = doctor._cpu()
    assert check.status == status
    assert check.detail.startswith("Test CPU, ")


@pytest.mark.parametrize(("mebibytes", "status"), [(64, "limited"), (1024, "ok")])
def test_small_shared_memory_is_limited(monkeypatch: pytest.MonkeyPatch, mebibytes: int, status: str) -> None:
    found = SimpleNamespace(f_frsize=4096, f_blocks=(mebibytes << 20) // 4096)
    monkeypatch.setattr(os, "statvfs", lambda path: found)
    check = doctor._shared_memory()
    assert (check.status, check.detail) == (status, f"{mebibytes:,} MiB")


def test_driver_older_than_a_package_is_limited(
    monkeypatch: pytest.MonkeyPatch, gpus: Callable[[Driver], dict[str, Check]]
) -> None:
    module = ModuleType("tensorrt")
    vars(module).update(Builder=object, NetworkDefinitionCreationFlag=object, BuilderFlag=object, __version__="11.4")
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    monkeypatch.setattr(doctor, "cuda_of", lambda name: 13)
    check = gpus(Driver("12.8", (Gpu("NVIDIA A10", 86, 24 << 30),)))["tensorrt"]
    assert check.status == "limited"
    assert check.detail == "11.4, made for CUDA 13, but the driver supports CUDA 12.8"


def test_pycuda_is_no_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "installed", lambda module: None)
    assert doctor._pycuda() == Check("pycuda", "ok", "not installed: engines reach CUDA through the driver itself")
    monkeypatch.setattr(doctor, "installed", lambda module: "2026.1")
    assert doctor._pycuda().detail == "2026.1"


def test_a_c_compiler_is_no_must(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    absent = "none: training on a CPU takes a few percent longer, with the same results"
    assert doctor._c_compiler() == Check("C compiler", "ok", absent)
    (tmp_path / "gcc").write_text("")
    (tmp_path / "gcc").chmod(0o755)
    assert doctor._c_compiler().detail == str(tmp_path / "gcc")


def test_timing_cache_is_named_with_what_it_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = tmp_path / "faq-deploy/timing"
    assert doctor._timing_cache() == Check("timing cache", "ok", f"{folder}, empty")
    folder.mkdir(parents=True)
    (folder / "gpu.cache").write_bytes(bytes(1 << 20))
    assert doctor._timing_cache().detail == f"{folder}, 1 GPU, 1.0 MiB"


def test_cache_folder_that_can_not_be_written_is_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cache").write_bytes(b"a file")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    check = doctor._timing_cache()
    assert (check.status, check.detail) == ("limited", f"{tmp_path}/cache/faq-deploy/timing can't be written")
    assert "XDG_CACHE_HOME" in check.remedy


def test_a_jetson_is_told_that_nothing_runs_on_its_dla(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    (check,) = doctor._dla()
    assert (check.name, check.status) == ("DLA", "missing")
    assert "without --dla" in check.remedy


def test_json_holds_the_same_checks() -> None:
    checks = [Check("GPU", "missing", "none", "buy one."), Check("python", "ok", "3.11.7")]
    assert json.loads(as_json(checks)) == [
        {"name": "GPU", "status": "missing", "detail": "none", "remedy": "buy one."},
        {"name": "python", "status": "ok", "detail": "3.11.7", "remedy": ""},
    ]


def test_diagnosis_imports_no_torch_and_no_pycuda() -> None:
    code = "import sys; from engines.doctor import diagnose; diagnose(); print([*{'torch', 'pycuda'} & {*sys.modules}])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"
