"""Runs experiments of the plan through the command line, and keeps what they gave as JSON.

python experiments/run.py --list
python experiments/run.py --data cifar10 --jobs 2 float
python experiments/run.py --data cifar10 --jobs 2 8bit 4bit control

What is finished is skipped, what was interrupted goes on. Each process gets one thread; logs are beside the runs.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engines.errors import FaqError, InputError
from engines.ort import cpu_features
from experiments.plan import EXPERIMENTS, GROUPS, Experiment, chosen, command, run_name
from experiments.record import RESULTS, Record, epochs_of, read_record, write_record

__all__ = ["Task", "Workshop", "main"]

_ROOT: Final = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Task:
    """One training of the plan."""

    experiment: Experiment
    seed: int

    @property
    def name(self) -> str:
        """Of its folder and its files."""
        return run_name(self.experiment, self.seed)


@dataclass
class Workshop:
    """Where trainings run, and which of them run now.

    Attributes:
        program: the command that is `faq-deploy`.
        source: the checkout that it runs.
        data: the images.
        runs: folder of the runs and their logs.
        results: folder of the JSON files.
        threads: of each process.
        jobs: processes at a time.
        again: also what is finished.
    """

    program: str
    source: Path
    data: str
    runs: Path
    results: Path
    threads: int
    jobs: int
    again: bool
    processes: set[subprocess.Popen[str]] = field(default_factory=set)
    lock: threading.Lock = field(default_factory=threading.Lock)
    stopped: bool = False

    def run_all(self, tasks: Sequence[Task]) -> int:
        """Work through the tasks in order; returns how many failed."""
        with ThreadPoolExecutor(self.jobs) as pool:
            try:
                return sum(not done for done in pool.map(self._run, tasks))
            except KeyboardInterrupt:
                self.stop()
                raise

    def stop(self) -> None:
        """End the processes of this queue; each leaves a checkpoint to go on from."""
        self.stopped = True
        with self.lock:
            for process in self.processes:
                process.terminate()

    def _run(self, task: Task) -> bool:
        if self.stopped:
            return False
        path = self.results / f"{task.name}.json"
        wanted = list(command(task.experiment, task.seed))
        if path.is_file() and not self.again and list(read_record(path).command) == wanted:
            print(f"{task.name}: finished before", flush=True)
            return True
        started = time.time()
        try:
            record = self._trained(task)
        except FaqError as error:
            print(f"{task.name}: {error}", file=sys.stderr, flush=True)
            return False
        write_record(record, self.results)
        top1 = " -> ".join(f"{x:.2f}" for x in (record.float_top1, record.calibrated_top1, record.last_top1) if x)
        print(f"{task.name}: {top1} (best {record.best_top1:.2f}) in {time.time() - started:.0f} s", flush=True)
        return True

    def _trained(self, task: Task) -> Record:
        run, log = self.runs / task.name, self.runs / f"{task.name}.log"
        again = (run / "checkpoint.pt").is_file() and not self.again
        arguments = list(command(task.experiment, task.seed, data=self.data, runs=str(self.runs)))
        if again:  # the run knows its model and recipe
            arguments = [arguments[0], "--resume", "--data", self.data, "-o", str(run)]
        else:
            arguments.append("--force")
        started = time.perf_counter()
        printed, beside = self._call([self.program, *arguments, "--json"], log)
        seconds = None if again else round(time.perf_counter() - started, 1)
        result, manifest = json.loads(printed), json.loads((run / "manifest.json").read_text("utf-8"))
        epochs = epochs_of(run / "metrics.jsonl")
        return Record(
            name=task.experiment.name,
            seed=task.seed,
            command=command(task.experiment, task.seed),
            recipe=_recipe(run),
            commit=_commit(self.source),
            torch=manifest["steps"][task.experiment.verb]["versions"]["torch"],
            hardware=_hardware(),
            threads=self.threads,
            beside=beside,
            wall_seconds=seconds,
            float_top1=result.get("float_top1") if task.experiment.start == "float" else None,
            calibrated_top1=result.get("calibrated_top1"),
            last_top1=epochs[-1].top1,
            best_top1=result["top1"],
            best_epoch=result["epoch"],
            epochs=epochs,
        )

    def _call(self, line: list[str], log: Path) -> tuple[str, int]:
        """Stdout of a process, and how many others ran when it began; its stderr goes to the log."""
        log.parent.mkdir(parents=True, exist_ok=True)
        environment = os.environ | {"OMP_NUM_THREADS": str(self.threads)}
        with log.open("a", encoding="utf-8") as stderr:
            process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=stderr, text=True, env=environment)
            with self.lock:
                self.processes.add(process)
            beside = min(self.jobs, len(self.processes)) - 1
            printed, _ = process.communicate()
        with self.lock:
            self.processes.discard(process)
        if process.returncode:
            raise InputError(f"exit code {process.returncode}.", f"see {log}.")
        return printed, beside


def main() -> None:
    """Run what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"experiments, or groups: {', '.join(GROUPS)}")
    parser.add_argument("--list", action="store_true", help="print the plan's commands and do nothing")
    parser.add_argument("--data", default="cifar10", help="folder of images, or cifar10:DIR (default: cifar10)")
    parser.add_argument("--runs", type=Path, default=Path("runs/experiments"), help="folder of run folders")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON files")
    parser.add_argument("--program", default="faq-deploy", help="the faq-deploy to call")
    parser.add_argument("--source", type=Path, default=_ROOT, help="the checkout that it runs (default: this one)")
    parser.add_argument("--threads", type=int, default=1, help="of each process (default: 1)")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time (default: 1)")
    parser.add_argument("--again", action="store_true", help="also what is finished")
    arguments = parser.parse_args()
    try:
        experiments = chosen(tuple(arguments.names)) if arguments.names else list(EXPERIMENTS)
    except KeyError as error:
        parser.error(f"there is no experiment {error.args[0]}")
    seeds = sorted({seed for e in experiments for seed in e.seeds})
    tasks = [
        Task(e, seed) for seed in seeds for e in experiments if seed in e.seeds
    ]  # an answer first, then its spread
    if arguments.list or not arguments.names:
        for task in tasks:
            print(f"{task.name}: faq-deploy {shlex.join(command(task.experiment, task.seed))}")
        return
    if shutil.which(arguments.program) is None:
        parser.error(f"{arguments.program} is no program: install this package, or pass --program")
    places = (arguments.program, arguments.source, arguments.data, arguments.runs.absolute(), arguments.results)
    failed = Workshop(*places, arguments.threads, arguments.jobs, arguments.again).run_all(tasks)
    sys.exit(1 if failed else 0)


def _recipe(run: Path) -> str:
    """The run's recipe as TOML; a float training keeps it in its checkpoint alone."""
    file = run / "recipe.toml"
    if file.is_file():
        return file.read_text("utf-8")
    import torch

    return str(torch.load(run / "checkpoint.pt", map_location="cpu", weights_only=True)["recipe_toml"])


def _hardware() -> str:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return f"{cpu_features().model}, {cores} cores, no GPU"


def _commit(source: Path) -> str:
    def git(*arguments: str) -> str:
        line = ["git", "-C", str(source), *arguments]
        try:
            return subprocess.run(line, capture_output=True, text=True, check=False).stdout.strip()
        except OSError:  # no git on this machine
            return ""

    head = git("rev-parse", "--short", "HEAD")
    return head + ("+" if head and git("status", "--porcelain", "--untracked-files=no") else "") or "unknown"


if __name__ == "__main__":
    main()
