"""Every classifier of torchvision, and the smallest model of every timm family: traced, quantized, exported, compared.

Each architecture runs in a process of its own with random weights, in both deployment targets, and has to give
identical codes in PyTorch, the integer reference and onnxruntime. Results are appended to a file of JSON lines, so a
sweep that was stopped goes on where it was; the table goes into docs/networks.md.

python benchmarks/sweep.py
python benchmarks/sweep.py --zoo timm --again
python benchmarks/sweep.py --only "timm:convnext*"
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import sys
import time
import warnings
from collections.abc import Iterable
from fnmatch import fnmatchcase
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # else benchmarks/calibration.py hides the package

from benchmarks.networks_page import RESULTS, read_trials, write_page
from benchmarks.trial import TARGETS, Outcome, Trial, attempt, limit_memory
from benchmarks.zoo import Entry, smallest_of_timm, torchvision_entries
from engines.errors import InputError

__all__ = ["main"]

_NEARLY: Final = 0.9  # of the memory that it may have: what fails then, fails for want of memory


def main() -> None:
    """Try what has no result yet, and write the table."""
    parser = argparse.ArgumentParser(
        description="The sweep.", formatter_class=argparse.ArgumentDefaultsHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--zoo", choices=["torchvision", "timm"], action="append", help="repeatable; both if absent")
    parser.add_argument("--only", default="*", metavar="PATTERN", help="models to try, such as timm:res*")
    parser.add_argument("--again", action="store_true", help="try those again that were not exact")
    parser.add_argument("--seconds", type=int, default=1800, help="limit of one architecture")
    parser.add_argument("--memory-gib", type=float, default=8.0, help="limit of one architecture")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # no threads yet: a fork would lose them
    zoos = arguments.zoo or ["torchvision", "timm"]
    entries = torchvision_entries() if "torchvision" in zoos else []
    entries += smallest_of_timm(RESULTS / "timm-families.json") if "timm" in zoos else []
    done = {trial.model: trial for trial in read_trials()}
    wanted = [e for e in entries if fnmatchcase(e[1], arguments.only) and _is_open(done.get(e[1]), arguments.again)]
    for number, entry in enumerate(wanted, 1):
        start = time.monotonic()
        trial = _tried(entry, arguments.seconds, arguments.memory_gib)
        with (RESULTS / "sweep.jsonl").open("a", encoding="utf-8") as file:
            file.write(trial.to_json() + "\n")
        print(f"{number}/{len(wanted)} {trial.model}: {_said(trial)} ({time.monotonic() - start:.0f} s)", flush=True)
    print(write_page())


def _is_open(trial: Trial | None, again: bool) -> bool:
    return trial is None or (again and trial.status != "exact" and not trial.is_transformer)


def _tried(entry: Entry, seconds: int, memory_gib: float) -> Trial:
    """Try an architecture in a process forked from this one, which has imported torch already."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(sender, entry, memory_gib))
    process.start()
    sender.close()
    try:
        if not receiver.poll(seconds):
            return _failed(entry, f"stopped after {seconds} s")
        trial = receiver.recv()
        assert isinstance(trial, Trial)
        full = trial.status == "bug" and trial.peak_mib > _NEARLY * memory_gib * 1024
        return _failed(entry, f"stopped: it needs over {memory_gib:g} GiB") if full else trial
    except EOFError:
        process.join()
        return _failed(entry, f"stopped with exit code {process.exitcode}: probably over {memory_gib:g} GiB")
    finally:
        process.kill()
        process.join()


def _child(sender: Connection, entry: Entry, memory_gib: float) -> None:
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    limit_memory(memory_gib)
    family, model = entry
    try:
        trial = attempt(model, family, TARGETS)
    except InputError as error:
        trial = Trial(model, family, outcomes={"": Outcome("refused", error.what)})
    except Exception as error:  # whatever it is, it goes into the table
        trial = _failed(entry, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
    sender.send(trial)


def _failed(entry: Entry, reason: str) -> Trial:
    return Trial(entry[1], entry[0], outcomes={"": Outcome("bug", reason)})


def _said(trial: Trial) -> str:
    reasons: Iterable[str] = dict.fromkeys(o.reason for o in trial.outcomes.values() if o.reason)
    return " ".join([trial.status, *reasons])


if __name__ == "__main__":
    main()
