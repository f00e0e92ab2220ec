"""Seconds until each verb says its first word: nobody should look at a silent terminal.

python benchmarks/first_progress.py --json benchmarks/results/first-progress.json
"""

from __future__ import annotations

import contextlib
import os
import pty
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # else benchmarks/calibration.py hides the package

from benchmarks.common import Row, goal, make_parser, noise, publish, this_machine
from benchmarks.evaluation import SMALL_NET, photos
from benchmarks.startup import executable

__all__ = ["main"]

_SECONDS: Final = 3.0


def main() -> None:
    """Measure and print."""
    arguments = make_parser("Until a verb's first word, in seconds.", rounds=3).parse_args()
    machine = this_machine()
    seconds: dict[str, list[tuple[float, float]]] = {}
    for number in range(arguments.rounds):
        with tempfile.TemporaryDirectory() as folder:
            for verb, words in _verbs(Path(folder)).items():
                seconds.setdefault(verb, []).append(_first_word([executable(), *words]))
        print(f"round {number + 1} of {arguments.rounds}", file=sys.stderr)
    rows: list[Row] = []
    for verb, found in seconds.items():
        median = statistics.median(wall for wall, _ in found)
        rows.append(
            {
                "verb": verb,
                "s": median,
                **noise([wall for wall, _ in found]),
                "of CPU time": statistics.median(cpu for _, cpu in found),
                **goal(median, at_most=_SECONDS),
            }
        )
    publish(f"Until the first word of each verb, {arguments.rounds} rounds", machine, rows, arguments)


def _verbs(root: Path) -> dict[str, list[str]]:
    """The verbs of a run in their order, on a small net."""
    (root / "net.py").write_text(SMALL_NET)
    photos(root / "data", 64, 64)
    run, net = str(root / "run"), f"{root / 'net.py'}:build"
    data = ["--data", str(root / "data"), "--resize", "0", "--crop", "64", "--epochs", "0", "-o", run]
    return {
        "inspect": ["inspect", net, "--input-size", "64x64", "--num-classes", "8"],
        "quantize": ["quantize", net, "--weights", "random", *data],
        "export": ["export", run],
        "build": ["build", run, "--runtime", "onnxruntime"],
        "eval": ["eval", run, "--allow-undecided"],
    }


def _first_word(words: list[str]) -> tuple[float, float]:
    """Wall time, and CPU time of the process, until it writes something to a terminal; then it may go on."""
    ours, theirs = pty.openpty()
    start = time.perf_counter()
    process = subprocess.Popen(words, stdout=theirs, stderr=theirs)
    os.close(theirs)
    said = os.read(ours, 1)
    seconds, cpu = time.perf_counter() - start, _cpu_seconds(process.pid)
    with contextlib.suppress(OSError):  # Linux's word for the end of a terminal
        while more := os.read(ours, 1 << 16):
            said += more
    os.close(ours)
    if process.wait() > 1:  # `eval` of a net that guesses may say no
        raise SystemExit(f"{' '.join(words)} failed:\n{said.decode()}")
    return seconds, cpu


def _cpu_seconds(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
