"""What GPUs can do at most: multiply-adds and bytes a second, from NVIDIA's data sheets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

__all__ = ["GPUS", "GpuLimits", "Precision", "limits_of"]

Precision = Literal["int8", "fp16", "fp32"]


@dataclass(frozen=True)
class GpuLimits:
    """Peaks of one GPU at its boost clock; a multiply-add is two operations.

    Attributes:
        name: as NVIDIA's driver gives it, without the maker.
        sm: compute capability as one number.
        int8: tera operations a second of the tensor cores, without sparsity.
        fp16: the same with 16-bit sums.
        fp32: of the CUDA cores, or of the tensor cores in TF32, which TensorRT takes for FP32 layers from Ampere on,
            whichever is more.
        bandwidth: of its memory, in GB (10^9) a second.
        source: where the figures are from.
    """

    name: str
    sm: int
    int8: float
    fp16: float
    fp32: float
    bandwidth: float
    source: str

    def peak(self, precision: Precision) -> float:
        """Operations a second."""
        peaks: Mapping[Precision, float] = {"int8": self.int8, "fp16": self.fp16, "fp32": self.fp32}
        return peaks[precision] * 1e12


_SPARSE: Final = "the figure with sparsity halved"
# multiply-adds of an SM in a clock x SMs x boost clock, where no sheet says it
_COUNTED: Final = "28 SMs x 1.777 GHz x the rates of an SM in NVIDIA's GA102 white paper"

GPUS: Final = (
    GpuLimits("T4", 75, 130, 65, 8.1, 320, "T4 data sheet"),
    GpuLimits("GeForce RTX 3060", 86, 101.9, 50.9, 12.7, 360, _COUNTED),
    GpuLimits("A10", 86, 250, 125, 62.5, 600, "A10 data sheet"),
    GpuLimits("Orin NX 16GB", 87, 30, 15, 7.5, 102.4, f"Jetson Orin NX data sheet, GPU alone, {_SPARSE}"),
    GpuLimits("AGX Orin 64GB", 87, 85, 42.5, 21.2, 204.8, f"Jetson AGX Orin technical brief, GPU alone, {_SPARSE}"),
    GpuLimits("L4", 89, 242.5, 121, 60.5, 300, f"L4 data sheet, {_SPARSE}"),
    GpuLimits("GeForce RTX 4090", 89, 660.6, 330.3, 82.6, 1008, "NVIDIA's Ada white paper"),
    GpuLimits("H100 SXM", 90, 1979, 989.5, 494.7, 3350, f"H100 data sheet, {_SPARSE}"),
)


def limits_of(name: str) -> GpuLimits | None:
    """The row of a GPU by the driver's name, such as "NVIDIA L4"; None where the table has none."""
    words = name.removeprefix("NVIDIA ").removeprefix("Tesla ").removesuffix(" 80GB HBM3")
    named: Mapping[str, str] = {"H100": "H100 SXM"}
    return next((gpu for gpu in GPUS if gpu.name == named.get(words, words)), None)
