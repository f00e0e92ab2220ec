"""The roofline: sums by hand, and GPUs by the driver's names."""

from __future__ import annotations

import pytest

from engines.gpu_limits import GPUS, GpuLimits, limits_of
from engines.kernel_costs import KernelCost
from engines.roofline import Bound, bound

# 1 tera operations and 1 GB a second in INT8
SLOW = GpuLimits("slow", 75, int8=1, fp16=0.5, fp32=0.25, bandwidth=1, source="")


def kernel(macs: int, codes: int, *, int8: bool = True) -> KernelCost:
    return KernelCost("n", "", "Conv", int8, macs, 0, 0, codes, 0, 0)


def test_each_kernel_takes_the_longer_of_products_and_bytes() -> None:
    costs = [kernel(500_000_000, 1000), kernel(1000, 2_000_000), kernel(0, 0)]
    found = bound(costs, SLOW, "int8", 1)
    # 10^9 operations: 1 ms; 2 x 10^6 bytes: 2 ms
    assert found == Bound("slow", "int8", 1, ms=3.0, products_ms=1e3 * (1e-3 + 2e-9), by_memory=1, kernels=2)
    assert bound(costs, SLOW, "int8", 8).ms == pytest.approx(24.0)
    assert bound(costs, SLOW, "fp16", 1).ms == pytest.approx(2.0 + 4.0)


def test_a_layer_left_in_float_has_the_peak_of_fp32() -> None:
    assert bound([kernel(500_000_000, 0, int8=False)], SLOW, "int8", 1).ms == 4.0


@pytest.mark.parametrize(
    ("said", "name"),
    [
        ("NVIDIA L4", "L4"),
        ("Tesla T4", "T4"),
        ("NVIDIA GeForce RTX 4090", "GeForce RTX 4090"),
        ("NVIDIA H100 80GB HBM3", "H100 SXM"),
        ("NVIDIA A100-SXM4-80GB", None),
    ],
)
def test_gpus_are_known_by_the_drivers_names(said: str, name: str | None) -> None:
    found = limits_of(said)
    assert (found and found.name) == name


def test_peaks_are_in_order_and_have_a_source() -> None:
    for gpu in GPUS:
        assert gpu.int8 > gpu.fp16 > gpu.fp32 > 0, gpu.name
        assert gpu.source, gpu.name
