"""How long `faq-deploy --help` takes, and the --help of each verb: imports must stay lazy.

python benchmarks/startup.py
"""

from __future__ import annotations

import resource
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # else benchmarks/calibration.py hides the package

from benchmarks.common import Row, goal, interleaved, make_parser, noise, publish, this_machine
from cli import main as command_line
from engines.errors import CannotRunHere

__all__ = ["executable", "main"]

_SECONDS: Final = 0.4
_BARE: Final = "python -c pass"


def main() -> None:
    """Measure and print."""
    parser = make_parser("Start of the command line, in seconds.", rounds=10)
    arguments = parser.parse_args()
    machine = this_machine()
    commands = {_BARE: [sys.executable, "-c", "pass"]}
    for verb in ("", *sorted(command_line.commands)):
        words = [*verb.split(), "--help"]
        commands[" ".join(["faq-deploy", *words])] = [executable(), *words]
    cpu: dict[str, list[float]] = {name: [] for name in commands}
    cases: dict[str, Callable[[], object]] = {
        name: partial(_start, words, cpu[name]) for name, words in commands.items()
    }
    seconds = interleaved(cases, arguments.rounds)
    rows: list[Row] = []
    for name in commands:
        median = statistics.median(seconds[name])
        rows.append(
            {
                "command": f"`{name}`",
                "s": median,
                **noise(seconds[name]),
                "of CPU time": statistics.median(cpu[name][1:]),
                **goal(median, at_most=_SECONDS if name != _BARE else None),
            }
        )
    publish(f"Start of the command line, {arguments.rounds} rounds", machine, rows, arguments)


def executable() -> str:
    """The `faq-deploy` of this Python, or else the one on the PATH."""
    own = Path(sys.executable).with_name("faq-deploy")
    found = str(own) if own.exists() else shutil.which("faq-deploy")
    if found is None:
        raise CannotRunHere("faq-deploy is not installed.", "install it with `pip install -e .`.")
    return found


def _start(words: list[str], cpu_seconds: list[float]) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(words, stdout=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_seconds.append(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)


if __name__ == "__main__":
    main()
