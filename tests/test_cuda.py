"""CUDA through pycuda or through the driver, and a context stack that is left as it was."""

from __future__ import annotations

import sys
import threading
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from engines import cuda, cuda_driver
from engines.errors import CannotRunHere


def test_pycuda_is_taken_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    pycuda = ModuleType("pycuda.driver")
    monkeypatch.setitem(sys.modules, "pycuda", ModuleType("pycuda"))
    monkeypatch.setitem(sys.modules, "pycuda.driver", pycuda)
    assert cuda.load_cuda() is pycuda


def test_without_pycuda_the_driver_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycuda", None)
    monkeypatch.setitem(sys.modules, "pycuda.driver", None)
    assert cuda.load_cuda() is cuda_driver


def test_pycuda_of_another_cuda_is_named_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> ModuleType:
        raise ImportError("libcurand.so.10: cannot open shared object file")

    monkeypatch.setattr(cuda, "importlib", SimpleNamespace(import_module=broken))
    with pytest.raises(CannotRunHere, match=r"pycuda does not load: libcurand\.so\.10") as caught:
        cuda.load_cuda()
    assert "it is not needed" in caught.value.remedy


@pytest.mark.parametrize("pushes", [True, False], ids=["pycuda leaves its push", "pycuda cleans up"])
@pytest.mark.parametrize("refuses", [True, False])
def test_letting_go_of_the_context_leaves_the_stack_as_it_was(
    monkeypatch: pytest.MonkeyPatch, pushes: bool, refuses: bool
) -> None:
    stack = [5]  # another library's context

    def get_current(handle: Any) -> int:
        handle._obj.value = stack[-1]
        return 0

    def pop(handle: Any) -> int:
        handle._obj.value = stack.pop()
        return 0

    def detach() -> None:
        if pushes:
            stack.append(7)
        if refuses:
            raise cuda_driver.Error("cuDevicePrimaryCtxRelease_v2")

    library = SimpleNamespace(cuCtxGetCurrent=get_current, cuCtxPopCurrent_v2=pop)
    monkeypatch.setattr(cuda_driver, "library", lambda: library)
    context = SimpleNamespace(push=lambda: None, detach=detach)
    if refuses:
        with pytest.raises(cuda_driver.Error):
            cuda.release(cuda_driver, context, threading.get_ident())
    else:
        cuda.release(cuda_driver, context, threading.get_ident())
    assert stack == [5]


@pytest.mark.parametrize(
    ("pycuda", "same_thread", "releases"), [(True, True, 0), (True, False, 1), (False, True, 0), (False, False, 0)]
)
def test_context_that_pycuda_keeps_in_another_thread_is_let_go_by_the_driver(
    monkeypatch: pytest.MonkeyPatch, pycuda: bool, same_thread: bool, releases: int
) -> None:
    released: list[int] = []

    def release(device: Any) -> int:
        released.append(device.value)
        return 0

    library = SimpleNamespace(
        cuCtxGetCurrent=lambda handle: 0,
        cuDeviceGet=lambda handle, index: 0,
        cuDevicePrimaryCtxRelease_v2=release,
    )
    monkeypatch.setattr(cuda_driver, "library", lambda: library)
    detached: list[str] = []
    context = SimpleNamespace(push=lambda: None, detach=lambda: detached.append("detached"))
    module: Any = ModuleType("pycuda.driver") if pycuda else cuda_driver
    cuda.release(module, context, threading.get_ident() + (0 if same_thread else 1))
    assert (detached, len(released)) == (["detached"], releases)


def test_context_is_current_only_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    stack: list[str] = []
    monkeypatch.setattr(cuda_driver.Context, "pop", staticmethod(stack.pop))
    context = SimpleNamespace(push=lambda: stack.append("primary"), detach=lambda: None)
    seen: list[list[str]] = []

    def fail_inside() -> None:
        with cuda.current(cuda_driver, context):
            seen.append(list(stack))
            raise ValueError("inside")

    with pytest.raises(ValueError, match="inside"):
        fail_inside()
    assert (seen, stack) == ([["primary"]], [])
