"""`--devices N` on one machine: the same command in N processes that end together. Needs no torch."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Final

from engines.errors import CannotRunHere, InputError

__all__ = [
    "counted",
    "in_processes",
    "launch",
    "launches",
    "processes_here",
    "started_by_launcher",
    "started_processes",
]

_LAUNCHED: Final = "FAQ_DEPLOY_LAUNCHED"  # set in the processes that `launch` starts
_OWN_END: Final = 5.0  # seconds in which the others may notice by themselves that a process has ended badly
_GRACE: Final = 15.0  # seconds to end politely after that
_POLL: Final = 0.05  # seconds


def counted(text: str, device: str) -> int:
    """How many processes `--devices` asks for: a number, or `auto` for one a GPU.

    Args:
        text: of the option.
        device: of --device.

    Raises:
        InputError: neither a number over 0 nor `auto`.
    """
    if text == "auto":
        if device == "cpu" or device.startswith("cuda:"):
            return 1
        import torch

        return max(torch.cuda.device_count(), 1)
    if not text.isdigit() or int(text) < 1:
        raise InputError(f"--devices {text} is no number of processes.", "pass 1, 2, ..., or auto for one a GPU.")
    return int(text)


def started_processes() -> int:
    """How many processes, of which this is one, `torchrun` or `launch` started in all; 1 where none did."""
    return int(os.environ["WORLD_SIZE"]) if _is_started() else 1


def processes_here() -> int:
    """How many of them run on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", started_processes())) if _is_started() else 1


def started_by_launcher() -> bool:
    """Whether `launch` started this process."""
    return _LAUNCHED in os.environ


def launches(count: int) -> bool:
    """Whether this process is to start others: several are asked for, and it was not started as one of them.

    Args:
        count: from `counted`.

    Raises:
        InputError: `torchrun` started another number on this machine.
    """
    if not _is_started():
        return count > 1
    here = processes_here()
    if count not in (1, here):
        raise InputError(
            f"--devices {count}, but torchrun started {here} processes here.", "leave out --devices under torchrun."
        )
    return False


def launch(count: int, command: Sequence[str] | None = None) -> int:
    """Run a command in several processes that find each other by torchrun's environment variables.

    Ctrl-C and SIGTERM are handed to all of them. Where one ends badly, the others are ended.

    Args:
        count: of processes.
        command: program and arguments; this very command line if not given.

    Returns:
        0 if all ended well, else the code of the first that did not.

    Raises:
        CannotRunHere: one was killed from outside, such as for want of memory.
    """
    words = list(command or [sys.executable, *sys.orig_argv[1:]])
    shared = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max((os.cpu_count() or 1) // count, 1))),
        _LAUNCHED: "1",
    }
    processes: list[subprocess.Popen[bytes]] = []
    with _handed_on(processes) as received:
        try:
            for rank in range(count):
                own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "GROUP_RANK": "0"}
                # own sessions: a terminal's Ctrl-C comes once, by way of this process. The pipe closes with it.
                processes.append(
                    subprocess.Popen(
                        words, env=os.environ | shared | own, stdin=subprocess.PIPE, start_new_session=True
                    )
                )
            rank, code = _first_bad(processes)
        finally:
            _end(processes)
    if code < 0 and not received:
        name = signal.Signals(-code).name
        raise CannotRunHere(
            f"Process {rank} of {count} was killed ({name}), so the others were stopped.",
            "it may have run out of memory; continue with --resume if training had begun.",
        )
    return 130 if code < 0 else code


def in_processes(command: Callable[..., None]) -> Callable[..., None]:
    """Let a Click command run in the processes that its options --devices and --device ask for.

    Args:
        command: is called without `devices`; of several processes, only the first prints and warns.
    """

    @functools.wraps(command)
    def run(*arguments: object, devices: str, device: str, **options: object) -> None:
        count = counted(devices, device)
        if launches(count):
            sys.exit(launch(count))
        if started_by_launcher():
            _end_with_the_launcher()
        with contextlib.ExitStack() as silence:
            if os.environ.get("RANK", "0") != "0" and started_processes() > 1:
                silence.enter_context(contextlib.redirect_stdout(None))
                warnings.simplefilter("ignore")  # the first process has the same
            command(*arguments, device=device, **options)

    return run


def _end_with_the_launcher() -> None:
    """Ask for a polite end of this process as soon as the launching one is gone."""
    pipe = os.dup(0)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)

    def watch() -> None:
        while os.read(pipe, 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def _is_started() -> bool:
    return {"RANK", "LOCAL_RANK", "WORLD_SIZE"} <= os.environ.keys()


def _first_bad(processes: Sequence[subprocess.Popen[bytes]]) -> tuple[int, int]:
    """Rank and code of the process that ended badly first, as soon as one has; (0, 0) once all have ended well."""
    while True:
        codes = [process.poll() for process in processes]
        bad = [(rank, code) for rank, code in enumerate(codes) if code]
        if bad:
            return min(bad, key=lambda pair: pair[1])  # of two at once, the one killed: it is why the other ended
        if None not in codes:
            return 0, 0
        time.sleep(_POLL)


def _end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Wait for all, less and less politely."""
    for patience, ask in ((_OWN_END, subprocess.Popen.terminate), (_GRACE, subprocess.Popen.kill)):
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline and any(process.poll() is None for process in processes):
            time.sleep(_POLL)
        for process in processes:
            if process.poll() is None:
                ask(process)
    for process in processes:
        process.wait()
        if process.stdin is not None:
            process.stdin.close()


@contextlib.contextmanager
def _handed_on(processes: Sequence[subprocess.Popen[bytes]]) -> Iterator[list[int]]:
    """Send what this process is asked by signal to all others; collects the signals."""
    received: list[int] = []

    def hand_on(number: int, frame: FrameType | None) -> None:
        received.append(number)
        for process in processes:
            if process.poll() is None:
                process.send_signal(number)

    before = {}
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup and background jobs stay deaf
            before[number] = signal.signal(number, hand_on)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
