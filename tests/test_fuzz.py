"""Damaged inputs: 5,000 of them, and no reader answers by anything but a sentence. `tests/fuzz.py` has the rest."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from engines.errors import InputError
from tests import fuzz
from tests.fuzz import TARGETS, Target, tried

COUNT = 5000
_WHOLE = sum(target.share for target in TARGETS)


@pytest.fixture(autouse=True)
def own_cache() -> Iterator[None]:
    with fuzz.own_cache():
        yield


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_damaged_inputs_are_read_or_refused_in_a_sentence(target: Target, tmp_path: Path) -> None:
    numbers = range(-(-COUNT * target.share // _WHOLE))
    failures = list(tried(target, numbers, tmp_path))
    assert failures == [], "\n".join(map(str, failures))


def reader(behave: object) -> Target:
    """A target whose reader does as told."""

    def read(path: Path) -> None:
        assert path.read_bytes()
        if isinstance(behave, BaseException):
            raise behave
        while behave == "hang":
            time.process_time()

    return Target("broken", 1, lambda folder: [b"good"], lambda data, chance: data, read, "file")


@pytest.mark.parametrize(
    ("behave", "said"),
    [
        (KeyError("x"), "KeyError: 'x'"),
        (MemoryError(), "broken: out of memory"),
        (InputError("two\nlines", "x"), "not one sentence"),
        (InputError("", "x"), "not one sentence"),
        ("hang", "broken: no end after 1 seconds"),
    ],
)
def test_a_bad_reader_is_found_and_the_command_that_shows_it_is_named(
    behave: object, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fuzz, "_CPU_SECONDS", 1)
    (failure,) = tried(reader(behave), [41], tmp_path)
    assert said in failure.what
    assert str(failure).endswith("again: python -m tests.fuzz --only broken --first 41 --count 1")


def test_a_good_reader_is_not_blamed(tmp_path: Path) -> None:
    assert list(tried(reader(None), range(3), tmp_path)) == []
    assert list(tried(reader(InputError("It is damaged.", "copy it again.")), range(3), tmp_path)) == []


def test_the_same_number_is_the_same_input(tmp_path: Path) -> None:
    target = next(target for target in TARGETS if target.name == "shard")
    inputs = []
    for name, numbers in (("a", [7]), ("b", [3, 7])):
        (tmp_path / name).mkdir()
        assert list(tried(target, numbers, tmp_path / name)) == []
        inputs.append((tmp_path / name / target.file).read_bytes())
    assert inputs[0] == inputs[1]


def test_the_command_counts_and_fails_where_something_was_found(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fuzz, "_ROOM", 1 << 50)
    monkeypatch.setattr(fuzz, "TARGETS", (reader(None), reader(KeyError("x"))))
    assert fuzz.main(["--count", "6"]) == 1
    said = capsys.readouterr()
    assert "3 failures" in said.out
    assert said.err.count("again: ") == 3
