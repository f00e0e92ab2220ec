"""What a user sees of a training."""

from __future__ import annotations

from io import StringIO
from pathlib import Path

from rich.console import Console

from faq_deploy.progress import BarReporter, LineReporter, training_reporter
from tests.training_jobs import (
    STEPS,
    Batches,
    Job,
    Scores,
)


def test_off_a_terminal_there_is_one_line_per_epoch(tmp_path: Path) -> None:
    said = StringIO()
    reporter = training_reporter(Console(file=said, width=40))
    assert type(reporter) is LineReporter
    Job(tmp_path, train=Batches(steps_per_epoch=2), val=Scores((50.0, 62.5)), reporter=reporter)()
    first, second = said.getvalue().splitlines()
    assert first.startswith("epoch 1/2: loss ") and "val top-1 50.00% (best), lr 0.01," in first
    assert second.startswith("epoch 2/2: loss ") and "val top-1 62.50% (best), lr 0.005," in second


def test_on_a_terminal_there_is_a_bar_with_loss_and_time_left(tmp_path: Path) -> None:
    said = StringIO()
    reporter = training_reporter(Console(file=said, force_terminal=True, width=120))
    assert isinstance(reporter, BarReporter)
    Job(tmp_path, reporter=reporter)()
    assert f"{2 * STEPS}/{2 * STEPS}" in said.getvalue() and "loss " in said.getvalue()
