"""What each stage answered, image by image: the record that paired statistics, flips and comparisons are made from."""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from engines.errors import InputError
from engines.files import write_atomic
from faq_deploy.statistics import Pairs, pairs_of

__all__ = ["PREDICTIONS", "Predictions", "images_sha256", "read_predictions", "write_predictions"]

PREDICTIONS: Final = "predictions.csv"

_IMAGE, _LABEL = "image", "label"
_MOST_BYTES: Final = 1 << 30

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Predictions:
    """The top-1 class of every image in every stage.

    Attributes:
        images: a name for each, the same on every machine.
        classes: class names; labels and answers index them.
        labels: the true classes, shape (N,).
        answers: by stage; shorter than `labels` where a stage ran only the first images.
    """

    images: Sequence[str]
    classes: Sequence[str]
    labels: IntArray
    answers: Mapping[str, IntArray]

    def pairs(self, before: str, after: str) -> Pairs | None:
        """Two stages compared on the images that both ran; None where one of them ran none."""
        first, second = self.answers.get(before), self.answers.get(after)
        if first is None or second is None or not (count := min(len(first), len(second))):
            return None
        return pairs_of(self.labels[:count], first[:count], second[:count])

    def class_pairs(self, before: str, after: str) -> dict[str, Pairs]:
        """Two stages compared on each class's own images, by the class's name; empty where one of them ran none."""
        first, second = self.answers.get(before), self.answers.get(after)
        if first is None or second is None or not (count := min(len(first), len(second))):
            return {}
        order = np.argsort(self.labels[:count], kind="stable")
        ends = np.cumsum(np.bincount(self.labels[:count], minlength=len(self.classes)))[:-1]
        return {
            name: pairs_of(self.labels[rows], first[rows], second[rows])
            for name, rows in zip(self.classes, np.split(order, ends), strict=True)
        }

    def per_class(self) -> IntArray:
        """How many images each class has; shape (classes,)."""
        return np.bincount(self.labels, minlength=len(self.classes)).astype(np.int64)

    def right(self, stage: str) -> IntArray:
        """For each class, how many of its images a stage answered rightly; shape (classes,)."""
        found = self.answers[stage]
        labels = self.labels[: len(found)]
        return np.bincount(labels[found == labels], minlength=len(self.classes)).astype(np.int64)


def images_sha256(names: Sequence[str], labels: IntArray) -> str:
    """A digest of which images were run and what they show; the order counts."""
    digest = hashlib.sha256()
    for name, label in zip(names, labels.tolist(), strict=True):
        digest.update(f"{label}\t{name}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def write_predictions(path: Path, predictions: Predictions) -> None:
    """Write a table with one row an image: its name, its class, and what each stage answered.

    Raises:
        WriteError: the file can't be written.
    """
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow([_IMAGE, _LABEL, *predictions.answers])
    classes = predictions.classes
    for index, (image, label) in enumerate(zip(predictions.images, predictions.labels.tolist(), strict=True)):
        answers = [classes[int(found[index])] if index < len(found) else "" for found in predictions.answers.values()]
        rows.writerow([image, classes[label], *answers])
    write_atomic(path, text.getvalue().encode("utf-8", "surrogateescape"))


def read_predictions(path: Path, classes: Sequence[str]) -> Predictions:
    """Read what `write_predictions` wrote.

    Args:
        path: the table.
        classes: of the report that it lies beside.

    Raises:
        InputError: it is missing or damaged, or names a class that the report doesn't know.
    """
    remedy = "run `faq-deploy eval` again, which writes it anew."
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise InputError(f"{path} is too large to be a table of predictions.", remedy)
        rows = list(csv.reader(io.StringIO(path.read_bytes().decode("utf-8", "surrogateescape")), strict=True))
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"{path} can't be read: {error}.", remedy) from error
    if not rows or rows[0][:2] != [_IMAGE, _LABEL] or any(len(row) != len(rows[0]) for row in rows):
        raise InputError(f"{path} is no table of predictions.", remedy)
    number = {name: index for index, name in enumerate(classes)}
    header, body = rows[0], rows[1:]
    try:
        columns = [[number[row[place]] for row in body if row[place]] for place in range(1, len(header))]
    except KeyError as error:
        raise InputError(f"{path} names the class {error}, which the report beside it doesn't know.", remedy) from error
    labels, *answers = (np.array(column, np.int64) for column in columns)
    if len(labels) != len(body):
        raise InputError(f"{path} has images without a class.", remedy)
    return Predictions([row[0] for row in body], tuple(classes), labels, dict(zip(header[2:], answers, strict=True)))
