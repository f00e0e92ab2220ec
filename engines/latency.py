"""How long a runner takes for a batch, from host memory to host memory: the middle and the slow end of many calls."""

from __future__ import annotations

import math
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from engines.runner import FloatArray, Runner

__all__ = ["Latency", "gpu_clocks", "measure"]

_SECONDS: Final = 1.0  # of calls for one batch size
_LEAST, _MOST = 5, 1000
_CLOCKS: Final = ("clocks.sm", "clocks.max.sm", "clocks.mem", "clocks.max.mem")


@dataclass(frozen=True)
class Latency:
    """Calls with batches of one size.

    Attributes:
        batch: images at once.
        p50_ms: half of the calls took no longer.
        p99_ms: 99 of 100 took no longer; with fewer than 100 calls that is the slowest.
        calls: that were measured.
    """

    batch: int
    p50_ms: float
    p99_ms: float
    calls: int


def measure(
    runner: Runner, image: Sequence[int], batch: int, clock: Callable[[], float] = time.perf_counter
) -> Latency:
    """Time calls of a runner on noise, after some that warm it up.

    Args:
        runner: an engine. Copies to the GPU and back are part of a call.
        image: shape of one image, (C, H, W).
        batch: images at once.
        clock: seconds.

    Returns:
        Of at least 5 calls, and of as many as fit a second, up to 1,000.
    """
    images = np.random.default_rng(0).standard_normal((batch, *image), np.float32)
    _calls(runner, images, clock, _SECONDS / 5, 1)
    seconds = sorted(_calls(runner, images, clock, _SECONDS, _LEAST))
    p50, p99 = (1e3 * seconds[math.ceil(share * len(seconds) / 100) - 1] for share in (50, 99))
    return Latency(batch, p50, p99, len(seconds))


def _calls(runner: Runner, images: FloatArray, clock: Callable[[], float], enough: float, least: int) -> list[float]:
    """Seconds of each call, until there are `enough` in all and `least` calls."""
    seconds: list[float] = []
    while len(seconds) < least or (sum(seconds) < enough and len(seconds) < _MOST):
        start = clock()
        runner(images)
        seconds.append(clock() - start)
    return seconds


def gpu_clocks() -> dict[str, int] | None:
    """Clocks of the first GPU in MHz, now and at most, by nvidia-smi's names; None where it doesn't say (Jetson)."""
    command = ["nvidia-smi", "-i", "0", f"--query-gpu={','.join(_CLOCKS)}", "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout
        return dict(zip(_CLOCKS, map(int, said.strip().split(",")), strict=True))
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
