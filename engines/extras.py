"""How an optional part of faq-deploy is installed, as messages say it."""

from __future__ import annotations

import importlib.metadata
import shlex
from pathlib import Path
from typing import Literal

__all__ = ["Extra", "pip_install"]

Extra = Literal["demo", "rtx", "tensorrt", "timm", "torch"]  # of pyproject.toml, those that users need


def pip_install(extra: Extra) -> str:
    """The command that adds an extra to this faq-deploy.

    Args:
        extra: its name in pyproject.toml.

    Returns:
        One for pip that reads the extra from the package that is installed, whether it came from a wheel or from a
        checkout, or from the checkout itself where it was never installed.
    """
    try:
        importlib.metadata.version("faq-deploy")
    except importlib.metadata.PackageNotFoundError:  # by its name, pip would look for it elsewhere
        return f"pip install -e {shlex.quote(f'{Path(__file__).parents[1]}[{extra}]')}"
    return f"pip install 'faq-deploy[{extra}]'"
