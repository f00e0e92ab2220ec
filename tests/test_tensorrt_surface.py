"""What our code uses of TensorRT is recorded whole, and is there in the packages and type stubs that are installed."""

from __future__ import annotations

import ast
import importlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from engines.errors import CannotRunHere
from engines.tensorrt_package import TensorRTName, load
from tests import tensorrt_stubs
from tests.tensorrt_surface import ONLY_RTX, REMOVED_IN_11, STATED_FOR_11, SURFACE

ROOT = Path(__file__).parents[1]
RECORDED = {**SURFACE, **ONLY_RTX}
ASKED = {"ComputeCapability", "INT8"}  # INT8 only to tell a TensorRT before 10 by it
needs_stubs = pytest.mark.skipif(tensorrt_stubs.stubs_version() is None, reason=tensorrt_stubs.NOT_INSTALLED)


def _package(name: TensorRTName) -> ModuleType:
    try:
        return load(name)
    except CannotRunHere as error:
        pytest.skip(error.what)


def _sources() -> list[Path]:
    """The modules that see TensorRT's objects."""
    files = (ROOT / "engines").glob("*.py")
    imports = re.compile(r"^from engines\.tensorrt_(package|api) import", re.M)
    return [file for file in files if file.name == "tensorrt_package.py" or imports.search(file.read_text())]


def _used(tree: ast.Module) -> Iterator[str]:
    """Attributes, and names that `getattr` and `hasattr` are asked for."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("getattr", "hasattr"):
            yield from (a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str))


def _defined(tree: ast.Module) -> Iterator[str]:
    """Names of our own: functions, classes, fields and attributes of objects."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self":
            yield node.attr


def _public(owner: object) -> set[str]:
    return {name for name in dir(owner) if not name.startswith("_")}


def _of_python() -> set[str]:
    kinds = [str, bytes, list, dict, set, BaseException, Path, re.Match, re, time, importlib, np, np.ndarray]
    return set().union(*(_public(kind) for kind in kinds)) | {"cache", "origin"}


def test_every_name_of_tensorrt_that_our_code_uses_is_recorded() -> None:
    module = _package("tensorrt-rtx")
    kinds = [kind for kind in vars(module).values() if isinstance(kind, type)]
    theirs = _public(module).union(*(_public(kind) for kind in kinds))
    recorded = {part for name in RECORDED for part in name.split(".")}
    ours = {name for file in (ROOT / "engines").glob("*.py") for name in _defined(ast.parse(file.read_text()))}
    plain = (ours | _of_python()) - recorded
    for file in _sources():
        used = set(_used(ast.parse(file.read_text())))
        assert (used & theirs) - plain <= recorded | ASKED, file


def test_every_recorded_name_is_used() -> None:
    trees = [ast.parse(file.read_text()) for file in _sources()]
    used = {name for tree in trees for name in (*_used(tree), *_defined(tree))}
    unused = {name for name in RECORDED if name.rpartition(".")[2] not in used}
    assert unused == {"ComputeCapability.SM86"}  # its name is made of a number


def _parameters(kind: type, member: str | None) -> set[tuple[str, ...]]:
    """The parameter names of each overload, from the docstring that pybind11 writes."""
    text = getattr(kind, member or "__init__").__doc__ or ""
    signatures = re.findall(rf"^(?:\d+\. )?{member or '__init__'}\(self: [\w.]+(.*?)\) ->", text, re.M)
    return {tuple(re.findall(r", (\w+):", signature)) for signature in signatures}


def _missing(module: ModuleType, names: Mapping[str, tuple[str, ...] | None]) -> dict[str, object]:
    """Recorded names that a package lacks, or has with other parameters, and what it has."""
    missing: dict[str, object] = {}
    for name, parameters in names.items():
        owner, _, member = name.partition(".")
        kind = getattr(module, owner)
        if parameters is None:
            if not hasattr(kind, member):
                missing[name] = None
            continue
        found = _parameters(kind, member or None)
        if parameters not in found | {one[: len(parameters)] for one in found}:  # more may come, with defaults
            missing[name] = found
    return missing


def test_tensorrt_rtx_has_every_recorded_name() -> None:
    assert _missing(_package("tensorrt-rtx"), RECORDED) == {}


def test_tensorrt_has_every_recorded_name() -> None:
    assert _missing(_package("tensorrt"), SURFACE) == {}


def test_a_package_without_a_recorded_name_would_be_found_out() -> None:
    changed = {"Builder.create_network": ("options",), "BuilderFlag.INT9": None, "Builder": ("logger",)}
    assert _missing(_package("tensorrt-rtx"), changed).keys() == {"Builder.create_network", "BuilderFlag.INT9"}


@needs_stubs
def test_stubs_have_every_recorded_name() -> None:
    kinds = tensorrt_stubs.classes()
    missing: dict[str, object] = {}
    for name, parameters in SURFACE.items():
        owner, _, member = name.partition(".")
        body = kinds[owner].body
        methods = [m for m in body if isinstance(m, ast.FunctionDef) and m.name == (member or "__init__")]
        attributes = {s.target.id for s in body if isinstance(s, ast.AnnAssign) and isinstance(s.target, ast.Name)}
        found = [[a.arg for a in m.args.args[1:]] for m in methods]
        needed = [names[: len(names) - len(m.args.defaults)] for names, m in zip(found, methods, strict=True)]
        attribute = parameters is None and (member in attributes or bool(methods))
        if not attribute and (parameters is None or list(parameters) not in found + needed):
            missing[name] = found
    assert missing == {}


def test_nothing_that_tensorrt_11_removed_is_used() -> None:
    assert REMOVED_IN_11.isdisjoint(SURFACE)
    assert STATED_FOR_11.keys() <= SURFACE.keys()


@needs_stubs
def test_adapter_fits_the_stubs(tmp_path: Path) -> None:
    stubs = tensorrt_stubs.write_stubs(tmp_path / "stubs")
    files = [f"engines/{name}.py" for name in ("tensorrt", "tensorrt_api", "tensorrt_config", "tensorrt_inspector")]
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path / "cache")]
    environment = {**os.environ, "MYPYPATH": str(stubs)}

    def errors(*paths: str) -> list[str]:
        done = subprocess.run([*command, *paths], cwd=ROOT, env=environment, capture_output=True, text=True)
        assert "errors prevented further checking" not in done.stdout, done.stdout
        return [line for line in done.stdout.splitlines() if not line.startswith(str(stubs)) and ": error:" in line]

    assert errors(*files) == []
    wrong = tmp_path / "wrong.py"
    wrong.write_text(
        "from engines.tensorrt_api import tensorrt_api\n\nflag = tensorrt_api('tensorrt').BuilderFlag.NO_SUCH_FLAG\n"
    )
    (error,) = errors(str(wrong))
    assert "NO_SUCH_FLAG" in error  # so the names are really checked
