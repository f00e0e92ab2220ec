"""What is inside the wheel, what it asks for, and what CI pins."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from configparser import ConfigParser
from email.parser import Parser
from pathlib import Path

import pytest
import tomllib
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
INSTALLED = ("calibration", "engines", "faq_deploy")
DATA = ("faq_deploy/recipes/*.toml", "faq_deploy/templates/*.j2", *(f"{package}/py.typed" for package in INSTALLED))
LEFT_OUT = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist", "runs")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[zipfile.ZipFile]:
    """The wheel, built from a copy of the tree without a network."""
    folder = tmp_path_factory.mktemp("wheel")
    tree = shutil.copytree(ROOT, folder / "tree", ignore=LEFT_OUT)
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-q"]
    built = subprocess.run([*pip, "-w", str(folder), str(tree)], capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    (file,) = folder.glob("*.whl")
    with zipfile.ZipFile(file) as opened:
        yield opened


def read(wheel: zipfile.ZipFile, name: str) -> str:
    """A file of the wheel's dist-info folder."""
    return wheel.read(f"faq_deploy-{PROJECT['version']}.dist-info/{name}").decode()


def pins() -> dict[str, str]:
    """constraints.txt as name -> version."""
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    assert [line for line in lines if not re.fullmatch(r"[a-z][a-z0-9-]*==[0-9][0-9.]*", line)] == []
    return dict(line.split("==") for line in lines)


def test_wheel_holds_the_packages_and_their_data_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    code = [path for package in INSTALLED for path in (ROOT / package).rglob("*.py")]
    data = [path for pattern in DATA for path in ROOT.glob(pattern)]
    expected = {"cli.py", *(path.relative_to(ROOT).as_posix() for path in (*code, *data))}
    inside = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert inside == expected


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
