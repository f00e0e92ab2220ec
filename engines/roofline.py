"""How fast a network can be at best: the longer of multiplying and moving bytes, kernel by kernel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from engines.gpu_limits import GpuLimits, Precision
from engines.kernel_costs import KernelCost

__all__ = ["Bound", "bound"]


@dataclass(frozen=True)
class Bound:
    """A network on a GPU at its data sheet's peaks.

    Attributes:
        gpu: its name.
        precision: of the engine.
        batch: images at once.
        ms: kernels one after another, each as long as the longer of its products and its bytes.
        products_ms: the products alone: what a GPU with all tensors in its cache still needs.
        by_memory: kernels that wait for memory.
        kernels: all that do something.
    """

    gpu: str
    precision: Precision
    batch: int
    ms: float
    products_ms: float
    by_memory: int
    kernels: int


def bound(costs: Sequence[KernelCost], gpu: GpuLimits, precision: Precision, batch: int) -> Bound:
    """The roofline of one network.

    Args:
        costs: as `kernel_costs` tells them.
        gpu: its peaks.
        precision: "int8" takes each kernel as the plan predicts it, in INT8 or FP32; the others all in one.
        batch: images at once.

    Returns:
        The least time, as far as the data sheet says.
    """
    pairs = [(_products(cost, gpu, precision, batch), _moves(cost, gpu, precision, batch)) for cost in costs]
    busy = [pair for pair in pairs if max(pair) > 0]
    return Bound(
        gpu=gpu.name,
        precision=precision,
        batch=batch,
        ms=1e3 * sum(max(pair) for pair in busy),
        products_ms=1e3 * sum(products for products, _ in busy),
        by_memory=sum(moves > products for products, moves in busy),
        kernels=len(busy),
    )


def _products(cost: KernelCost, gpu: GpuLimits, precision: Precision, batch: int) -> float:
    computed: Precision = "fp32" if precision == "int8" and not cost.int8 else precision
    return 2 * cost.macs * batch / gpu.peak(computed)


def _moves(cost: KernelCost, gpu: GpuLimits, precision: Precision, batch: int) -> float:
    return cost.bytes(precision, batch) / (gpu.bandwidth * 1e9)
