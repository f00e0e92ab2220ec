"""Training that can be repeated bit by bit: deterministic kernels, and random numbers that depend on the step alone."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator

import torch

from faq_deploy.ranks import Ranks

__all__ = ["repeatable", "reseed"]


@contextlib.contextmanager
def repeatable(device: torch.device) -> Iterator[None]:
    """Deterministic kernels where there are any; the caller's random state and settings come back afterwards."""
    enabled = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # else cuBLAS has no deterministic kernels
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.use_deterministic_algorithms(True, warn_only=True)
        # a debugging aid that writes all memory twice
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
            torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]


def reseed(seed: int, step: int, ranks: Ranks) -> None:
    """Make dropout depend on the step, and on the process where there are several, so that a resume repeats it.

    Args:
        seed: of the run.
        step: micro batches since the start of training.
        ranks: the processes that train.
    """
    # hashed: torch's CPU generator takes only the low 32 bits of a seed
    text = f"{seed} {step}{f' {ranks.rank}' if ranks.count > 1 else ''}"
    number = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "little")
    torch.default_generator.manual_seed(number)  # torch.manual_seed takes 0.1 ms to look for other devices
    if ranks.device.type == "cuda":
        torch.cuda.manual_seed(number)
