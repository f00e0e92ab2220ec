"""Runs our commands in forked children that die by SIGKILL at the k-th change of a file; see `tests/kills.py`.

`python -m tests.kill_server` pays the imports once, then reads one JSON request a line and answers with one.
"""

from __future__ import annotations

import importlib
import json
import mmap
import os
import signal
import stat
import struct
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

__all__ = ["main"]

# Python's audit events for what changes a file or a folder; each comes before the change
_CHANGES: Final = frozenset(
    (
        "os.rename",
        "os.remove",
        "os.mkdir",
        "os.rmdir",
        "os.truncate",
        "os.chmod",
        "os.link",
        "os.symlink",
        "fcntl.flock",
    )
)
_WRITES: Final = os.O_WRONLY | os.O_RDWR
_HALF: Final = 2  # every second death finds the temporary file half-written


class _Death:
    """Counts changes below some folders, and ends the process before the one that was asked for."""

    def __init__(self, counter: mmap.mmap, kill_at: int, roots: Sequence[str]) -> None:
        self._counter, self._kill_at, self._roots = counter, kill_at, tuple(roots)
        self._count = 0
        self._temporary = ""

    def audit(self, event: str, arguments: tuple[object, ...]) -> None:
        """A hook for `sys.addaudithook`."""
        if event == "open":
            path, _, flags = arguments
            if isinstance(flags, int) and flags & _WRITES and self._is_ours(path):
                self._step()
                if str(path).endswith(".tmp"):
                    self._temporary = str(path)
        elif event in _CHANGES and (
            event == "fcntl.flock" or self._is_ours(arguments[0]) or self._is_relative(event, arguments)
        ):
            self._step()

    def fsync(self, descriptor: int) -> None:
        """In place of os.fsync, for which there is no event. The disk itself is not what is tried here."""
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            self._step()

    def _is_ours(self, path: object) -> bool:
        return isinstance(path, str | bytes | os.PathLike) and os.fsdecode(path).startswith(self._roots)

    def _is_relative(self, event: str, arguments: tuple[object, ...]) -> bool:
        """As shutil.rmtree works: a name in an open folder."""
        return event in ("os.remove", "os.rmdir") and arguments[-1] not in (-1, None)

    def _step(self) -> None:
        self._count += 1
        self._counter[:8] = struct.pack("q", self._count)
        if self._count == self._kill_at:
            if self._count % _HALF == 0 and self._temporary and os.path.exists(self._temporary):
                os.truncate(self._temporary, os.path.getsize(self._temporary) // 2)
            os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    """Answer requests until the end of stdin."""
    _import_all()
    print("ready", flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        with mmap.mmap(-1, 8) as counter:
            child = os.fork()
            if child == 0:
                _child(request, counter)
            _, status = os.waitpid(child, 0)
            (count,) = struct.unpack("q", counter[:8])
        print(json.dumps({"code": os.waitstatus_to_exitcode(status), "changes": count}), flush=True)


def _child(request: dict[str, object], counter: mmap.mmap) -> None:
    code = 70
    try:
        os.environ["TMPDIR"] = str(request["scratch"])
        os.environ["XDG_CACHE_HOME"] = str(request["cache"])
        output = os.open(str(request["output"]), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        empty = os.open(os.devnull, os.O_RDONLY)
        for target, source in ((0, empty), (1, output), (2, output)):
            os.dup2(source, target)
        sys.stdin, sys.stdout, sys.stderr = os.fdopen(0), os.fdopen(1, "w"), os.fdopen(2, "w")
        code = _run(request, counter)
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException as error:
        import traceback

        traceback.print_exception(error)
        sys.stderr.flush()
    finally:
        os._exit(code)


def _run(request: dict[str, object], counter: mmap.mmap) -> int:
    """The exit code of one command, or of the first of several that fails."""
    import cli

    kill_at, roots = request["kill_at"], request["roots"]
    assert isinstance(kill_at, int) and isinstance(roots, list)
    death = _Death(counter, kill_at, roots)
    sys.addaudithook(death.audit)
    os.fsync = death.fsync  # type: ignore[assignment]
    arguments = request["arguments"]
    assert isinstance(arguments, list)
    try:
        cli.main(arguments, prog_name="faq-deploy")
    except SystemExit as left:
        return left.code if isinstance(left.code, int) else int(left.code is not None)
    return 0


def _import_all() -> None:
    """All that the verbs import on their way, so that a child starts at once."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    import onnxruntime
    import torch

    for name in (
        "engines.bundle_eval",
        "engines.verify",
        "faq_deploy.show",
        "faq_deploy.show_snap",
        "faq_deploy.verbs",
    ):
        importlib.import_module(name)
    onnxruntime.set_default_logger_severity(3)
    torch.set_num_threads(1)


if __name__ == "__main__":
    main()
