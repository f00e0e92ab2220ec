"""Latency of a runner: how many calls, and which of them are shown."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from engines.latency import Latency, gpu_clocks, measure
from engines.runner import FloatArray


class Slow:
    """A runner whose calls take the seconds that it is given, by a clock of its own."""

    name = "slow"

    def __init__(self, seconds: Iterator[float]) -> None:
        self.seconds, self.now = seconds, 0.0
        self.shapes: list[tuple[int, ...]] = []

    def __call__(self, batch: FloatArray) -> FloatArray:
        self.shapes.append(batch.shape)
        self.now += next(self.seconds)
        return batch

    def close(self) -> None:
        """Nothing to do."""


def test_p50_and_p99_are_calls_of_that_rank() -> None:
    warm_up = [0.25]
    runner = Slow(iter([*warm_up, *(n / 128 for n in (3, 1, 2, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16))]))
    found = measure(runner, (3, 4, 4), 2, lambda: runner.now)
    # the first 15 calls are 120/128 s, the 16th makes it a second
    assert found == Latency(2, 1000 * 8 / 128, 1000 * 16 / 128, 16)
    assert set(runner.shapes) == {(2, 3, 4, 4)}


def test_a_slow_runner_is_called_five_times_after_one_that_warms_it_up() -> None:
    runner = Slow(iter([9.0, 2.0, 3.0, 1.0, 4.0, 5.0]))
    assert measure(runner, (1,), 1, lambda: runner.now) == Latency(1, 3000.0, 5000.0, 5)


def test_a_fast_runner_is_called_a_thousand_times() -> None:
    runner = Slow(iter(np.full(3000, 2.0**-14)))
    assert measure(runner, (1,), 1, lambda: runner.now).calls == 1000


@pytest.mark.parametrize(("prints", "found"), [("1980, 1980, 2619, 2619", 1980), ("[N/A], 1, 1, 1", None), ("", None)])
def test_clocks_are_what_nvidia_smi_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prints: str, found: int | None
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\necho '{prints}'\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    clocks = gpu_clocks()
    assert (clocks and clocks["clocks.sm"]) == found


def test_no_clocks_without_nvidia_smi(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpu_clocks() is None
