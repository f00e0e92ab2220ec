"""What one training left: a small JSON file each, from which docs/results.md is made."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from engines.errors import InputError
from engines.files import write_atomic

__all__ = ["RESULTS", "Epoch", "Record", "epochs_of", "read_record", "read_records", "write_record"]

RESULTS: Final = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Epoch:
    """One epoch of a training.

    Attributes:
        top1: on the test images, in percent.
        train_top1: on the training images as they came by, in percent.
        loss: mean of the training loss.
        lr: learning rate of its last step.
        seconds: of training, without validation.
        images_per_second: of training.
        similarity: mean cosine between the weights and those the training started from; None if not measured.
    """

    top1: float
    train_top1: float
    loss: float
    lr: float
    seconds: float
    images_per_second: float
    similarity: float | None = None


@dataclass(frozen=True)
class Record:
    """One training, with what it takes to repeat it.

    Attributes:
        name: of the experiment.
        seed: of the run.
        command: arguments of `faq-deploy`, with `cifar10` and `runs/experiments` for this machine's folders.
        recipe: TOML, as the run resolved it.
        commit: of the code that trained, with "+" if files were changed since.
        torch: its version.
        hardware: CPU and the cores it may use.
        threads: of this run.
        beside: how many other runs were going on at the same time.
        wall_seconds: of the command; None where it went on with a run that was interrupted, or found it finished.
        float_top1: of the net it started from, in percent; None for float nets and random starts.
        calibrated_top1: right after quantization, in percent; None for float nets.
        last_top1: after the last epoch, in percent.
        best_top1: of the epoch whose weights are kept, in percent; it is chosen on the test images.
        best_epoch: which that is; 0 is the net before training.
        epochs: in order.
    """

    name: str
    seed: int
    command: Sequence[str]
    recipe: str
    commit: str
    torch: str
    hardware: str
    threads: int
    beside: int
    wall_seconds: float | None
    float_top1: float | None
    calibrated_top1: float | None
    last_top1: float
    best_top1: float
    best_epoch: int
    epochs: Sequence[Epoch]


def epochs_of(metrics: Path) -> list[Epoch]:
    """The epochs of a run's `metrics.jsonl`.

    Raises:
        InputError: the file can't be read, or isn't one.
    """
    try:
        rows = [json.loads(line) for line in metrics.read_text("utf-8").splitlines()]
        return [_epoch(row) for row in rows if row["kind"] == "epoch"]
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{metrics} could not be read: {error!r}.", "run it again with --again.") from error


def read_record(path: Path) -> Record:
    """One result.

    Raises:
        InputError: the file is missing, or not a result.
    """
    try:
        raw = json.loads(path.read_text("utf-8"))
        return Record(**raw | {"epochs": [Epoch(**epoch) for epoch in raw["epochs"]]})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is no result of an experiment: {error!r}.", "delete it and run it again.") from error


def read_records(folder: Path = RESULTS) -> dict[str, list[Record]]:
    """All results by experiment, each experiment's by seed."""
    found: dict[str, list[Record]] = {}
    for record in sorted(map(read_record, folder.glob("*.json")), key=lambda r: (r.name, r.seed)):
        found.setdefault(record.name, []).append(record)
    return found


def write_record(record: Record, folder: Path = RESULTS) -> Path:
    """Write a result; returns its file."""
    path = folder / f"{record.name}-{record.seed}.json"
    write_atomic(path, json.dumps(asdict(record), indent=1) + "\n")
    return path


def _epoch(row: Mapping[str, float]) -> Epoch:
    return Epoch(
        top1=row["top1"],
        train_top1=round(row["train_top1"], 3),
        loss=round(row["loss"], 5),
        lr=row["lr"],
        seconds=round(row["seconds"], 1),
        images_per_second=round(row["images_per_second"], 1),
        similarity=row.get("similarity"),
    )
