"""The sections of a recipe, each a group of choices with what they mean."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

__all__ = ["CalibrationSection", "LayersSection", "PaperSection", "QuantizerSection", "Section", "TrainingSection"]


class Section(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class QuantizerSection(Section):
    """How weights and batch norm get onto the grid (paper 3.1.1)."""

    batch_norm: Literal["fold", "paper", "fit"] = "fold"
    """fold: into weights and bias; paper: multiplier k/16 with |k| up to 127; fit: such k, exponent fitted"""
    granularity: Literal["auto", "channel", "tensor"] = "auto"
    """a weight exponent per output channel or per tensor; auto: channel if batch_norm is fold, else tensor"""
    weight_rule: Literal["auto", "sigma", "max", "mse"] = "auto"
    """how a weight's exponent is found; auto: mse for 8-bit weights, sigma for 4-bit ones"""
    sigma_multiple: float = Field(default=4.12, gt=0)
    """c of the rule sigma, over 0; the paper's is 4.12 at 4 bits"""
    sigma_reading: Literal["R2", "R1"] = "R2"
    """R2: step = c*sigma/(2^bits - 1); R1: twice that, so that +-c*sigma is the range"""
    certify: Literal[True, False, "auto"] = "auto"
    """halve the codes of channels whose sums could pass 2^24, where fp32 rounds; auto: if batch_norm is fold"""

    @model_validator(mode="after")
    def _possible(self) -> QuantizerSection:
        if self.certify is True and self.batch_norm != "fold":
            raise ValueError(f"quantizer.certify is true, which needs batch_norm fold, not {self.batch_norm}")
        return self


class CalibrationSection(Section):
    """How activation ranges are found (paper 3.2)."""

    method: Literal["percentile", "max", "mse", "entropy", "fixed"] = "percentile"
    """the range estimator; fixed looks at no image: a step of 2^(-bits/2) for every activation"""
    batches: int = Field(default=5, ge=1)
    """training batches to look at, at least 1"""
    batch_size: int = Field(default=256, ge=1)
    """images in a calibration batch, at least 1"""
    percentile_8: float = Field(default=99.99, gt=0, le=100)
    """percentile of 8-bit tensors, over 0 and up to 100"""
    percentile_4: float = Field(default=99.9, gt=0, le=100)
    """percentile of 4-bit tensors, over 0 and up to 100"""
    round_up: Literal["next", "even"] = "next"
    """ymax goes up to the next power of two, or to the next one with an even exponent"""
    waste_warning: float = Field(default=0.4, gt=0, le=1)
    """warn if rounding up wastes more than this share of a range, over 0 and up to 1"""
    weight_rounding: Literal["nearest", "compensated"] = "nearest"
    """compensated: weight codes and biases chosen by what the layer's output becomes on images"""
    bias_correction: Literal["none", "analytic", "empirical"] = "none"
    """how biases make good the mean shift of rounding to nearest; compensated does that by itself"""
    correction_images: int = Field(default=128, ge=1)
    """how many calibration images these two look at, at least 1"""

    @model_validator(mode="after")
    def _possible(self) -> CalibrationSection:
        if self.weight_rounding != "nearest" and self.bias_correction != "none":
            raise ValueError("calibration.bias_correction must be none where weight_rounding is compensated")
        return self


class TrainingSection(Section):
    """How long, how fast and from which seed to train (paper 3.3)."""

    epochs: int = Field(ge=0)
    """passes over the training images; 0 calibrates only"""
    batch_size: int = Field(default=256, ge=1)
    """images in a training step, at least 1"""
    batch_doublings: tuple[int, ...] = Field(default=(), strict=False)
    """epochs, ascending from 1 to the last, at which the images in a step double; gradients are accumulated"""
    lr: float = Field(gt=0)
    """learning rate of the first epoch, over 0"""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """of SGD, at least 0 and under 1"""
    weight_decay: float = Field(default=1e-4, ge=0)
    """of SGD, on every parameter, at least 0"""
    weight_decay_for: dict[str, Annotated[float, Field(ge=0)]] = {}
    """weight decay by pattern on the model's name, the first match counts: {"*resnet18*" = 0.5e-4}"""
    schedule: Literal["constant", "exponential", "step"] = "constant"
    """exponential: lr*gamma^epoch; step: lr times gamma at each milestone"""
    gamma: float = Field(default=1.0, gt=0, le=1)
    """factor of the schedule, over 0 and up to 1"""
    milestones: tuple[int, ...] = Field(default=(), strict=False)
    """epochs, ascending from 1 to the last, at which the schedule step multiplies by gamma; one given twice, twice"""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """of image order, augmentation and dropout, 0 to 2^31 - 1"""
    augment: Literal["auto", "none", "shift", "cifar", "imagenet"] = "auto"
    """random changes to training images; auto: what suits the data"""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """of the products in training; quantizers, batch norms and evaluation stay in fp32"""
    memory_format: Literal["auto", "contiguous", "channels_last"] = "auto"
    """layout of images in memory; auto: channels_last for quantized nets, contiguous for float ones"""
    sync_batch_norm: bool = False
    """batch norm statistics over the images of all processes, not of each"""
    distill: float = Field(default=0.0, ge=0, le=1)
    """share of the loss that compares logits with the float net's, 0 to 1"""
    distill_temperature: float = Field(default=4.0, gt=0)
    """what the logits are divided by in that comparison, over 0"""
    freeze_exponents: int = Field(default=0, ge=0)
    """in so many last epochs, up to all, the weights' exponents stay as they are"""
    ema_decay: float = Field(default=0.0, ge=0, lt=1)
    """of the moving average of weights that is validated and kept, 0 to below 1; 0: the weights of the last step"""
    freeze_batch_norm: int = Field(default=0, ge=0)
    """in so many last epochs, up to all, batch norms use their running statistics, as the engine will"""

    @model_validator(mode="after")
    def _possible(self) -> TrainingSection:
        if self.schedule == "step" and self.epochs > 0:
            marks = self.milestones
            if not marks or marks[0] < 1 or any(a > b for a, b in pairwise(marks)):
                raise ValueError(f"training.milestones {list(marks)} must ascend from 1, and not be empty")
            if marks[-1] >= self.epochs:
                raise ValueError(f"training.milestones has {marks[-1]}, but the last epoch is {self.epochs - 1}")
        for key in ("freeze_exponents", "freeze_batch_norm"):
            if 0 < self.epochs < getattr(self, key):
                raise ValueError(f"training.{key} is {getattr(self, key)}, but training.epochs is {self.epochs}")
        doublings = self.batch_doublings
        if doublings and (doublings[0] < 1 or any(a >= b for a, b in pairwise(doublings))):
            raise ValueError(f"training.batch_doublings {list(doublings)} must ascend from 1")
        if doublings and 0 < self.epochs <= doublings[-1]:
            raise ValueError(f"training.batch_doublings has {doublings[-1]}, but the last epoch is {self.epochs - 1}")
        return self


class PaperSection(Section):
    """Which result of the paper a recipe repeats; nothing of it changes a run."""

    row: str = ""
    """where the paper prints it, such as Table 1, ResNet-18, 8 bits"""
    model: str = ""
    """as named on the command line"""
    weights: str = ""
    """what it starts from, as named on the command line; empty: published or trained ones"""
    top1: float | None = Field(default=None, ge=0, le=100)
    """the paper's, in percent"""
    float_top1: float | None = Field(default=None, ge=0, le=100)
    """of the float net it starts from, in percent"""
    readings: tuple[str, ...] = Field(default=(), strict=False)
    """how the text was read where it is open, as numbered in docs/readings.md"""


class LayersSection(Section):
    """Exceptions by name; names are a module's path in the model, such as layer4.1.conv2."""

    leaf: tuple[str, ...] = Field(default=(), strict=False)
    """modules that stay in float with all that is in them"""
    skip: tuple[str, ...] = Field(default=(), strict=False)
    """patterns of layers whose weights stay in float"""
    bits: dict[str, Annotated[int, Field(ge=2, le=8)]] = {}
    """bits of layers and ReLUs by pattern, 2 to 8, the first match counts: {"layer4.*" = 8}"""
    int4_linear: bool = False
    """linear layers without bits of their own get 4-bit weights, the last one too; `build --int4-linear` stores INT4"""
    output: str = ""
    """which of several outputs the net keeps; empty: logits or out if there is one, else the first"""
