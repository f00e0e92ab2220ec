"""JetPack 6 has Python 3.10: the base install there, with its older onnxruntime, gives the same integers."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from engines.pack_wheel import pack_wheel

pytestmark = pytest.mark.xdist_group("digits")


def python310() -> str | None:
    """A Python 3.10, on the path or among pyenv's."""
    homes = sorted(Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser().glob("versions/3.10.*/bin/python"))
    places = [shutil.which("python3.10"), *map(str, reversed(homes))]
    for place in places:
        if (
            place
            and subprocess.run([place, "-c", "import venv, ensurepip"], capture_output=True, check=False).returncode
            == 0
        ):
            return place
    return None


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`faq-deploy` in an environment of Python 3.10 that has the base install."""
    python = python310()
    if python is None:
        pytest.skip("there is no Python 3.10 here")
    folder = tmp_path_factory.mktemp("python310")
    wheel = pack_wheel()
    (folder / wheel.name).write_bytes(wheel.data)
    subprocess.run([python, "-m", "venv", str(folder / "env")], check=True)
    pip = [str(folder / "env/bin/python"), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    done = subprocess.run([*pip, str(folder / wheel.name)], capture_output=True, text=True, check=False)
    if done.returncode != 0 and "No matching distribution" in done.stderr:
        pytest.skip(f"pip reaches no index here: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    return folder / "env/bin/faq-deploy"


def test_bundle_verifies_under_python_310(
    program: Path, exported: Path, call: Callable[..., Result], tmp_path: Path
) -> None:
    assert call("bundle", exported, "-o", tmp_path / "digits.tgz").exit_code == 0
    done = subprocess.run([program, "verify", "digits.tgz"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stdout + done.stderr
    version = subprocess.run(
        [
            program.with_name("python"),
            "-c",
            "import sys, onnxruntime; print(sys.version_info[:2], onnxruntime.__version__)",
        ],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert version.startswith("(3, 10) ")


def test_every_verb_shows_its_help(program: Path) -> None:
    for verb in (
        "quantize",
        "train",
        "inspect",
        "export",
        "build",
        "eval",
        "bundle",
        "verify",
        "lint",
        "snap",
        "doctor",
        "recipes",
    ):
        done = subprocess.run([program, verb, "--help"], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, ""), verb
