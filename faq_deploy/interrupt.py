"""Ctrl-C and SIGTERM as a polite request: finish the step, save, and say how to go on."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType

from typing_extensions import Self

from engines.errors import FaqError

__all__ = ["Interrupted", "StopSignals"]


class Interrupted(FaqError):
    """Training was stopped by Ctrl-C or SIGTERM and can be resumed (exit code 130)."""

    exit_code = 130


class StopSignals:
    """While entered, the first signal sets `requested`; a second one raises KeyboardInterrupt. Main thread only.

    The handlers found are put back at the end. In other threads nothing is changed: Python delivers no signals there.

    Attributes:
        requested: a signal came.
        at_once: set by the owner while there is nothing to finish: then the first signal raises, too.
    """

    def __init__(self) -> None:
        self.requested = False
        self.at_once = False
        self._owner = os.getpid()
        self._previous: dict[int, Callable[[int, FrameType | None], object] | int | None] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) is not signal.SIG_IGN:  # nohup and background jobs stay deaf
                    self._previous[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, previous in self._previous.items():
            signal.signal(number, signal.SIG_DFL if previous is None else previous)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._owner:  # a forked data worker: Ctrl-C is the trainer's business, SIGTERM its own
            if number == signal.SIGTERM:
                os._exit(128 + number)
            return
        stop_now = self.requested or self.at_once
        self.requested = True
        if stop_now:
            raise KeyboardInterrupt
