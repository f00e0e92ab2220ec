"""Each verb killed by SIGKILL at a change of a file: the run is complete or can be resumed, never wrong.

Three dozen deaths by default; with --slow up to 40 of each verb, over 300 in all, and 30 of the real program.
"""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from tests.e2e.photos import SIZE, colour_folder, write_nets
from tests.kills import KillServer, copied, files_in, killed, same_but_times, vouched

_FEW: Final = 3  # deaths of each verb without --slow, one of them at its last change
_MANY: Final = 40  # with --slow, of verbs that make more changes
# what the clock says is in them, or what the builder of TensorRT-RTX made of it, which it may do in two ways
_CLOCKED: Final = ("report.html", "report.json", "manifest.json", "metrics.jsonl", "checkpoint.pt", "model.engine")

Command = tuple[object, ...]


@dataclass(frozen=True)
class Workshop:
    """Runs in several states, in one folder, made without being killed.

    Attributes:
        server: runs commands.
        quantize: the command that makes a new run.
        calibrated: a run without fine-tuning, from other weights.
        half: a run killed in the middle of its training.
        quantized: whole.
        exported: the same, exported.
        built: the same, with an engine.
        bundle: of the same.
    """

    server: KillServer
    quantize: Command
    calibrated: Path
    half: Path
    quantized: Path
    exported: Path
    built: Path
    bundle: Path


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workshop]:
    """All states, each in a folder whose last part is `run`, since a bundle holds that name."""
    root = tmp_path_factory.mktemp("kills")
    server = KillServer(root)
    with contextlib.closing(server):
        photos, nets = colour_folder(root / "photos"), write_nets(root)
        plain = ("--resize", 0, "--crop", SIZE, "--mean", 0.5, "--std", 0.5, "--device", "cpu", "--workers", 0)
        quantize = ("quantize", f"{nets}:net", "--data", photos, *plain, "--batch-size", 4)
        names = ("calibrated", "half", "quantized", "exported", "built")
        runs = {name: root / name / "run" for name in names}

        def done(*command: object) -> None:
            outcome = server.run(command)
            assert outcome.code == 0, outcome.said

        done(*quantize, "--epochs", 0, "--seed", 7, "-o", runs["calibrated"])
        done(*quantize, "--epochs", 2, "-o", runs["quantized"])
        changes = server.run((*quantize, "--epochs", 2, "-o", runs["half"])).changes
        shutil.rmtree(runs["half"])
        assert killed(server.run((*quantize, "--epochs", 2, "-o", runs["half"]), kill_at=2 * changes // 3))
        assert (runs["half"] / "checkpoint.pt").is_file()
        assert not (runs["half"] / "quantized.pt").is_file()
        shutil.copytree(runs["quantized"], runs["exported"])
        done("export", runs["exported"])
        shutil.copytree(runs["exported"], runs["built"])
        done("build", runs["built"], "--runtime", "onnxruntime")
        done("bundle", runs["built"], "-o", root / "run.tgz")
        yield Workshop(server, (*quantize, "--epochs", 2), bundle=root / "run.tgz", **runs)


@dataclass(frozen=True)
class Scenario:
    """A command, the state it starts from, and what it leaves in the folder `work`."""

    start: Callable[[Workshop], Path | None]
    command: Callable[[Workshop, Path], Command]
    needs: str | None = None


_SCENARIOS: Final = {
    "quantize": Scenario(lambda w: None, lambda w, work: (*w.quantize, "-o", work / "run")),
    "quantize --force": Scenario(lambda w: w.calibrated, lambda w, work: (*w.quantize, "--force", "-o", work / "run")),
    "quantize --resume": Scenario(lambda w: w.half, lambda w, work: ("quantize", "--resume", "-o", work / "run")),
    "export": Scenario(lambda w: w.quantized, lambda w, work: ("export", work / "run")),
    "build": Scenario(lambda w: w.exported, lambda w, work: ("build", work / "run", "--runtime", "onnxruntime")),
    "build rtx": Scenario(
        lambda w: w.exported,
        lambda w, work: ("build", work / "run", "--runtime", "tensorrt-rtx", "--sm", 86),
        needs="tensorrt_rtx",
    ),
    "eval": Scenario(lambda w: w.built, lambda w, work: ("eval", work / "run")),
    "bundle": Scenario(lambda w: w.built, lambda w, work: ("bundle", work / "run", "-o", work / "run.tgz")),
    "bundle --triton": Scenario(
        lambda w: w.built, lambda w, work: ("bundle", work / "run", "--triton", "-o", work / "models")
    ),
    "verify": Scenario(
        lambda w: None, lambda w, work: ("verify", w.bundle, "--runtime", "onnxruntime", "-o", work / "engines")
    ),
    "lint --fix": Scenario(
        lambda w: w.exported, lambda w, work: ("lint", work / "run" / "model.onnx", "--fix", "-o", work / "fixed.onnx")
    ),
    "snap": Scenario(
        lambda w: w.exported, lambda w, work: ("snap", work / "run" / "model.onnx", "-o", work / "snapped.onnx")
    ),
}


@contextlib.contextmanager
def started(workshop: Workshop, scenario: Scenario) -> Iterator[Path]:
    """The folder `work` in the state that the command starts from."""
    work = workshop.server.folder / "work"
    work.mkdir()
    start = scenario.start(workshop)
    try:
        with copied(start, work / "run") if start is not None else contextlib.nullcontext():
            yield work
    finally:
        shutil.rmtree(work)


def left_in(work: Path) -> dict[str, str]:
    """What lies in a folder; where the clock says what is in a file, only that it is there."""
    return {name: "" if name.rpartition("/")[2] in _CLOCKED else sha256 for name, sha256 in files_in(work).items()}


def chosen(name: str, changes: int, wanted: int) -> list[int]:
    """At which changes to die: the same ones each time, all where there are no more than wanted, and the last one."""
    if changes <= wanted:
        return list(range(1, changes + 1))
    return sorted({*random.Random(name).sample(range(1, changes), wanted - 1), changes})


@pytest.mark.parametrize("name", _SCENARIOS)
def test_killed_anywhere_it_is_complete_or_goes_on_to_the_same_bytes(
    name: str, workshop: Workshop, pytestconfig: pytest.Config, record_property: Callable[[str, object], None]
) -> None:
    scenario, server = _SCENARIOS[name], workshop.server
    if scenario.needs is not None:
        pytest.importorskip(scenario.needs)
    with started(workshop, scenario) as work:
        before = vouched(work / "run")
        whole = server.run(scenario.command(workshop, work))
        assert whole.code == 0, whole.said
        wanted, after = left_in(work), vouched(work / "run")
        manifest = _manifest(work)
    deaths = chosen(name, whole.changes, _MANY if pytestconfig.getoption("--slow") else _FEW)
    for kill_at in deaths:
        with started(workshop, scenario) as work:
            command = scenario.command(workshop, work)
            outcome = server.run(command, kill_at)
            assert killed(outcome), outcome.said
            place = f"{name}, killed at change {kill_at} of {whole.changes}"
            assert_of_one_run(vouched(work / "run"), before, after, place)
            took = server.finish(command)
            assert left_in(work) == wanted, (place, took)
            assert same_but_times(_manifest(work), manifest), (place, took)
            assert [p.name for p in server.scratch.iterdir() if p.name.startswith("faq-deploy-")] == [], place
    record_property("kills", len(deaths))


def _manifest(work: Path) -> object:
    file = work / "run" / "manifest.json"
    return json.loads(file.read_text()) if file.is_file() else None


def assert_of_one_run(found: dict[str, str], before: dict[str, str], after: dict[str, str], place: str) -> None:
    """What the manifest vouches for is of the run before, or of the run to be, and never of both."""
    files = {name: sha256 for name, sha256 in found.items() if name.rpartition("/")[2] not in _CLOCKED}
    new = {name for name, sha256 in files.items() if sha256 != before.get(name)}
    old = {name for name, sha256 in files.items() if sha256 != after.get(name)}
    of_training = {"quantized.pt"}  # an earlier epoch's is no other run's
    assert not (new - of_training and old - of_training), (place, new, old)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["quantize", "export", "build", "eval", "bundle", "verify"])
def test_the_real_program_killed_at_any_time_goes_on_to_the_same_bytes(name: str, workshop: Workshop) -> None:
    scenario, server = _SCENARIOS[name], workshop.server
    program = [shutil.which("faq-deploy", path=str(Path(sys.executable).parent)) or "faq-deploy"]
    with started(workshop, scenario) as work:
        before = vouched(work / "run")
        begun = time.monotonic()
        command = [*program, *map(str, scenario.command(workshop, work))]
        assert subprocess.run(command, capture_output=True, check=False).returncode == 0
        seconds, wanted, after = time.monotonic() - begun, left_in(work), vouched(work / "run")
    chance, deaths = random.Random(name), 0
    for _ in range(5):
        with started(workshop, scenario) as work:
            arguments = scenario.command(workshop, work)
            process = subprocess.Popen(
                [*program, *map(str, arguments)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(chance.uniform(0.3, 1.0) * seconds)
            process.kill()
            deaths += process.wait() == -signal.SIGKILL
            assert_of_one_run(vouched(work / "run"), before, after, name)
            server.finish(arguments)
            assert left_in(work) == wanted, name
    assert deaths >= 1
