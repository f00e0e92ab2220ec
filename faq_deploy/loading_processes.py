"""Processes that load ahead of training: they send by pipe, ignore Ctrl-C, and their death is one sentence."""

from __future__ import annotations

import contextlib
import errno
import signal
import threading
from collections.abc import Iterator, Sequence
from typing import TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from engines.errors import CannotRunHere

__all__ = ["from_workers"]

_T = TypeVar("_T")


def from_workers(items: Dataset[_T], wanted: Sequence[int], workers: int) -> Iterator[_T]:
    """Items loaded ahead by processes of their own, in the order asked for.

    Args:
        items: what to load from; copied into each process. An item travels by pipe, as pickle writes it.
        wanted: which items.
        workers: how many processes, at least 1. They end with the iterator.

    Yields:
        The items.

    Raises:
        CannotRunHere: a process died, or they could not be started.
    """
    loader = DataLoader(
        items,
        batch_size=None,
        sampler=wanted,
        num_workers=workers,
        worker_init_fn=_ignore_interrupts,
        generator=torch.Generator(),  # else the loader draws from the global generator, and workers change the run
    )
    try:
        with _child_signal_kept():
            loading = _started(loader)
        yield from loading
    except RuntimeError as error:
        if not str(error).startswith(
            "DataLoader worker"
        ):  # an error inside a live worker is "Caught ... in DataLoader"
            raise
        raise CannotRunHere(
            "A data loading process died, most often for want of memory.", "pass fewer --workers, or --workers 0."
        ) from error


def _started(loader: DataLoader[_T]) -> Iterator[_T]:
    try:
        return iter(loader)
    except OSError as error:  # open files, processes or memory have run out; semaphores lie in shared memory
        reason = "shared memory (/dev/shm) is full" if error.errno == errno.ENOSPC else error.strerror
        raise CannotRunHere(
            f"{loader.num_workers} data loading processes could not be started: {reason}.",
            "pass fewer --workers, or --workers 0.",
        ) from error


@contextlib.contextmanager
def _child_signal_kept() -> Iterator[None]:
    """Undo the loader's SIGCHLD handler: it raises anywhere in the program, while the loader itself notices too."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, before)


def _ignore_interrupts(worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the trainer decides what it means
