"""A run on disk: what each verb left, what it was made from, and whether that still holds."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Concatenate, Final, ParamSpec, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from engines.errors import InputError, NewerFormat
from engines.files import sha256_of, write_atomic
from engines.folder_lock import locked
from engines.json_text import read_json

__all__ = ["FORMAT", "Manifest", "RunFolder", "Step", "writes"]

_P = ParamSpec("_P")
_R = TypeVar("_R")

_QUANTIZE: Final = ("calibrate", "quantize")  # the verb `quantize` takes two steps

FORMAT: Final = 1  # raised when an older tool could no longer read a run


class Step(BaseModel):
    """One verb's record: the files it read and wrote, as sha256 by path relative to the run."""

    model_config = ConfigDict(extra="forbid")

    inputs: dict[str, str] = {}
    outputs: dict[str, str] = {}
    versions: dict[str, str] = {}
    facts: dict[str, object] = {}


class Manifest(BaseModel):
    """`manifest.json`: format number, tool version and one `Step` a verb (`build` one an engine)."""

    model_config = ConfigDict(extra="forbid")

    format: int = FORMAT
    faq_deploy: str
    steps: dict[str, Step] = {}


class RunFolder:
    """A folder that each verb reads and adds to.

    Args:
        path: the folder; it need not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def manifest(self) -> Manifest:
        """Read the manifest.

        Raises:
            InputError: no run here, a damaged manifest, or one from a newer version.
        """
        file = self.path / "manifest.json"
        if not file.is_file():
            raise InputError(
                f"{self.path} holds no run (manifest.json is missing).",
                f"make one with `faq-deploy quantize MODEL --data DIR -o {self.path}`.",
            )
        try:
            raw = read_json(file.read_text("utf-8"))
            found = raw.get("format") if isinstance(raw, dict) else None
            if isinstance(found, int) and found > FORMAT:
                raise NewerFormat(
                    f"{self.path} was made by a newer faq-deploy (run format {found}, this one reads up to {FORMAT}).",
                    "upgrade faq-deploy, or make the run again with this version.",
                )
            return Manifest.model_validate(raw)
        except (OSError, ValueError) as error:  # ValidationError is a ValueError, too
            raise InputError(
                f"{file} is damaged: {_reason(error)}.", "make the run again with `faq-deploy quantize --force`."
            ) from error

    def record(
        self,
        step: str,
        *,
        version: str,
        inputs: Sequence[str] = (),
        outputs: Sequence[str] = (),
        versions: Mapping[str, str] | None = None,
        facts: Mapping[str, object] | None = None,
        after: Sequence[str] = (),
    ) -> None:
        """Write a verb's record, hashing its files, and drop the records of steps that came later.

        Args:
            step: the verb, or `build/NAME` for one engine.
            version: of faq-deploy.
            inputs: files read, relative to the run folder.
            outputs: files written, relative to the run folder.
            versions: package versions that matter for this step.
            facts: JSON values worth keeping (seconds, bytes, counts).
            after: prefixes of steps whose records this one makes stale.
        """
        file = self.path / "manifest.json"
        manifest = self.manifest() if file.is_file() else Manifest(faq_deploy=version)
        steps = {k: v for k, v in manifest.steps.items() if not any(k == a or k.startswith(f"{a}/") for a in after)}
        steps[step] = Step(
            inputs={name: sha256_of(self.path / name) for name in inputs},
            outputs={name: sha256_of(self.path / name) for name in outputs},
            versions=dict(versions or {}),
            facts=dict(facts or {}),
        )
        write_atomic(
            file, manifest.model_copy(update={"steps": steps, "faq_deploy": version}).model_dump_json(indent=2)
        )

    def require(self, step: str, name: str) -> Path:
        """The file `name` that `step` left, unchanged since.

        Raises:
            InputError: the step was not run, or its file is missing or was changed afterwards.
        """
        steps = self.manifest().steps
        record = steps.get(step)
        file = self.path / name
        if record is None or name not in record.outputs:
            raise InputError(f"{self.path} has no {name} yet.", self._first(step, steps))
        if not file.is_file():
            raise InputError(f"{file} is missing although the manifest lists it.", self._again(step))
        if sha256_of(file) != record.outputs[name]:
            raise InputError(
                f"{file} was changed after `faq-deploy {_verb(step)}` wrote it (its sha256 is another).",
                f"put it back, or {self._again(step)}",
            )
        return file

    def require_fresh(self, step: str, name: str, made_from: Mapping[str, str]) -> Path:
        """Like `require`, and its inputs must still be what other steps left.

        Args:
            step: the step that wrote `name`.
            name: the file wanted.
            made_from: input file -> the step that writes it.

        Raises:
            InputError: as `require`, or `name` was made from other inputs than the run holds now.
        """
        file = self.require(step, name)
        record = self.manifest().steps[step]
        for source, source_step in made_from.items():
            now = sha256_of(self.require(source_step, source))
            if record.inputs.get(source) != now:
                raise InputError(f"{file} is stale: it was made from another {source}.", self._again(step))
        return file

    def _first(self, step: str, steps: Mapping[str, Step]) -> str:
        """What to do where a step is still to come."""
        if step not in _QUANTIZE:
            return f"run `faq-deploy {_verb(step)} {self.path}` first."
        if "calibrate" in steps:
            return f"finish it with `faq-deploy quantize --resume -o {self.path}`."
        if "begin" in steps and steps["begin"].facts.get("verb") == "train" and "train" not in steps:
            return f"it holds a float training: finish it with `faq-deploy train --resume -o {self.path}`."
        if "train" in steps:
            return f"it holds a float network: pass {self.path / 'float.pth'} to `faq-deploy quantize --weights`."
        return f"make the run again with `faq-deploy quantize MODEL --data DIR -o {self.path} --force`."

    def _again(self, step: str) -> str:
        """How to do a step over."""
        if step == "quantize":
            return f"write it again with `faq-deploy quantize --resume -o {self.path}`."
        if step in _QUANTIZE:
            return f"make the run again with `faq-deploy quantize MODEL --data DIR -o {self.path} --force`."
        return f"run `faq-deploy {_verb(step)} {self.path}` again."


def writes(verb: str) -> Callable[[Callable[Concatenate[RunFolder, _P], _R]], Callable[Concatenate[RunFolder, _P], _R]]:
    """Mark a function that writes into the run it is given: while it works, no other process of ours may.

    Args:
        verb: what others are told, such as "export".

    Returns:
        A decorator.

    Raises:
        FolderInUse: from the function, where another process writes there.
    """

    def around(work: Callable[Concatenate[RunFolder, _P], _R]) -> Callable[Concatenate[RunFolder, _P], _R]:
        @functools.wraps(work)
        def alone(run: RunFolder, /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
            with locked(run.path, verb):
                return work(run, *args, **kwargs)

        return alone

    return around


def _verb(step: str) -> str:
    return "quantize" if step in _QUANTIZE else step.partition("/")[0]


def _reason(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        return f"{place + ': ' if place else ''}{first['msg'][0].lower()}{first['msg'][1:]}"
    return str(error).splitlines()[0].rstrip(".")
