"""Ctrl-C and SIGTERM: the step is finished and saved, and resuming loses nothing."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from engines.run_folder import RunFolder
from faq_deploy.checkpoint import load_state
from faq_deploy.finetune import Interrupted
from tests.training_jobs import (
    STEPS,
    Batches,
    Job,
    Scores,
    assert_whole,
    signal_at,
)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """Two epochs without interruption."""
    job = Job(tmp_path_factory.mktemp("reference"))
    job()
    return job


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("step", [0, 7, STEPS - 1, STEPS, 2 * STEPS - 1])
def test_a_signal_saves_after_the_step_and_resuming_loses_nothing(
    reference: Job, tmp_path: Path, step: int, number: signal.Signals
) -> None:
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(Interrupted) as caught:
        Job(tmp_path, train=signal_at(step, number))()
    assert caught.value.exit_code == 130 and "--resume" in caught.value.remedy
    assert f"after step {step + 1} of {2 * STEPS}" in caught.value.what
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert load_state(RunFolder(tmp_path)).global_step == step + 1
    job = Job(tmp_path)
    job(resume=True)
    assert_whole(job, reference)


def test_a_signal_during_validation_stops_at_once_and_only_validates_again(reference: Job, tmp_path: Path) -> None:
    def stop() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)

    start = time.monotonic()
    with pytest.raises(Interrupted):
        Job(tmp_path, val=Scores(before=stop))()
    assert time.monotonic() - start < 4
    state = load_state(RunFolder(tmp_path))
    assert (state.epoch, state.step_in_epoch, state.best) == (0, STEPS, {})
    steps: list[int] = []
    job = Job(tmp_path, train=Batches(before=steps.append), val=Scores((50.0, 60.0)))
    result = job(resume=True)
    assert steps == list(range(STEPS, 2 * STEPS))
    assert (result.best_epoch, result.best_top1) == (2, 60.0)
    assert_whole(job, reference)


def test_a_second_signal_stops_at_once_and_the_checkpoint_before_stays_good(reference: Job, tmp_path: Path) -> None:
    def impatient(step: int) -> None:
        if step == 40:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted, match="at once"):
        Job(tmp_path, train=Batches(before=impatient))()
    assert load_state(RunFolder(tmp_path)).global_step == STEPS
    job = Job(tmp_path)
    job(resume=True)
    assert_whole(job, reference)


def test_training_works_outside_the_main_thread(reference: Job, tmp_path: Path) -> None:
    job = Job(tmp_path)
    thread = threading.Thread(target=job)
    thread.start()
    thread.join()
    assert_whole(job, reference)


def test_an_ignored_signal_stays_ignored(reference: Job, tmp_path: Path) -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        job = Job(tmp_path, train=signal_at(3))
        job()
    finally:
        signal.signal(signal.SIGINT, before)
    assert_whole(job, reference)
