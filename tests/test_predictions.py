"""The table of answers: there and back, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from engines.errors import InputError
from faq_deploy.predictions import Predictions, images_sha256, read_predictions, write_predictions

CLASSES = ("cat", 'a "dog", or two', "Kätzchen")
TABLE = Predictions(
    images=["cat/1.jpg", "dog/ä,2.jpg", "x\udce9.jpg"],  # the last one's name is no UTF-8
    classes=CLASSES,
    labels=np.array([0, 1, 2]),
    answers={"PyTorch float": np.array([0, 1, 1]), "reference": np.array([2, 1])},
)


def test_table_comes_back_as_it_was(tmp_path: Path) -> None:
    write_predictions(tmp_path / "p.csv", TABLE)
    found = read_predictions(tmp_path / "p.csv", CLASSES)
    assert found.images == TABLE.images
    assert found.labels.tolist() == [0, 1, 2]
    assert {name: a.tolist() for name, a in found.answers.items()} == {"PyTorch float": [0, 1, 1], "reference": [2, 1]}
    assert (tmp_path / "p.csv").read_bytes().startswith(b"image,label,PyTorch float,reference\ncat/1.jpg,cat,cat,K")


def test_pairs_are_of_the_images_that_both_ran() -> None:
    found = TABLE.pairs("PyTorch float", "reference")
    assert found is not None
    assert (found.images, found.lost, found.gained, found.flips) == (2, 1, 0, 1)
    assert TABLE.pairs("PyTorch float", "engine") is None
    assert TABLE.right("PyTorch float").tolist() == [1, 1, 0]


def test_digest_tells_other_images_other_classes_and_another_order() -> None:
    names, labels = list("abc"), np.array([0, 1, 1])
    plain = images_sha256(names, labels)
    assert plain == images_sha256(list("abc"), labels.copy())
    others = [images_sha256(list("abd"), labels), images_sha256(names, np.array([0, 1, 0]))]
    others.append(images_sha256(list("acb"), labels))
    assert len({plain, *others}) == 4


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is no table of predictions"),
        (b"image,label,a\n1,cat\n", "is no table of predictions"),
        (b"image,label,a\n1,cat,cow\n", "names the class 'cow'"),
        (b"image,label,a\n1,,cat\n", "has images without a class"),
        (b'image,label,a\n1,"cat', "can't be read"),
    ],
)
def test_damaged_table_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "p.csv").write_bytes(content)
    with pytest.raises(InputError, match=said):
        read_predictions(tmp_path / "p.csv", CLASSES)
    with pytest.raises(InputError, match="can't be read"):
        read_predictions(tmp_path / "none.csv", CLASSES)


def test_table_without_images_has_no_answers(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_bytes(b"image,label,a\n")
    found = read_predictions(tmp_path / "p.csv", CLASSES)
    assert (len(found.labels), {name: len(answers) for name, answers in found.answers.items()}) == (0, {"a": 0})
