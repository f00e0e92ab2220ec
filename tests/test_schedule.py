"""The learning rate of an epoch."""

from __future__ import annotations

import subprocess
import sys

from hypothesis import given
from hypothesis import strategies as st

from faq_deploy.recipe import TrainingSection, load_recipe
from faq_deploy.schedule import learning_rate, scaled_milestones


def test_the_papers_4_bit_rates_are_exact_in_every_epoch() -> None:
    training = load_recipe("faq-4bit").training
    assert [learning_rate(training, epoch) for epoch in range(110)] == [0.0015 * 0.936**epoch for epoch in range(110)]


def test_the_papers_4_bit_rate_drops_to_one_millionth_after_110_epochs() -> None:
    assert abs(learning_rate(load_recipe("faq-4bit").training, 110) - 1.04e-6) < 0.005e-6


def test_the_papers_8_bit_rate_is_constant() -> None:
    training = load_recipe("faq-8bit").training
    assert {learning_rate(training, epoch) for epoch in range(10)} == {1e-4}


def test_steps_fall_at_the_milestones_and_not_before() -> None:
    training = TrainingSection(epochs=110, lr=1.0, schedule="step", gamma=0.5, milestones=(30, 60, 90))
    rates = [learning_rate(training, epoch) for epoch in (0, 29, 30, 59, 60, 89, 90, 109)]
    assert rates == [1.0, 1.0, 0.5, 0.5, 0.25, 0.25, 0.125, 0.125]


@given(
    lr=st.floats(1e-6, 10),
    gamma=st.floats(0.01, 1),
    epoch=st.integers(0, 60),
    more=st.integers(0, 100),
    kind=st.sampled_from(["constant", "exponential"]),
)
def test_planning_more_epochs_moves_no_rate_and_rates_never_rise(
    lr: float, gamma: float, epoch: int, more: int, kind: str
) -> None:
    values = {"lr": lr, "gamma": gamma, "schedule": kind}
    short = TrainingSection.model_validate(values | {"epochs": 61})
    long = TrainingSection.model_validate(values | {"epochs": 61 + more})
    assert learning_rate(short, epoch) == learning_rate(long, epoch)
    assert learning_rate(long, epoch + more) <= learning_rate(long, epoch)


def test_recipes_and_schedules_need_no_torch() -> None:
    code = "import sys, faq_deploy.schedule, faq_deploy.recipe; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@given(marks=st.sets(st.integers(1, 99), min_size=1), epochs=st.integers(1, 300))
def test_moved_milestones_ascend_within_the_epochs_and_stay_where_nothing_changes(marks: set[int], epochs: int) -> None:
    training = TrainingSection(epochs=100, lr=1.0, schedule="step", gamma=0.5, milestones=tuple(sorted(marks)))
    moved = scaled_milestones(training, epochs)
    assert list(moved) == sorted(set(moved))
    assert all(0 < mark < epochs for mark in moved)
    assert len(moved) <= len(marks)
    assert scaled_milestones(training, 100) == training.milestones
