"""A library that can't be had is one sentence, and nothing else changes."""

from __future__ import annotations

import os
import platform
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from faq_deploy import compiled
from tests.compiled_passes import require_compiled

pytestmark = pytest.mark.skipif(platform.system() != "Linux", reason="compiled on Linux only")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.delenv(compiled.SWITCH, raising=False)
    compiled.library.cache_clear()
    yield tmp_path / "cache" / "faq-deploy" / "compiled"
    compiled.library.cache_clear()


def script(folder: Path, text: str) -> str:
    path = folder / "a-compiler"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def trouble() -> str:
    compiled.library.cache_clear()
    found = compiled.library()
    assert found.functions is None
    return found.trouble


def test_it_is_kept_for_its_user_alone(cache: Path) -> None:
    require_compiled()
    assert compiled.library().functions is not None
    (file,) = cache.iterdir()
    assert file.suffix == ".so"
    assert stat.S_IMODE(file.stat().st_mode) == stat.S_IMODE(cache.stat().st_mode) == 0o700


def test_no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert trouble() == "there is no C compiler (cc, gcc, clang)"


def test_switched_off(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    monkeypatch.setenv(compiled.SWITCH, "0")
    assert trouble() == "FAQ_DEPLOY_COMPILED is 0"
    assert not cache.exists()


def test_a_compiler_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    text = 'test "$1" = --version && exit 0; echo "omp.h: no such file" >&2; echo more >&2; exit 1'
    monkeypatch.setenv("CC", f"{script(tmp_path, text)} -m32")
    assert trouble() == f"{tmp_path}/a-compiler can't compile them: omp.h: no such file"
    assert list(cache.iterdir()) == []


def test_a_compiler_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    monkeypatch.setattr(compiled, "_SECONDS", 0.3)
    monkeypatch.setenv("CC", script(tmp_path, 'test "$1" = --version && exit 0; exec sleep 20'))
    assert trouble() == f"{tmp_path}/a-compiler took over 0 s"
    assert list(cache.iterdir()) == []


def test_a_compiler_that_writes_nonsense(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (
        'test "$1" = --version && exit 0; for last; do :; done; for o; do test "$p" = -o && echo x > "$o"; p=$o; done'
    )
    monkeypatch.setenv("CC", script(tmp_path, text))
    assert ".so: " in trouble()


@pytest.mark.parametrize("which", ["folder", "file"])
def test_what_others_may_write_is_not_loaded(which: str, cache: Path) -> None:
    require_compiled()
    assert compiled.library().functions is not None
    (file,) = cache.iterdir()
    place = cache if which == "folder" else file
    place.chmod(0o777)
    assert trouble() == f"others may write {place}: remove it"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_what_another_user_owns_is_not_loaded(cache: Path) -> None:
    require_compiled()
    assert compiled.library().functions is not None
    (file,) = cache.iterdir()
    os.chown(file, 12345, -1)
    assert trouble() == f"others may write {file}: remove it"


def test_a_cache_that_can_not_be_made(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    assert str(tmp_path / "cache") in trouble()


def test_a_relative_cache_is_ignored() -> None:
    assert compiled.library_folder({"XDG_CACHE_HOME": "here"}) == compiled.library_folder({})
