"""An extra is installed from the faq-deploy that is there, by its name, or by its folder where it has none."""

from __future__ import annotations

import importlib.metadata
import shlex
from pathlib import Path
from typing import get_args

import pytest
import tomllib

from engines.extras import Extra, pip_install

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("extra", get_args(Extra))
def test_extra_that_is_told_is_one_of_the_package(extra: Extra) -> None:
    assert extra in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert pip_install(extra) == f"pip install 'faq-deploy[{extra}]'"


def test_checkout_that_was_never_installed_is_named_by_its_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", nothing)
    assert shlex.split(pip_install("torch")) == ["pip", "install", "-e", f"{ROOT}[torch]"]
