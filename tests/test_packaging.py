"""What is inside the wheel and the sdist, byte for byte the same from any tree; what they ask for, what CI pins."""

from __future__ import annotations

import os
import re
import shutil
import tarfile
import zipfile
from collections.abc import Iterator
from configparser import ConfigParser
from email.parser import Parser
from pathlib import Path

import pytest
import tomllib
import yaml
from packaging.requirements import Requirement

from ci.dist import build

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
INSTALLED = ("calibration", "engines", "faq_deploy")
DATA = (
    "faq_deploy/passes.c",
    "faq_deploy/recipes/*.toml",
    "faq_deploy/templates/*.j2",
    *(f"{package}/py.typed" for package in INSTALLED),
)
EPOCH = 1_700_000_000
LEFT_OUT = (".*", "__pycache__", "*.egg-info", "build", "dist", "runs", "site")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The sdist and the wheel, built from a copy of the tree without a network."""
    folder = tmp_path_factory.mktemp("built")
    sdist, wheel = build(tree_in(folder), folder / "dist", EPOCH)
    return sdist, wheel


@pytest.fixture(scope="module")
def wheel(built: tuple[Path, Path]) -> Iterator[zipfile.ZipFile]:
    with zipfile.ZipFile(built[1]) as opened:
        yield opened


def tree_in(folder: Path, *without: str) -> Path:
    """A copy of the repository's tree."""
    left_out = shutil.ignore_patterns(*LEFT_OUT, *without)
    return Path(shutil.copytree(ROOT, folder / "tree", ignore=left_out))


def sources() -> set[str]:
    """What a wheel is made of, relative to the root."""
    code = [path for package in INSTALLED for path in (ROOT / package).rglob("*.py")]
    data = [path for pattern in DATA for path in ROOT.glob(pattern)]
    return {"cli.py", *(path.relative_to(ROOT).as_posix() for path in (*code, *data))}


def read(wheel: zipfile.ZipFile, name: str) -> str:
    """A file of the wheel's dist-info folder."""
    return wheel.read(f"faq_deploy-{PROJECT['version']}.dist-info/{name}").decode()


def pins() -> dict[str, str]:
    """constraints.txt as name -> version."""
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    assert [line for line in lines if not re.fullmatch(r"[a-z][a-z0-9-]*==[0-9][0-9.]*", line)] == []
    return dict(line.split("==") for line in lines)


def test_wheel_holds_the_packages_and_their_data_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    about = {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE", "top_level.txt"}
    folder = f"faq_deploy-{PROJECT['version']}.dist-info"
    assert set(wheel.namelist()) == sources() | {f"{folder}/{name}" for name in about}


def test_sdist_holds_what_the_wheel_is_made_of_and_what_says_what_it_is(built: tuple[Path, Path]) -> None:
    top = f"faq_deploy-{PROJECT['version']}"
    with tarfile.open(built[0]) as sdist:
        files = {member.name for member in sdist if not member.isdir()}
        assert {(m.mtime, m.uid, m.gid, m.uname, m.mode) for m in sdist if m.isfile()} == {(EPOCH, 0, 0, "", 0o644)}
    about = {"CHANGELOG.md", "CITATION.cff", "LICENSE", "MANIFEST.in", "README.md", "SECURITY.md", "constraints.txt"}
    made = {"PKG-INFO", "pyproject.toml", "setup.cfg"}
    lists = {"PKG-INFO", "SOURCES.txt", "dependency_links.txt", "entry_points.txt", "requires.txt", "top_level.txt"}
    egg_info = {f"faq_deploy.egg-info/{name}" for name in lists}
    assert files == {f"{top}/{name}" for name in sources() | about | made | egg_info}


def test_another_tree_gives_the_same_bytes(built: tuple[Path, Path], tmp_path: Path) -> None:
    tree = tree_in(tmp_path, "benchmarks", "docs", "experiments", "tests")
    for path in tree.rglob("*.py"):
        path.chmod(0o600)
        os.utime(path, (0, 0))
    again = build(tree, tmp_path / "dist", EPOCH)
    assert [path.name for path in again] == [path.name for path in built]
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in built]


def test_every_package_says_that_it_is_typed(wheel: zipfile.ZipFile) -> None:
    assert {f"{package}/py.typed" for package in INSTALLED} <= set(wheel.namelist())


def test_citation_names_this_version_and_the_paper() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation.keys() >= {"cff-version", "message", "title", "authors"}
    assert (citation["version"], citation["license"]) == (PROJECT["version"], PROJECT["license"])
    assert citation["preferred-citation"]["url"] == "https://arxiv.org/abs/1809.04191"


def test_changelog_begins_with_this_version() -> None:
    first = next(line for line in (ROOT / "CHANGELOG.md").read_text().splitlines() if line.startswith("## "))
    assert first.split()[1] == PROJECT["version"]


@pytest.mark.parametrize("pattern", DATA)
def test_wheel_has_each_kind_of_data_file(wheel: zipfile.ZipFile, pattern: str) -> None:
    assert [name for name in wheel.namelist() if Path(name).match(pattern)] != []


def test_wheel_carries_the_licence(wheel: zipfile.ZipFile) -> None:
    assert read(wheel, "licenses/LICENSE") == (ROOT / "LICENSE").read_text()
    assert Parser().parsestr(read(wheel, "METADATA"))["License-Expression"] == "Apache-2.0"


def test_wheel_installs_the_command(wheel: zipfile.ZipFile) -> None:
    entries = ConfigParser()
    entries.read_string(read(wheel, "entry_points.txt"))
    assert dict(entries["console_scripts"]) == {"faq-deploy": "cli:main"}


def test_base_install_never_asks_for_torch(wheel: zipfile.ZipFile) -> None:
    asked = Parser().parsestr(read(wheel, "METADATA")).get_all("Requires-Dist")
    base = {r.name for r in map(Requirement, asked or []) if r.marker is None or r.marker.evaluate({"extra": ""})}
    small = {"click", "numpy", "onnx", "onnxruntime", "Pillow", "pydantic", "rich", "rich-click", "tomli-w"} | {
        "typing-extensions"
    }
    assert base == small


def test_wheel_names_the_supported_pythons(wheel: zipfile.ZipFile) -> None:
    assert Parser().parsestr(read(wheel, "METADATA"))["Requires-Python"] == "<3.14,>=3.10"


def test_constraints_pin_every_dependency_inside_its_range() -> None:
    extras = PROJECT["optional-dependencies"]
    needs_a_gpu = {"tensorrt"}  # not installed by CI or the demo
    wanted = [*PROJECT["dependencies"], *(r for name, rs in extras.items() if name not in needs_a_gpu for r in rs)]
    pinned = pins()
    for requirement in map(Requirement, wanted):
        assert requirement.specifier.contains(pinned[requirement.name.lower()]), requirement.name
