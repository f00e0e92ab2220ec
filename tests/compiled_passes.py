"""Tests with the compiled passes and without them."""

from __future__ import annotations

import pytest

from faq_deploy import fast_path

__all__ = ["require_compiled", "use_plain_path"]


def require_compiled() -> None:
    """Skip where this machine can't have them."""
    if reason := fast_path.why_not():
        pytest.skip(f"no compiled passes: {reason}")


def use_plain_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's operations alone from here to the test's end."""
    monkeypatch.setattr(fast_path, "_choice", lambda: fast_path._Choice(None, "a test"))
