"""The wheel that a bundle brings: what pip would have built, without the tools to build it."""

from __future__ import annotations

import base64
import csv
import hashlib
import importlib.metadata
import io
import subprocess
import sys
import venv
import zipfile
from configparser import ConfigParser
from email.parser import Parser
from pathlib import Path

import pytest
import tomllib

from engines import pack_wheel as module
from engines.errors import CannotRunHere
from engines.pack_wheel import Wheel, pack_wheel

ROOT = Path(__file__).parents[1]
VERSION = importlib.metadata.version("faq-deploy")
INSTALLED = ("calibration", "engines", "faq_deploy")
DATA = ("faq_deploy/recipes/*.toml", "faq_deploy/templates/*.j2", *(f"{package}/py.typed" for package in INSTALLED))
INFO = f"faq_deploy-{VERSION}.dist-info"


@pytest.fixture(scope="module")
def wheel() -> Wheel:
    return pack_wheel()


def files(wheel: Wheel) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(wheel.data)) as opened:
        assert opened.testzip() is None
        return {name: opened.read(name) for name in opened.namelist()}


def test_wheel_holds_what_the_built_one_holds(wheel: Wheel) -> None:
    code = [path for package in INSTALLED for path in (ROOT / package).rglob("*.py")]
    data = [path for pattern in DATA for path in ROOT.glob(pattern)]
    inside = {name: text for name, text in files(wheel).items() if ".dist-info/" not in name}
    assert inside == {
        "cli.py": (ROOT / "cli.py").read_bytes(),
        **{path.relative_to(ROOT).as_posix(): path.read_bytes() for path in (*code, *data)},
    }


def test_wheel_is_named_and_described_as_pip_wants_it(wheel: Wheel) -> None:
    found = files(wheel)
    assert wheel.name == f"faq_deploy-{VERSION}-py3-none-any.whl"
    described = {name.removeprefix(f"{INFO}/") for name in found if ".dist-info/" in name}
    assert described == {"METADATA", "WHEEL", "RECORD", "entry_points.txt", "top_level.txt", "licenses/LICENSE"}
    assert found[f"{INFO}/licenses/LICENSE"] == (ROOT / "LICENSE").read_bytes()
    entries = ConfigParser()
    entries.read_string(found[f"{INFO}/entry_points.txt"].decode())
    assert dict(entries["console_scripts"]) == {"faq-deploy": "cli:main"}
    tags = Parser().parsestr(found[f"{INFO}/WHEEL"].decode())
    assert (tags["Wheel-Version"], tags["Root-Is-Purelib"], tags["Tag"]) == ("1.0", "true", "py3-none-any")
    said = Parser().parsestr(found[f"{INFO}/METADATA"].decode())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert (said["Name"], said["Version"]) == (project["name"], project["version"])


def test_record_lists_every_file_with_its_sha256(wheel: Wheel) -> None:
    found = files(wheel)
    rows = {row[0]: row[1:] for row in csv.reader(found[f"{INFO}/RECORD"].decode().splitlines())}
    assert rows.keys() == found.keys()
    assert list(found)[-1] == f"{INFO}/RECORD"
    assert rows.pop(f"{INFO}/RECORD") == ["", ""]
    for name, (digest, size) in rows.items():
        wanted = base64.urlsafe_b64encode(hashlib.sha256(found[name]).digest()).decode().rstrip("=")
        assert (digest, int(size)) == (f"sha256={wanted}", len(found[name]))


def test_same_install_gives_the_same_bytes(wheel: Wheel) -> None:
    assert pack_wheel() == wheel


def test_wheel_installs_and_packs_itself_again(wheel: Wheel, tmp_path: Path) -> None:
    path = tmp_path / wheel.name
    path.write_bytes(wheel.data)
    venv.create(tmp_path / "env", with_pip=False, symlinks=True)
    python = tmp_path / "env" / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--no-deps", "--no-index"]
    # this Python may be too new or too old for the metadata of an older editable install
    done = subprocess.run([*pip, "--ignore-requires-python", str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    code = "import hashlib; from engines.pack_wheel import pack_wheel as p; print(hashlib.sha256(p().data).hexdigest())"
    again = subprocess.run([str(python), "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert again.returncode == 0, again.stderr
    assert again.stdout.strip() == hashlib.sha256(wheel.data).hexdigest()
    assert (tmp_path / "env" / "bin" / "faq-deploy").is_file()


def test_without_an_install_there_is_nothing_to_pack(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "distributions", lambda **_: iter(()))
    with pytest.raises(CannotRunHere, match="is not installed as a package"):
        pack_wheel()


def test_install_comes_before_what_setuptools_left_in_a_source_tree(
    wheel: Wheel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = tmp_path / "faq_deploy.egg-info"
    left.mkdir()
    (left / "PKG-INFO").write_text("Metadata-Version: 2.4\nName: faq-deploy\nVersion: 0.0.1\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert importlib.metadata.version("faq-deploy") == "0.0.1"
    assert pack_wheel() == wheel


def test_install_with_a_part_missing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MODULES", ("no_such_module_of_ours",))
    with pytest.raises(CannotRunHere, match="incomplete: no_such_module_of_ours is missing"):
        pack_wheel()
