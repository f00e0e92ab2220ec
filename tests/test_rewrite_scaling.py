"""Rewriting, calibrating and writing a net takes time in proportion to its nodes."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Final

import pytest
import torch

from benchmarks.rewrite_scaling import stages

_ROUNDS: Final = 3
_MORE_THAN_LINEAR: Final = 1.5  # with five times the nodes, work that goes by their square would show 5


@pytest.fixture
def steady() -> Iterator[None]:
    """One thread, and no collections of what other tests left, whose time would be counted."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    gc.collect()
    gc.disable()
    yield
    gc.enable()
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("steady")
def test_time_grows_with_the_nodes_and_not_with_their_square() -> None:
    stages(2)  # imports and first calls
    rounds = [(stages(3), stages(25)) for _ in range(_ROUNDS)]
    few, many = rounds[0][0][1], rounds[0][1][1]
    assert many > 4 * few
    small, large = (min(r[i][0]["all"] for r in rounds) for i in (0, 1))  # the least disturbed round
    assert large <= _MORE_THAN_LINEAR * many / few * small
