"""Reports read again: whole, or refused by what is wrong with them; and the published schema."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from engines.errors import InputError
from faq_deploy.predictions import PREDICTIONS, Predictions, images_sha256, write_predictions
from faq_deploy.report import write_json
from faq_deploy.report_parts import ClassRow
from faq_deploy.report_schema import report_schema
from faq_deploy.stored_report import read_report
from tests.test_report import report

ROOT = Path(__file__).parents[1]
NAMES, LABELS = ["a/1.png", "b/1.png"], np.array([0, 1])
ANSWERS = {"PyTorch float": np.array([0, 1]), "PyTorch quantized": np.array([0, 0])}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run folder with a report and the answers beside it."""
    classes = [ClassRow(name=name, images=1, right={}) for name in ("a", "b")]
    write_json(report(classes=classes, images_sha256=images_sha256(NAMES, LABELS)), tmp_path / "report.json")
    write_predictions(tmp_path / PREDICTIONS, Predictions(NAMES, ("a", "b"), LABELS, ANSWERS))
    return tmp_path


def test_a_report_comes_back_from_its_folder_or_its_file_with_the_answers(folder: Path) -> None:
    for place in (folder, folder / "report.json"):
        found = read_report(place)
        assert found.report.run == "runs/r18"
        assert found.predictions is not None
        assert found.predictions.answers["PyTorch quantized"].tolist() == [0, 0]
    (folder / PREDICTIONS).unlink()
    assert read_report(folder).predictions is None


def test_answers_of_another_evaluation_are_refused(folder: Path) -> None:
    write_predictions(folder / PREDICTIONS, Predictions(NAMES, ("a", "b"), LABELS[::-1].copy(), ANSWERS))
    with pytest.raises(InputError, match=r"is of another evaluation than the report.json beside it"):
        read_report(folder)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "can't be read"),
        ("{", "can't be read"),
        ("[" * 100_000, "can't be read"),
        ("[]", "is no report of faq-deploy"),
        ('{"a": 1}', "is no report of faq-deploy"),
        ('{"verdict": {}, "schema": 99}', "has schema version 99, and this faq-deploy reads 2"),
        ('{"verdict": {}, "format": 1}', "has schema version 1, and"),
        ('{"verdict": {}}', "has schema version null, and"),
        ('{"verdict": {}, "schema": 2}', "is damaged: faq_deploy: Field required"),
    ],
)
def test_what_is_no_report_of_this_version_is_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "report.json").write_text(text)
    with pytest.raises(InputError) as caught:
        read_report(tmp_path)
    assert said in caught.value.what
    assert str(tmp_path / "report.json") in caught.value.what


def test_a_missing_report_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no report.json"):
        read_report(tmp_path)
    with pytest.raises(InputError, match=r"other.json does not exist"):
        read_report(tmp_path / "other.json")


def test_the_published_schema_is_the_models_and_takes_what_is_written(folder: Path) -> None:
    published = json.loads((ROOT / "docs" / "report.schema.json").read_text("utf-8"))
    assert published == report_schema(), "write it anew: python -m faq_deploy.report_schema > docs/report.schema.json"
    written = json.loads((folder / "report.json").read_text("utf-8"))
    assert set(written) <= set(published["properties"])
    assert written["schema"] == published["properties"]["schema"]["const"] == 2
