"""The command to type next on a machine, from what `doctor` found and from the newest run in the working folder."""

from __future__ import annotations

import importlib.util
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from engines.doctor import Check
from engines.engine_commands import build_words, eval_words
from engines.errors import InputError
from engines.extras import pip_install
from engines.host import Host
from engines.run_folder import Manifest, RunFolder

__all__ = ["NextCommand", "next_command"]


@dataclass(frozen=True)
class NextCommand:
    """A command line, and why it is the next one."""

    command: str
    why: str


def next_command(checks: Sequence[Check], host: Host, folder: Path) -> NextCommand:
    """What to type next.

    Args:
        checks: of `diagnose`.
        host: the machine that they are of.
        folder: where runs and bundles are looked for, three levels deep.

    Returns:
        A step of the newest run; else what is missing first; else the demo.
    """
    fine = {check.name for check in checks if check.status == "ok"}
    has_torch = {"torch", "torchvision"} <= fine
    run = _newest_run(folder)
    step = None if run is None else _step(*run, host, has_torch=has_torch)
    if step is not None:
        return step
    if not has_torch:
        return _without_torch(folder)
    if "GPU" in fine and not fine & {"tensorrt", "tensorrt-rtx"}:
        return NextCommand(pip_install("tensorrt"), "a GPU is here, and nothing that builds its engines")
    if importlib.util.find_spec("sklearn") is None:
        return NextCommand(pip_install("demo"), "the data of `faq-deploy demo` come with scikit-learn")
    own = "with a model and images of your own: `faq-deploy init MODEL --data DIR`"
    return NextCommand("faq-deploy demo", f"the whole job on embedded data, in minutes; {own}")


def _newest_run(folder: Path) -> tuple[Path, Manifest] | None:
    """The run that was written last, by its name from `folder`, and what it has behind it."""
    manifests = [file for depth in ("*", "*/*", "*/*/*") for file in folder.glob(f"{depth}/manifest.json")]
    for file in sorted(manifests, key=lambda path: path.stat().st_mtime, reverse=True):
        try:
            manifest = RunFolder(file.parent).manifest()
        except InputError:  # another program's, or damaged
            continue
        if manifest.steps:
            return file.parent.relative_to(folder), manifest
    return None


def _step(run: Path, manifest: Manifest, host: Host, *, has_torch: bool) -> NextCommand | None:
    """What comes next in a run; None where this machine can't do it."""
    name = shlex.quote(str(run))
    steps = {step.partition("/")[0] for step in manifest.steps}
    if {"export", "build"} & steps == {"export"}:
        words = build_words(str(run), manifest.steps["export"].facts.get("target"), host)
        return NextCommand(shlex.join(words), f"{run} is exported and has no engine yet")
    if not has_torch:
        return None
    if "eval" in steps:
        return NextCommand(
            f"faq-deploy bundle {name} -o {shlex.quote(f'{run}.tgz')}", f"{run} is judged: this takes it elsewhere"
        )
    if "build" in steps:
        words = eval_words(str(run), manifest.steps, host)
        return NextCommand(shlex.join(words), f"{run} has an engine that was not judged yet")
    if "quantize" in steps:
        return NextCommand(f"faq-deploy export {name}", f"{run} is quantized and not exported yet")
    if "calibrate" in steps:
        return NextCommand(f"faq-deploy quantize --resume -o {name}", f"the training of {run} is not finished")
    if "train" in steps:
        weights = shlex.quote(str(run / "float.pth"))
        return NextCommand(f"faq-deploy init MODEL --weights {weights} --data DIR", f"{run} holds a float net")
    return None


def _without_torch(folder: Path) -> NextCommand:
    bundle = next(iter(sorted(folder.glob("*.tgz"))), None)
    if bundle is not None:
        return NextCommand(f"faq-deploy verify {shlex.quote(bundle.name)}", "a bundle is here, which needs no torch")
    return NextCommand(
        pip_install("torch"),
        "quantize and export need torch; an edge box doesn't: `faq-deploy verify BUNDLE` runs without",
    )
