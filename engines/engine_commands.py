"""The `build` and `eval` command lines that do their work as typed, by what a machine has."""

from __future__ import annotations

from collections.abc import Iterable

from engines.host import Host
from engines.tensorrt_package import OLDEST_SM

__all__ = ["build_words", "eval_words"]


def build_words(run: str, target: object, host: Host) -> tuple[str, ...]:
    """How engines of a run are built on a machine.

    Args:
        run: its folder.
        target: what its network was made for; None where that is not known.
        host: the machine.

    Returns:
        With `--runtime tensorrt-rtx` where that is all that builds for GPUs here: `build` takes it only when asked.
    """
    words = ("faq-deploy", "build", run)
    gpu = host.gpu
    takes_int8 = gpu is None or gpu.sm >= OLDEST_SM  # without a GPU it is built ahead of time
    has_tensorrt = gpu is not None and "tensorrt" in host.versions
    if target == "tensorrt" and takes_int8 and "tensorrt-rtx" in host.versions and not has_tensorrt:
        return (*words, "--runtime", "tensorrt-rtx")
    return words


def eval_words(run: str, steps: Iterable[str], host: Host) -> tuple[str, ...]:
    """How a run is judged on a machine.

    Args:
        run: its folder.
        steps: that it has behind it, `build/NAME` for each engine.
        host: the machine.

    Returns:
        With `--allow-skip` where an engine needs a GPU and there is none.
    """
    skipped = host.gpu is None and any(step.startswith("build/tensorrt") for step in steps)
    return ("faq-deploy", "eval", run, *["--allow-skip"] * skipped)
