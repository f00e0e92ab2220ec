"""The list of known gaps is true: each is still there, refused in a sentence, and on the page that it names."""

from __future__ import annotations

from pathlib import Path

import pytest

from engines.errors import FaqError
from tests.known_gaps import GAPS, Gap

ROOT = Path(__file__).parents[1]


def refusal_of(gap: Gap, folder: Path) -> FaqError | LookupError | None:
    try:
        gap.attempt(folder)
    except (FaqError, LookupError) as error:
        return error
    return None


@pytest.mark.parametrize("gap", GAPS, ids=lambda gap: gap.what)
def test_gap_is_still_there_and_is_refused_in_a_sentence(gap: Gap, tmp_path: Path) -> None:
    error = refusal_of(gap, tmp_path)
    page = gap.page or "nowhere else"
    assert error is not None, f"{gap.what}: this works now. Remove it from tests/known_gaps.py, and from {page}."
    said = error.what if isinstance(error, FaqError) else str(error)
    assert gap.said in said
    assert "\n" not in said
    assert not isinstance(error, FaqError) or error.remedy


def test_each_gap_is_named_once() -> None:
    assert len({gap.what for gap in GAPS}) == len(GAPS)
    assert all((ROOT / gap.page).is_file() for gap in GAPS if gap.page is not None)
