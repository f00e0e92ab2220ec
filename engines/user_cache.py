"""Where files are kept that can be made again: the user's cache folder."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

__all__ = ["user_cache"]


def user_cache(name: str, environment: Mapping[str, str] = os.environ) -> Path:
    """`$XDG_CACHE_HOME/faq-deploy/NAME`, by default below `~/.cache`.

    Args:
        name: of what is kept there.
        environment: where the variable is looked up.
    """
    given = environment.get("XDG_CACHE_HOME", "")
    # the XDG rules: a path that is not absolute is ignored
    base = Path(given) if Path(given).is_absolute() else Path(os.path.expanduser("~")) / ".cache"
    return base / "faq-deploy" / name
