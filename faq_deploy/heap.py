"""What the C library does with memory that is freed."""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Mapping
from typing import Final

__all__ = ["keep_freed_memory"]

# malloc.h of glibc: never give the heap's end back, grow it by 64 MiB at a time, take nothing from outside it
_SETTINGS: Final = ((-1, -1), (-2, 64 << 20), (-4, 0))


def keep_freed_memory(environment: Mapping[str, str] = os.environ) -> bool:
    """Let a training on a CPU keep what a step frees for the next step.

    glibc gives large tensors back to the kernel, which must clear the pages again: a tenth of a step's time. Its peak
    of memory is a twentieth to a tenth higher for it.

    Args:
        environment: settings of malloc in it go before these.

    Returns:
        Whether it was done: with glibc only.

    Source: mallopt(3): M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX.
    """
    chosen = any(name.startswith("MALLOC_") for name in environment) or "malloc" in environment.get(
        "GLIBC_TUNABLES", ""
    )
    if chosen or platform.libc_ver()[0] != "glibc":
        return False
    library = ctypes.CDLL(None)
    return all(library.mallopt(ctypes.c_int(name), ctypes.c_int(value)) == 1 for name, value in _SETTINGS)
