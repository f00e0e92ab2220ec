"""The versions and partial installs that are supported, each in an environment of its own: `make matrix`.

`python -m tests.matrix --only base-lowest` runs one cell. Each installs the wheel and runs the way that its packages
allow: without torch a bundle is verified, built from and linted, with torch a small network goes the whole way.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["CELLS", "Cell", "lowest", "main"]

ROOT: Final = Path(__file__).parents[1]
_REQUIREMENT: Final = re.compile(r"^([A-Za-z0-9_.-]+)>=([0-9.]+)")

Way = Callable[["Environment", Path], None]


@dataclass(frozen=True)
class Cell:
    """One install.

    Args:
        name: on the command line.
        extras: of faq-deploy.
        pins: how versions are chosen: "lowest" that pyproject.toml allows, "pinned" in constraints.txt, or "newest".
        without: packages that are removed again.
        way: what is run.
    """

    name: str
    extras: tuple[str, ...]
    pins: str
    way: Way
    without: tuple[str, ...] = ()


@dataclass(frozen=True)
class Environment:
    """A virtual environment with faq-deploy in it."""

    folder: Path

    def run(self, *arguments: object, code: int = 0, said: str = "") -> None:
        """Run `faq-deploy`, and see that it ends with this exit code, says this, and shows no traceback."""
        command = [str(self.folder / "bin" / "faq-deploy"), *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=self.folder, check=False)
        output = done.stdout + done.stderr
        if done.returncode != code or "Traceback" in output or said not in output:
            raise RuntimeError(f"{' '.join(command)}: exit code {done.returncode}, not {code}:\n{output}")

    def python(self, *arguments: str) -> str:
        """Run its Python; what it printed."""
        command = [str(self.folder / "bin" / "python"), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)}:\n{done.stdout}{done.stderr}")
        return done.stdout


def lowest(extras: Sequence[str] = ()) -> dict[str, str]:
    """The lowest versions that pyproject.toml allows.

    Args:
        extras: whose packages are wanted, besides those of the base install.

    Returns:
        Version by package name; packages for other Pythons only are left out.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *(line for extra in extras for line in project["optional-dependencies"][extra])]
    found = [_REQUIREMENT.match(line) for line in wanted if "python_version" not in line]
    return {match[1]: match[2] for match in found if match is not None}


def _no_torch(environment: Environment, made: Path) -> None:
    environment.run("doctor")
    environment.run("lint", made / "run" / "model.onnx")
    environment.run(
        "build", made / "run" / "model.onnx", "--runtime", "onnxruntime", "-o", environment.folder / "engines"
    )
    environment.run("verify", made / "run.tgz", "--runtime", "onnxruntime", said="computes the same integers")
    environment.run("quantize", "builtin:digits-resnet", "--data", "digits", "-o", "q", code=3, said="needs torch")


def _whole(environment: Environment, made: Path) -> None:
    run = environment.folder / "run"
    environment.run(*_quantize(made), "-o", run)
    for verb in ("export", "build", "eval"):
        environment.run(verb, run)
    environment.run("bundle", run, "-o", environment.folder / "run.tgz")
    environment.run("verify", environment.folder / "run.tgz", said="computes the same integers")


def _without_reports(environment: Environment, made: Path) -> None:
    run = environment.folder / "run"
    environment.run(*_quantize(made), "-o", run)
    environment.run("export", run)
    environment.run("build", run)
    environment.run("eval", run, code=3, said="which is not installed")


CELLS: Final = (
    Cell("base-lowest", (), "lowest", _no_torch),
    Cell("base-pinned", (), "pinned", _no_torch),
    Cell("base-newest", (), "newest", _no_torch),
    Cell("torch-lowest", ("torch",), "lowest", _whole),
    Cell("torch-pinned", ("torch",), "pinned", _whole),
    Cell("torch-newest", ("torch",), "newest", _whole),
    Cell("torch-without-matplotlib", ("torch",), "pinned", _without_reports, without=("matplotlib",)),
    Cell("torch-without-jinja2", ("torch",), "pinned", _without_reports, without=("jinja2",)),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the cells, print a table, and return 1 if one failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.matrix", description=(__doc__ or "").splitlines()[0])
    names = [cell.name for cell in CELLS]
    parser.add_argument("--only", action="append", choices=names, help="one cell; repeatable")
    parser.add_argument("--python", default=sys.executable, help="that the environments are made with")
    chosen = parser.parse_args(arguments)
    failed = 0
    with tempfile.TemporaryDirectory(prefix="faq-matrix-") as name:
        made = _made(Path(name))
        for cell in CELLS:
            if chosen.only is None or cell.name in chosen.only:
                failed += not _runs(cell, chosen.python, made, Path(name) / cell.name)
    return int(failed > 0)


def _made(folder: Path) -> Path:
    """Photos, a network, and a run with its bundle, by this environment's faq-deploy."""
    sys.path.insert(0, str(ROOT))
    from engines.pack_wheel import pack_wheel
    from tests.e2e.photos import colour_folder, write_nets

    colour_folder(folder / "photos")
    write_nets(folder)
    wheel = pack_wheel()
    (folder / wheel.name).write_bytes(wheel.data)
    ours = Environment(Path(sys.prefix))
    ours.run(*_quantize(folder), "-o", folder / "run")
    ours.run("export", folder / "run")
    ours.run("bundle", folder / "run", "-o", folder / "run.tgz")
    return folder


def _quantize(made: Path) -> tuple[object, ...]:
    plain = ("--resize", 0, "--crop", 16, "--mean", 0.5, "--std", 0.5, "--epochs", 1, "--batch-size", 4)
    return ("quantize", f"{made / 'nets.py'}:nearest", "--data", made / "photos", *plain, "--device", "cpu")


def _runs(cell: Cell, python: str, made: Path, folder: Path) -> bool:
    started = time.monotonic()
    try:
        environment = _installed(cell, python, made, folder)
        cell.way(environment, made)
    except (RuntimeError, subprocess.CalledProcessError) as error:
        print(f"{cell.name:<26}FAILED\n{error}", flush=True)
        return False
    finally:
        seconds = time.monotonic() - started
        versions = _versions(folder)
        shutil.rmtree(folder, ignore_errors=True)
    print(f"{cell.name:<26}ok{seconds:>8.0f} s   {versions}", flush=True)
    return True


def _installed(cell: Cell, python: str, made: Path, folder: Path) -> Environment:
    subprocess.run([python, "-m", "venv", str(folder)], check=True)
    environment = Environment(folder)
    (wheel,) = made.glob("*.whl")
    extras = f"[{','.join(cell.extras)}]" if cell.extras else ""
    pip = ("-m", "pip", "install", "-q", "--disable-pip-version-check")
    pins = _pins(cell)
    (folder / "pins.txt").write_text("".join(f"{name}=={version}\n" for name, version in pins.items()))
    environment.python(*pip, "-c", str(folder / "pins.txt"), f"{wheel}{extras}")
    if cell.without:
        environment.python("-m", "pip", "uninstall", "-q", "-y", *cell.without)
    return environment


def _pins(cell: Cell) -> Mapping[str, str]:
    if cell.pins == "lowest":
        return lowest(cell.extras)
    if cell.pins == "newest":
        return {}
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pairs = (line.split("==") for line in lines if "==" in line and not line.startswith("#"))
    return {name: version for name, version in pairs}


def _versions(folder: Path) -> str:
    script = (
        "import importlib.metadata as m, sys\n"
        "names = ('numpy', 'onnx', 'onnxruntime', 'torch')\n"
        "found = {d.metadata['Name'].lower(): d.version for d in m.distributions()}\n"
        "print('Python', sys.version.split()[0], *(f'{n} {found[n]}' for n in names if n in found))"
    )
    python = folder / "bin" / "python"
    if not python.exists():
        return ""
    return subprocess.run([str(python), "-c", script], capture_output=True, text=True, check=False).stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
