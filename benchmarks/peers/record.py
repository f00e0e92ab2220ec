"""What a peer's run leaves: one JSON file a method, all seeds in it, read by the results page."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Final, Literal

from engines.errors import InputError
from engines.files import write_atomic

__all__ = ["RESULTS", "Record", "read_record", "with_seed", "write_record"]

RESULTS: Final = Path(__file__).resolve().parent / "results"


@dataclass(frozen=True)
class Record:
    """One method's run. Top-1 is in percent of all validation images.

    Attributes:
        name: the file's stem.
        method: a short phrase.
        library, version: what quantized the net.
        weight_bits, activation_bits: of all but the first and the last layer, whose weights have 8.
        scales: powers of two, or any float.
        granularity: of weight scales.
        start: the float net, or random weights.
        images: the training images with labels, or some of them without (post-training).
        epochs: 0 for post-training methods.
        lr, schedule: None where nothing is trained.
        float_top1: of the float net, measured by the same script.
        calibrated_top1, top1, best_top1: by seed: before training, after the last epoch, of the best epoch.
        seconds: wall time of a run, mean over the seeds.
        threads, hardware, torch, commit: where it ran.
        command: that repeats it.
        notes: what differs from ours.
    """

    name: str
    method: str
    library: str
    version: str
    weight_bits: int
    activation_bits: int
    scales: Literal["po2", "float"]
    granularity: Literal["channel", "tensor"]
    start: Literal["float", "random"]
    images: Literal["train", "calibration"]
    epochs: int
    lr: float | None
    schedule: str | None
    float_top1: float
    calibrated_top1: dict[str, float] = field(default_factory=dict)
    top1: dict[str, float] = field(default_factory=dict)
    best_top1: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    threads: int = 1
    hardware: str = ""
    torch: str = ""
    commit: str = ""
    command: str = ""
    notes: str = ""


def read_record(path: Path) -> Record:
    """A record from its file.

    Raises:
        InputError: the file is no record.
    """
    try:
        return Record(**json.loads(path.read_text("utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{path} holds no record of a peer's run.", "delete it and run the script again.") from error


def with_seed(earlier: Record | None, new: Record) -> Record:
    """`new` with the seeds of `earlier` that it lacks, if both are runs of one thing; else `new` alone.

    Args:
        earlier: what the file holds; None where there is none.
        new: one run.
    """
    if earlier is None or _setting(earlier) != _setting(new):
        return new
    others = {seed for seed in earlier.top1 if seed not in new.top1}
    count = len(others) + len(new.top1)
    return replace(
        new,
        calibrated_top1=_sorted({**earlier.calibrated_top1, **new.calibrated_top1}),
        top1=_sorted({**earlier.top1, **new.top1}),
        best_top1=_sorted({**earlier.best_top1, **new.best_top1}),
        seconds=round((earlier.seconds * len(others) + new.seconds * len(new.top1)) / count, 1),
    )


def write_record(record: Record, folder: Path = RESULTS) -> Path:
    """Write `folder/NAME.json`; seeds that it holds of the same setting stay.

    Args:
        record: of one run.
        folder: made if absent.

    Returns:
        The file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{record.name}.json"
    merged = with_seed(read_record(path) if path.is_file() else None, record)
    write_atomic(path, json.dumps(asdict(merged), indent=2) + "\n")
    return path


def _setting(record: Record) -> tuple[object, ...]:
    """What two runs must share to stand in one row."""
    return (
        record.method,
        record.library,
        record.version,
        record.weight_bits,
        record.activation_bits,
        record.scales,
        record.granularity,
        record.start,
        record.epochs,
        record.lr,
        record.schedule,
        record.float_top1,
    )


def _sorted(by_seed: dict[str, float]) -> dict[str, float]:
    return dict(sorted(by_seed.items(), key=lambda item: int(item[0])))
