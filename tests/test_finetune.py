"""Trainings that are continued, and those that must not be."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from io import StringIO
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import nn

from engines.errors import InputError
from engines.run_folder import RunFolder
from faq_deploy.checkpoint import CHECKPOINT, METRICS, load_state
from faq_deploy.finetune import Interrupted
from faq_deploy.progress import LineReporter
from tests.training_jobs import (
    STEPS,
    Batches,
    Job,
    Scores,
    assert_whole,
    same_weights,
    signal_at,
    tiny_net,
)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """Two epochs without interruption."""
    job = Job(tmp_path_factory.mktemp("reference"))
    job()
    return job


def test_kill_9_in_the_middle_of_an_epoch_loses_nothing(reference: Job, tmp_path: Path) -> None:
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads()), "PYTHONPATH": str(Path(__file__).parents[1])}
    process = subprocess.Popen([sys.executable, "-m", "tests.training_jobs", str(tmp_path)], env=os.environ | threads)
    deadline = time.monotonic() + 60
    metrics = tmp_path / METRICS
    while not metrics.exists() or metrics.read_text().count('"kind": "step"') < STEPS + 5:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    state = load_state(RunFolder(tmp_path))
    assert (state.epoch, 0 < state.step_in_epoch < STEPS) == (1, True)
    with metrics.open("a") as lost:
        lost.write('{"kind": "step", "step": 999}\n{"kind": "st')  # steps that no checkpoint knows of
    (tmp_path / f".{CHECKPOINT}.killed.tmp").write_bytes(b"half")
    job = Job(tmp_path)
    job(resume=True)
    assert_whole(job, reference)
    assert sorted(file.name for file in tmp_path.iterdir()) == [CHECKPOINT, METRICS]


def test_resuming_a_finished_training_touches_nothing(reference: Job) -> None:
    before = {file.name: (file.stat().st_mtime_ns, file.read_bytes()) for file in reference.folder.iterdir()}
    said = StringIO()
    val = Scores()
    job = Job(reference.folder, val=val, reporter=LineReporter(Console(file=said)))
    result = job(resume=True)
    assert result.nothing_to_do and "nothing to do" in said.getvalue()
    assert (result.epochs_done, result.steps, result.best_top1, val.calls) == (2, 2 * STEPS, 50.0, 0)
    assert same_weights(job.net, reference.net)
    after = {file.name: (file.stat().st_mtime_ns, file.read_bytes()) for file in reference.folder.iterdir()}
    assert after == before


def test_more_epochs_continue_as_if_planned_from_the_start(reference: Job, tmp_path: Path) -> None:
    Job(tmp_path, epochs=1)()
    job = Job(tmp_path)
    assert not job(resume=True).nothing_to_do
    assert_whole(job, reference)
    assert "epochs = 2" in load_state(RunFolder(tmp_path)).recipe_toml


def test_fewer_epochs_than_begun_are_refused(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        Job(tmp_path, epochs=3, train=signal_at(STEPS + 3))()
    for epochs in (0, 1):
        with pytest.raises(InputError, match=r"training\.epochs is") as caught:
            Job(tmp_path, epochs=epochs)(resume=True)
        assert "at least 2 epochs" in caught.value.remedy
    assert Job(tmp_path)(resume=True).epochs_done == 2


def test_another_recipe_is_refused_by_what_differs(reference: Job) -> None:
    with pytest.raises(InputError) as caught:
        Job(reference.folder, epochs=3, changes={"training.lr": 0.02, "bits": 4})(resume=True)
    assert "bits: 8 became 4; training.lr: 0.01 became 0.02" in caught.value.what


def test_other_data_and_another_network_are_refused(reference: Job) -> None:
    with pytest.raises(InputError, match="batches in an epoch: 30 became 31"):
        Job(reference.folder, epochs=3, train=Batches(steps_per_epoch=31))(resume=True)
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    with pytest.raises(InputError, match="another network"):
        Job(reference.folder, epochs=3, net=net)(resume=True)


def test_resuming_where_nothing_was_trained_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no training to resume"):
        Job(tmp_path)(resume=True)


@pytest.mark.parametrize(
    ("start", "scores", "epoch", "top1"),
    [
        (60.0, (50.0, 55.0), 0, 60.0),  # worse throughout: nothing was gained
        (50.0, (40.0, 50.0, 50.0), 2, 50.0),  # as good is enough for the first, not for later ones
        (50.0, (40.0, 60.0, 55.0), 2, 60.0),
        (None, (40.0, 30.0), 1, 40.0),
    ],
)
def test_net_before_training_is_the_best_until_an_epoch_is_as_good(
    tmp_path: Path, start: float | None, scores: tuple[float, ...], epoch: int, top1: float
) -> None:
    result = Job(tmp_path, epochs=len(scores), val=Scores(scores), start_top1=start)()
    assert (result.best_epoch, result.best_top1, result.last_top1) == (epoch, top1, scores[-1])
    if epoch == 0:
        assert all(torch.equal(result.best_state[key], value) for key, value in tiny_net().state_dict().items())


def test_net_before_training_is_still_the_best_after_an_interruption(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        Job(tmp_path, val=Scores((50.0,)), start_top1=60.0, train=signal_at(STEPS + 3))()
    result = Job(tmp_path, val=Scores((50.0,)), start_top1=60.0)(resume=True)
    assert (result.best_epoch, result.best_top1) == (0, 60.0)
    assert all(torch.equal(result.best_state[key], value) for key, value in tiny_net().state_dict().items())


def test_no_epochs_only_validate(tmp_path: Path) -> None:
    net = tiny_net()
    result = Job(tmp_path, epochs=0, net=net, val=Scores((42.0,)))()
    assert (result.best_top1, result.last_top1, result.best_epoch, result.steps) == (42.0, 42.0, 0, 0)
    assert same_weights(net, tiny_net()) and list(tmp_path.iterdir()) == []
    assert all(torch.equal(result.best_state[key], value) for key, value in net.state_dict().items())


def test_no_images_and_no_weights_are_errors_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no training images"):
        Job(tmp_path, train=Batches(steps_per_epoch=0))()
    with pytest.raises(InputError, match="no weights to train"):
        Job(tmp_path, net=nn.Flatten())()
    assert list(tmp_path.iterdir()) == []
