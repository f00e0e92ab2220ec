"""A training run in progress on disk: `checkpoint.pt`, and `metrics.jsonl` up to the byte it vouches for."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from engines.errors import InputError
from engines.files import atomic_path
from engines.run_folder import RunFolder
from faq_deploy.torch_file import read_torch_file, write_torch_file

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = [
    "CHECKPOINT",
    "METRICS",
    "MetricsLog",
    "Tally",
    "TrainingState",
    "has_checkpoint",
    "load_state",
    "recipe_differences",
    "remove_leftovers",
    "save_state",
]

CHECKPOINT: Final = "checkpoint.pt"
METRICS: Final = "metrics.jsonl"

_FORMAT: Final = 1
# These may change between a run and its continuation: they don't touch the weights of a step already planned.
_FREE_KEYS: Final = frozenset({"name", "description", "training.epochs"})  # and all of [paper]


@dataclass
class Tally:
    """Sums over the epoch in progress: images, loss x images, images classified right, seconds, changed exponents."""

    images: int = 0
    loss: float = 0.0
    right: float = 0.0
    seconds: float = 0.0
    flips: int = 0


@dataclass
class TrainingState:
    """Everything that the next step depends on. The training loop owns one and moves it on.

    Attributes:
        recipe_toml: the recipe in use.
        weight_decay: in use; it depends on the model's name too.
        steps_per_epoch: of the data in use.
        net: state dict.
        optimizer: state dict.
        epoch: the epoch in progress, from 0; all before it are validated.
        step_in_epoch: steps of it done; equal to `steps_per_epoch` if only its validation is missing.
        global_step: steps done in all.
        best: state dict of the best validated epoch, the net as it came counting as epoch 0 if its top-1 is known; else
            empty before the first.
        best_epoch: epochs done when `best` was taken.
        best_top1: its validation top-1 in percent, NaN where `best` is empty.
        last_top1: of the last validated epoch in percent, NaN before the first.
        tally: sums over the epoch in progress.
        seconds: of training in the epochs done, without validation and checkpoints.
        metrics_bytes: length of `metrics.jsonl`.
        scaler: how fp16 losses are scaled; empty in other precisions.
        average: of the weights, by name, where the recipe averages; else empty.
    """

    recipe_toml: str
    weight_decay: float
    steps_per_epoch: int
    net: dict[str, Tensor]
    optimizer: dict[str, object]
    epoch: int = 0
    step_in_epoch: int = 0
    global_step: int = 0
    best: dict[str, Tensor] = field(default_factory=dict)
    best_epoch: int = 0
    best_top1: float = math.nan
    last_top1: float = math.nan
    tally: Tally = field(default_factory=Tally)
    seconds: float = 0.0
    metrics_bytes: int = 0
    scaler: dict[str, object] = field(default_factory=dict)
    average: dict[str, Tensor] = field(default_factory=dict)


class MetricsLog:
    """`metrics.jsonl`, one JSON object a line, appended in batches.

    Args:
        path: the file, made if absent.
        keep_bytes: what stands after that many bytes is dropped: steps that a checkpoint doesn't know of.

    Raises:
        InputError: the file is shorter than that, or can't be written.
    """

    def __init__(self, path: Path, keep_bytes: int) -> None:
        self.path = path
        self._pending: list[str] = []
        try:
            self._file = path.open("ab")
            found = self._file.tell()
            if found < keep_bytes:
                self._file.close()
                raise InputError(
                    f"{path} has {found} bytes, but the checkpoint was saved when it had {keep_bytes}.",
                    "put the file back as it was, or train again from the start with --force.",
                )
            self._file.truncate(keep_bytes)
        except OSError as error:
            raise self._cannot_write(error) from error

    def add(self, line: Mapping[str, str | int | float | bool]) -> None:
        """Queue a line."""
        self._pending.append(json.dumps(line, allow_nan=False) + "\n")

    def flush(self, *, to_disk: bool = False) -> int:
        """Append the queued lines.

        Args:
            to_disk: wait until they survive a power cut.

        Returns:
            The length of the file in bytes.
        """
        try:
            self._file.write("".join(self._pending).encode())
            self._file.flush()
            if to_disk:
                os.fsync(self._file.fileno())
        except OSError as error:
            raise self._cannot_write(error) from error
        self._pending.clear()
        return self._file.tell()

    def close(self) -> None:
        """Close the file. Queued lines are dropped: no checkpoint knows of them.

        Raises:
            InputError: the disk is full.
        """
        try:
            self._file.close()  # tries once more to write what a full disk has refused
        except OSError as error:
            raise self._cannot_write(error) from error

    def _cannot_write(self, error: OSError) -> InputError:
        return InputError(
            f"{self.path} could not be written: {error.strerror}.", "free some disk space, then continue with --resume."
        )


def has_checkpoint(run: RunFolder) -> bool:
    """Whether the run holds a training that can be resumed."""
    return (run / CHECKPOINT).is_file()


def save_state(run: RunFolder, state: TrainingState) -> None:
    """Write `checkpoint.pt`, whole or not at all.

    Args:
        run: its folder is made if absent.
        state: exact, as after a step whose loss is read.

    Raises:
        InputError: the disk is full or the folder can't be written; the checkpoint before is intact.
    """
    record = vars(state) | {"format": _FORMAT, "tally": vars(state.tally)}
    with atomic_path(run / CHECKPOINT) as temporary:
        write_torch_file(temporary, record)


def load_state(run: RunFolder) -> TrainingState:
    """Read `checkpoint.pt`.

    Args:
        run: where the training is.

    Returns:
        The state, its tensors on the CPU.

    Raises:
        InputError: no checkpoint, a damaged one, or one from a newer version.
    """
    path = run / CHECKPOINT
    if not path.is_file():
        raise InputError(f"{run.path} holds no training to resume ({CHECKPOINT} is missing).", "run without --resume.")
    remedy = "train again from the start with --force."
    record: dict[str, Any] = read_torch_file(path, _FORMAT, remedy)
    try:
        return TrainingState(**record | {"tally": Tally(**record["tally"])})
    except (KeyError, TypeError) as error:
        raise InputError(f"{path} is damaged, or not a file of faq-deploy.", remedy) from error


def recipe_differences(saved_toml: str, recipe_toml: str) -> list[str]:
    """What differs between two recipes and would change the weights, as `training.lr: 0.01 became 0.02`."""
    saved, now = (_flat(tomllib.loads(text), "") for text in (saved_toml, recipe_toml))
    return [
        f"{key}: {saved.get(key, 'absent')} became {now.get(key, 'absent')}"
        for key in sorted((saved.keys() | now.keys()) - _FREE_KEYS)
        if not key.startswith("paper.") and saved.get(key, "absent") != now.get(key, "absent")
    ]


def remove_leftovers(run: RunFolder) -> None:
    """Delete the temporary files of a checkpoint whose writing was killed."""
    for leftover in run.path.glob(f".{CHECKPOINT}.*.tmp"):
        leftover.unlink(missing_ok=True)


def _flat(table: Mapping[str, object], prefix: str) -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in table.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
