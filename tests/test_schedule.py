"""The learning rate of an epoch."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from faq_deploy.recipe import TrainingSection, load_recipe
from faq_deploy.schedule import learning_rate, micro_batches, optimizer_steps, scaled_doublings, scaled_milestones


def test_the_papers_4_bit_rates_are_exact_in_every_epoch() -> None:
    training = load_recipe("faq-4bit").training
    assert [learning_rate(training, epoch) for epoch in range(110)] == [0.0015 * 0.936**epoch for epoch in range(110)]


def test_the_papers_4_bit_rate_drops_to_one_millionth_after_110_epochs() -> None:
    assert abs(learning_rate(load_recipe("faq-4bit").training, 110) - 1.04e-6) < 0.005e-6


@pytest.mark.parametrize(
    ("lr", "gamma", "epochs", "final"),
    [(0.0015, 0.936, 110, 1.04e-6), (0.1, 0.901, 110, 1.05e-6), (0.0015, 0.957, 165, 1.06e-6)],
)
def test_exponentials_end_where_the_paper_says(lr: float, gamma: float, epochs: int, final: float) -> None:
    training = TrainingSection(epochs=epochs + 1, lr=lr, schedule="exponential", gamma=gamma)
    assert learning_rate(training, epochs) == lr * gamma**epochs
    assert abs(learning_rate(training, epochs) - final) < 0.005e-6


def test_the_papers_8_bit_rate_is_constant() -> None:
    training = load_recipe("faq-8bit").training
    assert {learning_rate(training, epoch) for epoch in range(10)} == {1e-4}


def test_steps_fall_at_the_milestones_and_not_before() -> None:
    training = TrainingSection(epochs=110, lr=1.0, schedule="step", gamma=0.5, milestones=(30, 60, 90))
    rates = [learning_rate(training, epoch) for epoch in (0, 29, 30, 59, 60, 89, 90, 109)]
    assert rates == [1.0, 1.0, 0.5, 0.5, 0.25, 0.25, 0.125, 0.125]


def test_a_milestone_given_twice_drops_the_rate_twice() -> None:
    training = TrainingSection(epochs=9, lr=1.0, schedule="step", gamma=0.5, milestones=(2, 5, 5))
    assert [learning_rate(training, epoch) for epoch in range(9)] == [1.0, 1.0, 0.5, 0.5, 0.5, *[0.125] * 4]


def test_without_doublings_every_batch_is_an_update() -> None:
    training = TrainingSection(epochs=9, lr=1.0)
    assert {micro_batches(training, epoch) for epoch in range(9)} == {1}
    assert [optimizer_steps(training, count, 8) for count in (0, 1, 7)] == [0, 1, 7]


def test_batches_in_an_update_double_at_the_epochs_named() -> None:
    training = TrainingSection(epochs=7, lr=1.0, batch_doublings=(1, 3, 4))
    assert [micro_batches(training, epoch) for epoch in range(7)] == [1, 2, 2, 4, 8, 8, 8]
    assert [optimizer_steps(training, 9, epoch) for epoch in range(7)] == [9, 5, 5, 3, 2, 2, 2]


@given(
    doublings=st.sets(st.integers(1, 29), max_size=6),
    epoch=st.integers(0, 29),
    count=st.integers(1, 5000),
    more=st.integers(0, 99),
)
def test_updates_of_an_epoch_cover_its_batches_once_and_planning_more_epochs_moves_none(
    doublings: set[int], epoch: int, count: int, more: int
) -> None:
    training = TrainingSection(epochs=30, lr=1.0, batch_doublings=tuple(sorted(doublings)))
    together, updates = micro_batches(training, epoch), optimizer_steps(training, count, epoch)
    assert together == 2 ** len([mark for mark in doublings if mark <= epoch])
    assert (updates - 1) * together < count <= updates * together
    assert micro_batches(training.model_copy(update={"epochs": 30 + more}), epoch) == together


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
    modules = ("schedule", "recipe", "chosen_recipe", "recipe_command", "show_recipes", "cli_recipes")
    imports = "; ".join(f"import faq_deploy.{module}" for module in modules)
    code = f"import sys; {imports}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@given(marks=st.sets(st.integers(1, 99), min_size=1), epochs=st.integers(1, 300))
def test_moved_milestones_ascend_within_the_epochs_and_stay_where_nothing_changes(marks: set[int], epochs: int) -> None:
    training = TrainingSection(epochs=100, lr=1.0, schedule="step", gamma=0.5, milestones=tuple(sorted(marks)))
    moved = scaled_milestones(training, epochs)
    assert list(moved) == sorted(set(moved))
    assert all(0 < mark < epochs for mark in moved)
    assert len(moved) <= len(marks)
    assert scaled_milestones(training, 100) == training.milestones


def test_a_milestone_given_twice_stays_twice_where_it_moves() -> None:
    training = TrainingSection(epochs=110, lr=0.1, schedule="step", gamma=0.1, milestones=(30, 60, 85, 95, 95))
    assert scaled_milestones(training, 110) == (30, 60, 85, 95, 95)
    assert scaled_milestones(training, 22) == (6, 12, 17, 19, 19)
    assert scaled_milestones(training, 5) == (1, 3, 4, 4)  # 85 meets the two at 95


def test_doublings_move_in_proportion_and_those_that_meet_become_one() -> None:
    training = TrainingSection(epochs=165, lr=1.0, batch_doublings=(55, 150, 160))
    found = {epochs: scaled_doublings(training, epochs) for epochs in (165, 33, 9, 3, 1)}
    assert found == {165: (55, 150, 160), 33: (11, 30, 32), 9: (3, 8), 3: (1,), 1: ()}
