"""Missing, broken, placeholder and outdated TensorRT packages are told apart."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest

from engines.errors import CannotRunHere
from engines.tensorrt_package import Messages, load, reason


def _install(folder: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    (folder / "tensorrt.py").write_text(source)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    importlib.invalidate_caches()


@pytest.fixture(autouse=True)
def _forget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", ModuleType("tensorrt"))  # restored after the test, imported or not


def test_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)  # as if not installed
    with pytest.raises(CannotRunHere, match="tensorrt is not installed") as caught:
        load("tensorrt")
    assert "pip install 'faq-deploy[tensorrt]'" in caught.value.remedy


def test_placeholder_counts_as_missing() -> None:
    with pytest.raises(CannotRunHere, match="only a placeholder: it has no Builder") as caught:
        load("tensorrt")
    assert caught.value.remedy.startswith("pip uninstall tensorrt")


def test_type_stubs_alone_are_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tensorrt").mkdir()
    (tmp_path / "tensorrt/__init__.pyi").write_text("class Builder: ...\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    importlib.invalidate_caches()
    with pytest.raises(CannotRunHere, match="tensorrt is not installed: its folder holds no code"):
        load("tensorrt")


@pytest.mark.parametrize(
    "source",
    [
        "raise ImportError('libnvinfer.so.11: cannot open shared object file')",
        "raise OSError('libnvinfer.so.11: cannot open shared object file')",
        "import tensorrt_libs_that_nobody_has",
    ],
)
def test_package_without_its_libraries_does_not_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    _install(tmp_path, monkeypatch, source)
    with pytest.raises(CannotRunHere, match=r"tensorrt is installed but does not load: .*lib"):
        load("tensorrt")


def test_package_before_strong_typing_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = "class Builder: pass\nclass NetworkDefinitionCreationFlag: pass\nclass BuilderFlag:\n    INT8 = 1\n"
    _install(tmp_path, monkeypatch, source + "__version__ = '8.6.1'\n")
    with pytest.raises(CannotRunHere, match=r"tensorrt 8\.6\.1 has no strongly typed networks"):
        load("tensorrt")


def test_package_that_dropped_the_flag_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("tensorrt")
    vars(module).update(Builder=object, NetworkDefinitionCreationFlag=object, BuilderFlag=object)
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    assert load("tensorrt") is module


@pytest.mark.parametrize(
    ("logged", "said"),
    [
        (
            "IBuilder::buildSerializedNetwork: Error Code 1: Myelin ([pass.cpp:337: check_turing_op_compatibility] "
            "Cannot compile operation 'fc' for Turing (SM75): FP32 GEMM is not supported. In compileGraph at "
            "/_src/optimizer/myelin/codeGenerator.cpp:2012)",
            "Myelin: Cannot compile operation 'fc' for Turing (SM75): FP32 GEMM is not supported",
        ),
        (
            "IBuilder::buildSerializedNetwork: Error Code 4: API Usage Error (Network must have at least one output. "
            "In validate at /_src/optimizer/api/network.cpp:3810)",
            "API Usage Error: Network must have at least one output",
        ),
        ("Something (odd) happened.", "Something (odd) happened"),
    ],
)
def test_reason_keeps_the_sentence_and_drops_source_positions(logged: str, said: str) -> None:
    assert reason(Messages(errors=[logged, logged]), "nothing") == said


def test_reason_without_errors_is_the_given_one() -> None:
    assert reason(Messages(), "the builder gave no reason") == "the builder gave no reason"
