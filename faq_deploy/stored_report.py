"""A report.json read again, with the answers beside it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from engines.errors import InputError
from engines.json_text import read_json
from faq_deploy.predictions import PREDICTIONS, Predictions, images_sha256, read_predictions
from faq_deploy.report_model import SCHEMA, Report

__all__ = ["REPORT", "StoredReport", "read_report"]

REPORT: Final = "report.json"

_MOST_BYTES: Final = 256 << 20
_AGAIN: Final = "run `faq-deploy eval` again with this version."


@dataclass(frozen=True)
class StoredReport:
    """What an evaluation left.

    Attributes:
        path: of report.json.
        report: its content.
        predictions: what each stage answered; None where the file beside the report is not there.
    """

    path: Path
    report: Report
    predictions: Predictions | None


def read_report(place: Path) -> StoredReport:
    """Read a report and the answers beside it.

    Args:
        place: a report.json, or the run folder that holds one.

    Raises:
        InputError: there is none, it is damaged or of another schema version, or the answers beside it are of another
            evaluation.
    """
    path = place / REPORT if place.is_dir() else place
    if not path.is_file():
        what = f"{place} holds no {REPORT}." if place.is_dir() else f"The report {place} does not exist."
        raise InputError(what, "make one with `faq-deploy eval RUN`, or name another.")
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise InputError(f"{path} is too large to be a report.", "name a report.json.")
        raw = read_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(f"{path} can't be read: {error}.", _AGAIN) from error
    if not isinstance(raw, dict) or "verdict" not in raw:
        raise InputError(f"{path} is no report of faq-deploy.", "name the report.json that `faq-deploy eval` left.")
    if raw.get("schema") != SCHEMA:
        found = json.dumps(raw.get("schema", raw.get("format")))[:20]
        raise InputError(f"{path} has schema version {found}, and this faq-deploy reads {SCHEMA}.", _AGAIN)
    try:
        report = Report.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the whole"
        raise InputError(f"{path} is damaged: {where}: {first['msg']}.", _AGAIN) from error
    return StoredReport(path, report, _predictions(path.parent / PREDICTIONS, report))


def _predictions(path: Path, report: Report) -> Predictions | None:
    if not path.is_file():
        return None
    found = read_predictions(path, [row.name for row in report.classes])
    if images_sha256(found.images, found.labels) != report.images_sha256:
        raise InputError(f"{path} is of another evaluation than the {REPORT} beside it.", "remove it, or eval again.")
    return found
