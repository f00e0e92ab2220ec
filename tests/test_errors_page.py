"""The error catalogue is whole: every error has an id, every id its cause and remedy, and what is shown is printed."""

from __future__ import annotations

import ast
import pickle
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from docs_site import errors_page
from docs_site.errors_page import TEXTS, raised
from engines.error_ids import ERROR_IDS, error_id
from engines.errors import CannotRunHere, FaqError, InputError, NewerFormat, NotInstalled, WriteError
from engines.preprocess import BadImage
from engines.profile import parse_profile
from tests.workshop import furnish, typed

pytestmark = pytest.mark.xdist_group("errors")

ROOT = Path(__file__).parents[1]
RAISED = raised()
BY_COMMAND_LINE = {"usage", "file-access"}  # faq_deploy/cli_errors.py prints these


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("workshop")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        furnish(folder)
        yield folder


def test_every_error_of_the_source_has_an_id() -> None:
    assert len(RAISED) > 400
    without = {f"{one.place} ({one.kind})" for one in RAISED if one.id == "other"}
    assert without == set(), "name the module in engines/error_ids.py"


def test_every_place_of_the_table_raises_something() -> None:
    modules = {one.place.rpartition(".")[0] for one in RAISED}
    known = modules | {one.place for one in RAISED} | {f"{m}.{k}" for k, m in errors_page._CLASSES.items()}
    assert [place for places in ERROR_IDS.values() for place in places if place not in known] == []
    raised_ids = {one.id for one in RAISED} | BY_COMMAND_LINE
    assert raised_ids == set(ERROR_IDS)


def test_every_class_of_errors_is_looked_for() -> None:
    classes = set()
    for path in [*(ROOT / "engines").rglob("*.py"), *(ROOT / "faq_deploy").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ClassDef) and {ast.unparse(base) for base in node.bases} & set(
                errors_page._CLASSES
            ):
                classes.add(node.name)
    assert classes - {"_Told"} == set(errors_page._CLASSES) - {"FaqError"}  # that one is told by another process


def test_no_place_has_two_ids() -> None:
    places = [place for of_id in ERROR_IDS.values() for place in of_id]
    assert len(places) == len(set(places))


def test_every_id_has_a_cause_and_a_remedy_in_the_order_of_the_table() -> None:
    assert list(TEXTS) == list(ERROR_IDS)
    assert [name for name, text in TEXTS.items() if not text["cause"].endswith(".") or not text["remedy"]] == []


@pytest.mark.parametrize("name", [name for name, text in TEXTS.items() if "shown" in text])
def test_what_the_page_shows_is_what_the_command_prints(name: str, workshop: Path) -> None:
    command, error, note = TEXTS[name]["shown"].strip().splitlines()
    result = typed(shlex.split(command)[2:])
    assert result.exit_code == 2
    said = result.stderr.replace(f"{workshop}/", "").strip().splitlines()
    assert said[-2:] == [error, note]
    assert error.endswith(f" [{name}]")
    assert not (workshop / "runs" / "new").exists()


def test_most_ids_of_bad_input_are_shown() -> None:
    assert sum("shown" in text for text in TEXTS.values()) >= 25


@pytest.mark.parametrize(
    ("error", "wanted"),
    [
        (WriteError("a.", "b."), "cannot-write"),
        (NewerFormat("a.", "b."), "newer-format"),
        (NotInstalled("a.", "b."), "not-installed"),
        (BadImage("a", "b."), "bad-image"),
        (FaqError("a.", "b."), "bug"),
        (InputError("a.", "b."), "other"),
        (CannotRunHere("a.", "b."), "other"),
    ],
)
def test_error_knows_its_id(error: FaqError, wanted: str) -> None:
    assert error.id == wanted
    assert pickle.loads(pickle.dumps(error)).id == wanted


def test_id_of_an_error_survives_its_way_to_another_process() -> None:
    with pytest.raises(InputError) as caught:
        parse_profile("3:2:1")
    assert caught.value.id == "options"
    assert pickle.loads(pickle.dumps(caught.value)).id == "options"


def test_a_function_goes_before_its_module() -> None:
    assert error_id("engines.errors.InputError", "engines.snap", "snap_file") == "output"
    assert error_id("engines.errors.InputError", "engines.snap", "convert") == "onnx-model"
    assert error_id("engines.errors.WriteError", "engines.snap", "snap_file") == "cannot-write"


def test_page_has_every_sentence() -> None:
    page = errors_page.page()
    assert re.findall(r"^## (\S+)$", page, re.MULTILINE) == list(ERROR_IDS)
    plain = page.replace("\\", "")
    assert [one.what for one in RAISED if one.what.strip("{.}") and " ".join(one.what.split()) not in plain] == []
