"""The first word of verbs that load PyTorch."""

from __future__ import annotations

import io
import sys

import pytest

from faq_deploy.cli_loading import say_loading


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("stream", "said"), [(Terminal(), "loading PyTorch ...\n"), (io.StringIO(), "")])
def test_only_a_terminal_is_told(monkeypatch: pytest.MonkeyPatch, stream: io.StringIO, said: str) -> None:
    monkeypatch.setattr(sys, "stderr", stream)
    say_loading()
    assert stream.getvalue() == said
