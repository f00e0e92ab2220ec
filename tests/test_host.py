"""What the machine has is read from the CUDA driver and from package metadata, without loading a runtime."""

# ruff: noqa: N802 (the driver's own names)

from __future__ import annotations

import ctypes
import importlib.metadata
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines import host
from engines.host import Driver, Gpu, cuda_of, driver, free_memory, installed, same_version, this_host


class StandInDriver:
    """libcuda's functions as `driver` calls them, writing into the same ctypes objects."""

    def __init__(self, gpus: list[tuple[str, int, int, int]], init: int = 0) -> None:
        self.gpus, self.init = gpus, init
        self.retained, self.stack = 0, list[int]()
        self.free, self.memory_code = 20 << 30, 0

    def cuInit(self, flags: int) -> int:
        return self.init

    def cuDriverGetVersion(self, version: Any) -> int:
        version._obj.value = 12080
        return 0

    def cuDeviceGetCount(self, count: Any) -> int:
        count._obj.value = len(self.gpus)
        return 0

    def cuDeviceGet(self, device: Any, index: int) -> int:
        device._obj.value = index
        return 0

    def cuDeviceGetName(self, name: Any, size: int, device: Any) -> int:
        name.value = self.gpus[device.value][0].encode()[:size]
        return 0

    def cuDeviceGetAttribute(self, number: Any, attribute: int, device: Any) -> int:
        number._obj.value = self.gpus[device.value][{75: 1, 76: 2}[attribute]]
        return 0

    def cuDeviceTotalMem_v2(self, size: Any, device: Any) -> int:
        size._obj.value = self.gpus[device.value][3]
        return 0

    def cuDevicePrimaryCtxRetain(self, context: Any, device: Any) -> int:
        self.retained += 1
        context._obj.value = 4096
        return 0

    def cuDevicePrimaryCtxRelease_v2(self, device: Any) -> int:
        self.retained -= 1
        return 0

    def cuCtxPushCurrent_v2(self, context: Any) -> int:
        self.stack.append(context.value)
        return 0

    def cuCtxPopCurrent_v2(self, context: Any) -> int:
        self.stack.pop()
        return 0

    def cuMemGetInfo_v2(self, free: Any, total: Any) -> int:
        if self.stack != [4096]:
            return 201  # CUDA_ERROR_INVALID_CONTEXT
        free._obj.value, total._obj.value = self.free, 24 << 30
        return self.memory_code

    def cuGetErrorString(self, code: int, text: Any) -> int:
        text._obj.value = b"no CUDA-capable device is detected"
        return 0


def _stand_in(monkeypatch: pytest.MonkeyPatch, found: StandInDriver) -> None:
    monkeypatch.setattr(host, "_library", lambda: found)


def test_gpus_come_with_name_architecture_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = 24 << 30  # more than 32 bits hold
    _stand_in(monkeypatch, StandInDriver([("NVIDIA A10", 8, 6, memory), ("NVIDIA RTX 5090", 12, 0, 32 << 30)]))
    gpus = (Gpu("NVIDIA A10", 86, memory), Gpu("NVIDIA RTX 5090", 120, 32 << 30))
    assert driver() == Driver("12.8", gpus)
    assert this_host().gpu == gpus[0]


def test_driver_without_gpu_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    _stand_in(monkeypatch, StandInDriver([]))
    assert driver() == Driver("12.8", (), "the NVIDIA driver lists no GPU")


def test_driver_that_does_not_start_is_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    _stand_in(monkeypatch, StandInDriver([], init=100))
    trouble = "the NVIDIA driver does not start: no CUDA-capable device is detected (error 100)"
    assert driver() == Driver(None, (), trouble)


def test_no_driver_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> ctypes.CDLL:
        raise OSError("libcuda.so.1: cannot open shared object file")

    monkeypatch.setattr(host, "_library", missing)
    assert driver() == Driver(None, (), "no NVIDIA driver (libcuda.so.1 was not found)")
    assert this_host().gpu is None


def test_free_memory_is_asked_in_the_primary_context_which_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    double = StandInDriver([("NVIDIA A10", 8, 6, 24 << 30)])
    _stand_in(monkeypatch, double)
    gpu = Gpu("NVIDIA A10", 86, 24 << 30)
    assert free_memory(gpu) == 20 << 30
    assert (double.retained, double.stack) == (0, [])
    double.memory_code = 2
    assert free_memory(gpu) == int(0.9 * (24 << 30))  # the driver does not say
    assert (double.retained, double.stack) == (0, [])


def test_free_memory_without_a_driver_is_a_share_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> ctypes.CDLL:
        raise OSError("libcuda.so.1: cannot open shared object file")

    monkeypatch.setattr(host, "_library", missing)
    assert free_memory(Gpu("NVIDIA A10", 86, 1000)) == 900


@pytest.mark.parametrize(
    ("names", "cuda"),
    [
        (["tensorrt", "tensorrt-cu13", "tensorrt-cu13-libs"], 13),
        (["tensorrt_cu12_bindings", "tensorrt_cu13"], 12),
        (["tensorrt"], None),
        (["tensorrt-rtx-cu13"], None),
        (["my-tensorrt-cu13", "tensorrt-cu13-more"], None),
    ],
)
def test_cuda_version_of_a_package_is_read_from_its_name(
    monkeypatch: pytest.MonkeyPatch, names: list[str], cuda: int | None
) -> None:
    listed = [SimpleNamespace(metadata={"Name": name}) for name in names]
    monkeypatch.setattr(importlib.metadata, "distributions", lambda: listed)
    assert cuda_of("tensorrt") == cuda


def test_installed_package_has_its_metadata_version() -> None:
    assert installed("onnxruntime") == importlib.metadata.version("onnxruntime")
    assert installed("a_package_that_nobody_has") is None


def test_metadata_without_the_module_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "leftover_package-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: leftover-package\nVersion: 1.0\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    assert importlib.metadata.version("leftover_package") == "1.0"
    assert installed("leftover_package") is None


@pytest.mark.parametrize(
    ("built", "found", "same"),
    [
        ("10.13.3.9", "10.13.3.9.post1", True),  # a repacked wheel
        ("10.3.0.30", "10.3.0", True),  # Debian's metadata
        ("10.13.3.9", "10.13.3.10", False),
        ("10.13.3.9", "11.4.0.106", False),
        ("", "10.3.0", False),
        ("unknown", "10.3.0", False),
    ],
)
def test_engines_load_only_in_the_version_that_built_them(built: str, found: str, same: bool) -> None:
    assert same_version(built, found) is same


@given(st.lists(st.integers(0, 999), min_size=4, max_size=4), st.integers(0, 3), st.integers(1, 9))
def test_one_different_number_is_another_version(numbers: list[int], place: int, step: int) -> None:
    version = ".".join(map(str, numbers))
    numbers[place] += step
    assert same_version(version, version)
    assert not same_version(version, ".".join(map(str, numbers)))
