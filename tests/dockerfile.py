"""The few instructions that our Dockerfiles use, carried out in a folder that stands for the container's root."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import venv
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["ROOT", "Image", "Instruction", "built", "instructions"]

ROOT = Path(__file__).parents[1]
_LEFT_OUT = ("PYTHON", "VIRTUAL_ENV", "CONDA", "COVERAGE")  # of this process; a container would not have them


@dataclass(frozen=True)
class Instruction:
    """One instruction: its name in capitals and the rest of its line, continuations joined."""

    name: str
    text: str


@dataclass
class Image:
    """What the instructions made so far. Paths of the container are mapped into `root`."""

    root: Path
    environment: dict[str, str] = field(default_factory=dict)
    workdir: str = "/"
    user: str = "root"
    entrypoint: list[str] = field(default_factory=list)
    default: list[str] = field(default_factory=list)

    def path(self, inside: str) -> Path:
        """Where a path of the container lies on this machine."""
        return self.root / (Path(self.workdir) / inside).relative_to("/")

    def shell(self, command: str) -> subprocess.CompletedProcess[str]:
        """Run a shell command as RUN does."""
        return self._run(["/bin/sh", "-c", command])

    def run(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        """Run the entrypoint as `docker run` does."""
        program, *given = [*self.entrypoint, *([str(a) for a in arguments] or self.default)]
        found = shutil.which(program, path=self._environment()["PATH"])
        assert found is not None, f"{program} is not in the image"
        return self._run([found, *given])

    def _run(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            cwd=self.path("."),
            env=self._environment(),
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )

    def _environment(self) -> dict[str, str]:
        outer = {key: value for key, value in os.environ.items() if not key.startswith(_LEFT_OUT)}
        mapped = {k: str(self.path(v)) if v.startswith("/") else v for k, v in self.environment.items()}
        return outer | {"PATH": f"{self.path('/usr/local/bin')}:/usr/bin:/bin", "COLUMNS": "140"} | mapped


def instructions(file: Path) -> list[Instruction]:
    """The instructions of a Dockerfile; values of ARG are put in where they are named."""
    text = "\n".join(line for line in file.read_text().splitlines() if not line.lstrip().startswith("#"))
    lines = [line.strip() for line in text.replace("\\\n", " ").splitlines() if line.strip()]
    given = dict(line.removeprefix("ARG ").split("=", 1) for line in lines if line.startswith("ARG "))
    filled = [re.sub(r"\$\{(\w+)\}", lambda match: given[match[1]], line) for line in lines]
    return [Instruction(*line.split(maxsplit=1)) for line in filled]


def built(file: Path, root: Path) -> Image:
    """Carry out a Dockerfile on a Python image: this Python, in a fresh environment, stands for the image's own.

    USER is noted, not changed to.
    """
    image = Image(root)
    for instruction in instructions(file):
        _STEPS[instruction.name](image, instruction.text)
    return image


def _from(image: Image, text: str) -> None:
    assert text.startswith("python:"), text
    venv.create(image.path("/usr/local"), with_pip=True, symlinks=True)


def _workdir(image: Image, text: str) -> None:
    image.workdir = str(Path(image.workdir) / text)
    image.path(".").mkdir(parents=True, exist_ok=True)


def _copy(image: Image, text: str) -> None:
    *sources, target = text.split()
    for source in sources:
        found = ROOT / source
        if found.is_dir():  # Docker copies what is in a folder, not the folder
            shutil.copytree(found, image.path(target), dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(found, image.path(target))


def _run(image: Image, text: str) -> None:
    done = image.shell(text)
    assert done.returncode == 0, f"RUN {text}\n{done.stdout}{done.stderr}"


def _env(image: Image, text: str) -> None:
    key, value = text.split("=", 1)
    image.environment[key] = value


def _user(image: Image, text: str) -> None:
    image.user = text


def _entrypoint(image: Image, text: str) -> None:
    image.entrypoint = json.loads(text)


def _cmd(image: Image, text: str) -> None:
    image.default = json.loads(text)


def _arg(_: Image, text: str) -> None:
    assert "=" in text, f"ARG {text} has no default"


_STEPS = {
    "ARG": _arg,
    "CMD": _cmd,
    "COPY": _copy,
    "ENTRYPOINT": _entrypoint,
    "ENV": _env,
    "FROM": _from,
    "RUN": _run,
    "USER": _user,
    "WORKDIR": _workdir,
}
