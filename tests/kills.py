"""Commands killed at chosen changes of files, the state they leave, and the way on that they promise."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

__all__ = ["KillServer", "Outcome", "files_in", "same_but_times", "vouched"]

ROOT: Final = Path(__file__).parents[1]
_MOST_STEPS: Final = 4  # commands that lead from a killed one to the result: its own, and what messages advise


@dataclass(frozen=True)
class Outcome:
    """How a command ended: its exit code (-9 where it was killed), changes of files until then, and what it said."""

    code: int
    changes: int
    said: str


class KillServer:
    """A process that runs commands in children of its own.

    Args:
        folder: everything that is watched for changes happens below it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.scratch = folder / "scratch"
        self.scratch.mkdir()
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "TMPDIR": str(self.scratch)}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.kill_server"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=environment,
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._requests: IO[str] = self._process.stdin
        self._answers: IO[str] = self._process.stdout
        assert self._answers.readline() == "ready\n"

    def run(self, arguments: Sequence[object], kill_at: int = 0) -> Outcome:
        """Run one command.

        Args:
            arguments: of `faq-deploy`.
            kill_at: the change of a file before which it dies, counted from 1; 0 lets it live.
        """
        output = self.folder / "output.txt"
        request = {
            "arguments": [str(a) for a in arguments],
            "kill_at": kill_at,
            "roots": [f"{self.folder}/"],
            "output": str(output),
            "scratch": str(self.scratch),
            "cache": str(self.folder / "cache"),
        }
        self._requests.write(json.dumps(request) + "\n")
        self._requests.flush()
        answer = json.loads(self._answers.readline())
        return Outcome(answer["code"], answer["changes"], output.read_text())

    def finish(self, arguments: Sequence[object]) -> list[str]:
        """Run a command again, and what its refusals advise, until it is done.

        Returns:
            The commands that it took.

        Raises:
            AssertionError: it failed in another way than by a refusal that names the way on.
        """
        took: list[str] = []
        wanted = [str(a) for a in arguments]
        for _ in range(_MOST_STEPS):
            outcome = self.run(wanted)
            took.append(shlex.join(wanted))
            if outcome.code == 0:
                return took
            assert outcome.code == 2, outcome.said
            assert "Traceback" not in outcome.said, outcome.said
            note = outcome.said.strip().splitlines()[-1]
            assert note.startswith("Note: "), outcome.said
            wanted = _advised(wanted, note)
        raise AssertionError(f"no end after {took}: {outcome.said}")

    def close(self) -> None:
        """End the process."""
        self._requests.close()
        self._process.wait()


def _advised(arguments: list[str], note: str) -> list[str]:
    """The next command, as a note says it."""
    named = re.search(r"`faq-deploy ([^`]*)`", note)
    if named is not None and "MODEL" not in named[1]:
        return shlex.split(named[1])
    option = re.search(r"--resume|--force", note)
    assert option is not None, note
    return [*arguments, option[0]]


def files_in(folder: Path) -> dict[str, str]:
    """The sha256 of every file below a folder, by its path in it."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def vouched(run: Path) -> dict[str, str]:
    """The files of a run that its manifest vouches for and that are what it says, by their names: sha256."""
    with contextlib.suppress(FileNotFoundError):
        steps = json.loads((run / "manifest.json").read_text())["steps"]
        there = files_in(run)
        said = {name: sha256 for step in steps.values() for name, sha256 in step["outputs"].items()}
        return {name: sha256 for name, sha256 in said.items() if there.get(name) == sha256}
    return {}


def same_but_times(found: object, wanted: object) -> bool:
    """Whether two JSON values are alike in all but what the clock says, and hashes of files that may differ."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        return found.keys() == wanted.keys() and all(
            same_but_times(found[key], wanted[key]) for key in wanted if not _depends_on_time(key)
        )
    if isinstance(found, list) and isinstance(wanted, list):
        return len(found) == len(wanted) and all(map(same_but_times, found, wanted))
    return found == wanted


def _depends_on_time(key: str) -> bool:
    timed = (
        "seconds",
        "created",
        "latency",
        "report.",
        "metrics.jsonl",
        "manifest.json",
        "_ms",
        "per_second",
        "host",
        ".engine",
    )
    return any(part in key for part in timed)


@contextlib.contextmanager
def copied(source: Path, target: Path) -> Iterator[Path]:
    """A copy of a folder for as long as the block lasts."""
    shutil.copytree(source, target, symlinks=True) if source.exists() else None
    try:
        yield target
    finally:
        shutil.rmtree(target, ignore_errors=True)


def killed(outcome: Outcome) -> bool:
    """Whether a command died as it was meant to."""
    return outcome.code == -signal.SIGKILL
