"""Figures that the paper prints and no recipe repeats: compared methods, changes of its Table 2, its two figures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

__all__ = ["BASELINES", "CHANGES", "COMPARED", "FIGURES", "Change", "Figure", "Quoted"]


@dataclass(frozen=True)
class Quoted:
    """A row of Table 1 that is not FAQ's.

    Attributes:
        network: as the paper names it.
        method: its name and source in the paper.
        bits: of weights and activations, as printed.
        top1: on ImageNet, in percent.
        top5: the same; None where the paper has none.
    """

    network: str
    method: str
    bits: str
    top1: float
    top5: float | None = None


@dataclass(frozen=True)
class Change:
    """A row of Table 2, or of sections 4.2 and 4.3: the 4-bit ResNet-18 with one thing changed.

    Attributes:
        row: what is changed, and where the paper prints it.
        top1: on ImageNet, in percent; None where the paper has no such row.
        change: against the unchanged one, as printed; None where the paper prints none.
        experiment: of ours, that changes the same thing; empty if there is none.
        base: of ours, that it is compared with.
    """

    row: str
    top1: float | None
    change: float | None
    experiment: str = ""
    base: str = ""


@dataclass(frozen=True)
class Figure:
    """A figure of the paper: what it shows."""

    name: str
    shows: str
    verb: str


BASELINES: Final[tuple[Quoted, ...]] = (
    Quoted("ResNet-18", "baseline", "32,32", 69.76, 89.08),
    Quoted("ResNet-34", "baseline", "32,32", 73.30, 91.42),
    Quoted("ResNet-50", "baseline", "32,32", 76.15, 92.87),
    Quoted("ResNet-152", "baseline", "32,32", 78.31, 94.06),
    Quoted("Inception-v3", "baseline", "32,32", 77.45, 93.56),
    Quoted("Densenet-161", "baseline", "32,32", 77.65, 93.80),
    Quoted("VGG-16bn", "baseline", "32,32", 73.36, 91.50),
)

COMPARED: Final[tuple[Quoted, ...]] = (
    Quoted("ResNet-18", "Apprentice (Mishra & Marr, 2017)", "4,8", 70.40),
    Quoted("ResNet-18", "Joint Training (Jung et al., 2018)", "4,4", 69.3),
    Quoted("ResNet-18", "UNIQ (Baskin et al., 2018)", "4,8", 67.02),
    Quoted("ResNet-18", "Distillation (Polino et al., 2018)", "4,32", 64.20),
    Quoted("ResNet-34", "UNIQ (Baskin et al., 2018)", "4,32", 73.1),
    Quoted("ResNet-34", "Apprentice (Mishra & Marr, 2017)", "4,8", 73.1),
    Quoted("ResNet-34", "UNIQ (Baskin et al., 2018)", "4,8", 71.09),
    Quoted("ResNet-50", "EL-Net (Zhuang et al., 2018)", "4,4", 75.9, 92.4),
    Quoted("ResNet-50", "IOA (Jacob et al., 2017)", "8,8", 74.9),
    Quoted("ResNet-50", "Apprentice (Mishra & Marr, 2017)", "4,8", 74.7),
    Quoted("ResNet-50", "UNIQ (Baskin et al., 2018)", "4,8", 73.37),
    Quoted("Inception-v3", "IOA (Jacob et al., 2017)", "8,8", 74.2, 92.2),
)

CHANGES: Final[tuple[Change, ...]] = (
    Change("standard: 110 epochs, pretrained, batch 256, exponential, calibrated (Table 2)", 69.82, None, "4bit-fold"),
    Change("60 epochs, batch 400 (Table 2); ours: 2 for 12", 69.40, -0.22, "4bit-short", "4bit-fold"),
    Change("30 epochs, batch 400 (4.2)", 69.30, None),
    Change("110 epochs, batch 400 (4.2)", 69.68, None),
    Change("from random weights, steps from 0.1 (Table 2, 4.3)", 69.24, -0.58, "4bit-scratch-step", "4bit-fold"),
    Change("from random weights, exponential from 0.1 (4.3)", 67.14, None, "4bit-scratch-exponential", "4bit-fold"),
    Change("batch 256 to 2048, 165 epochs (Table 2, 4.4)", 69.96, 0.14, "4bit-growing-batch", "4bit-short"),
    Change("step schedule (Table 2, 4.5)", 69.90, 0.08, "4bit-step", "4bit-fold"),
    Change("weight decay 1e-4 for 0.5e-4 (Table 2, 4.6); ours: halved", 69.59, -0.23, "4bit-less-decay", "4bit-short"),
    Change("no activation calibration (Table 2, 4.3)", 69.19, -0.63, "4bit-uncalibrated", "4bit-short"),
    Change("a scale per tensor for one per channel", None, None, "4bit-per-tensor", "4bit-short"),
    Change("weight exponents stay in the last epoch", None, None, "4bit-frozen", "4bit-short"),
    Change("batch norms use running statistics in the last epoch", None, None, "4bit-frozen-norm", "4bit-short"),
    Change("the weights of the last step, not their average", None, None, "4bit-last-step", "4bit-short"),
    Change("activation ranges of least squared error", None, None, "4bit-mse-ranges", "4bit-short"),
    Change("half the loss against the float net's logits", None, None, "4bit-distilled", "4bit-short"),
)

FIGURES: Final[tuple[Figure, ...]] = (
    Figure("Figure 1", "cosine of wanted and actual change of the weights falls from 8 to 4 to 2 bits", "noise"),
    Figure("Figure 2", "cosine of the weights with those at the start: 0.994 fine-tuned, 0.023 scratch", "similarity"),
)
