"""Rewriting, calibrating and writing a net takes time in proportion to its nodes."""

from __future__ import annotations

from benchmarks.rewrite_scaling import stages


def test_a_deep_net_takes_at_most_a_fifth_longer_a_node_than_a_small_one() -> None:
    stages(2)  # imports and first calls
    small, few = stages(3)
    large, many = stages(25)
    assert many > 4 * few
    assert large["all"] <= 1.2 * many / few * small["all"]
