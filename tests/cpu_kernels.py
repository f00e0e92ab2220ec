"""On which CPUs optimized onnxruntime is exact: its INT8 kernels saturate where there are no 8-bit dot products."""

from __future__ import annotations

from typing import Final

from engines.ort import cpu_features

__all__ = ["VNNI", "optimized_is_exact"]

VNNI: Final = cpu_features().vnni == "yes"


def optimized_is_exact(target: str) -> bool:
    """Whether onnxruntime's integer kernels must compute a target's codes here.

    Target onnxruntime is made for every x86 CPU. The others' files are for GPUs: pairs of their products can pass the
    32,767 that a CPU without VNNI adds them up in (tests/test_portable_cpu.py shows both on an emulated one).
    """
    return VNNI or target == "onnxruntime"
