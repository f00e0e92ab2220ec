"""The command line as a user calls it, and runs that several tests look at."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tests.e2e.photos import colour_folder, write_nets

Call = Callable[..., Result]
Program = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def call() -> Call:
    """`faq-deploy` in this process (imports are paid once): `call("export", run)` gives exit code and output."""

    def run(*arguments: object) -> Result:
        import cli

        return CliRunner().invoke(cli.main, [str(a) for a in arguments], catch_exceptions=False)

    return run


@pytest.fixture(scope="session")
def program() -> Program:
    """The installed `faq-deploy` in a process of its own."""

    def run(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
        found = shutil.which("faq-deploy", path=str(Path(sys.executable).parent))
        assert found is not None, "faq-deploy is not installed in this environment"
        command = [found, *[str(a) for a in arguments]]
        environment = {**os.environ, "COLUMNS": "140"}
        return subprocess.run(  # type: ignore[call-overload, no-any-return]
            command, capture_output=True, text=True, timeout=300, env=environment, check=False, **options
        )

    return run


@pytest.fixture(scope="session")
def float_weights(call: Call, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A float digits net, trained for a few epochs."""
    folder = tmp_path_factory.mktemp("float") / "run"
    result = call(
        *("train", "builtin:digits-resnet", "--data", "digits", "--recipe", "digits-float", "-o", folder),
        *("--epochs", 6),
    )
    assert result.exit_code == 0, result.output
    return folder / "float.pth"


@pytest.fixture(scope="module")
def nets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models of the user's own, as `FOLDER:NAME`."""
    return write_nets(tmp_path_factory.mktemp("nets"))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of photos, one colour a class."""
    return colour_folder(tmp_path_factory.mktemp("photos") / "photos")


@pytest.fixture(scope="session")
def make_run(call: Call, float_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A fresh quantized digits run: `make_run("--bits", 4)`; one epoch of fine-tuning unless told otherwise."""

    def make(*options: object) -> Path:
        folder = tmp_path_factory.mktemp("run") / "digits"
        result = call(
            *("quantize", "builtin:digits-resnet", "--weights", float_weights, "--data", "digits"),
            *("--recipe", "digits-8bit", "--epochs", 1, "-o", folder, *options),
        )
        assert result.exit_code == 0, result.output
        return folder

    return make


@pytest.fixture(scope="session")
def exported(call: Call, make_run: Callable[..., Path]) -> Path:
    """An exported 8-bit run with its onnxruntime engine. Tests that change files work on `copy_of(exported)`."""
    run = make_run()
    for verb in (("export", run), ("build", run, "--runtime", "onnxruntime")):
        result = call(*verb)
        assert result.exit_code == 0, result.output
    return run


@pytest.fixture
def run_copy(exported: Path, tmp_path: Path) -> Path:
    """A copy of the exported run that a test may damage."""
    return Path(shutil.copytree(exported, tmp_path / "copy"))
