"""What `eval` found, as data: the schema of report.json."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import AwareDatetime, Field, model_validator
from typing_extensions import Self

from engines.plan_model import EnginePlan
from faq_deploy.report_parts import BINS, Baseline, ClassRow, Count, Flip, Part, Percent, Share

__all__ = ["SCHEMA", "Blame", "Engine", "Epoch", "Gate", "Layer", "Report", "Stage", "Verdict"]

SCHEMA: Final = 2  # of report.json; raised when an older tool could no longer read it


class Verdict(Part):
    """Passed or not, with the exit code that the command returned.

    Args:
        passed: whether every gate held and every wanted engine ran.
        exit_code: 0 passed, 1 a gate failed, 2 bad input, 3 the environment can't do it.
        sentences: the reasons in plain words, most important first.
    """

    passed: bool
    exit_code: Literal[0, 1, 2, 3]
    sentences: list[str] = Field(default=[])

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if self.passed != (self.exit_code == 0):
            raise ValueError(f"passed is {self.passed} but the exit code is {self.exit_code}")
        return self


class Gate(Part):
    """One rule that the run had to keep.

    Args:
        name: what is measured, such as `accuracy drop`.
        limit: the largest value allowed, or the smallest where `at_least`; in the unit that `detail` names.
        value: what was measured; None when there was nothing to measure, which never passes.
        passed: whether the rule was kept.
        interval: where the true value lies with 95 % confidence, where so many images leave that open.
        undecided: the value keeps the limit, but the interval passes it; such a gate passes only where that is allowed.
        detail: one sentence with the unit and where the value comes from.
        at_least: `limit` is the smallest value allowed.
    """

    name: str
    limit: float
    value: float | None
    passed: bool
    interval: tuple[float, float] | None = None
    undecided: bool = False
    detail: str = ""
    at_least: bool = False

    @property
    def outcome(self) -> Literal["passed", "failed", "undecided"]:
        """In one word."""
        if self.undecided:
            return "undecided"
        return "passed" if self.passed else "failed"

    @model_validator(mode="after")
    def _was_measured(self) -> Self:
        if self.passed and self.value is None:
            raise ValueError(f"gate {self.name!r} can't have passed: nothing was measured")
        return self


class Blame(Part):
    """Where an evaluation goes wrong first, and why, most likely.

    Args:
        stage: the first one that leaves PyTorch quantized; `all stages` where they agree and the images don't fit.
        cause: name of the likely cause, as in docs/blame.md.
        sentences: where it begins, the likely cause, and what to do.
        layer: the ONNX node whose codes differ first; empty where codes don't tell.
        module: that layer's path in the user's model, where it is known.
        tensor: the codes that differ first.
        image: the image that shows it.
        differing: codes of that tensor that differ for this image.
        compared: how many it has.
        largest: the largest difference, in codes.
        channel: where that is.
    """

    stage: str
    cause: str
    sentences: list[str]
    layer: str = ""
    module: str = ""
    tensor: str = ""
    image: str = ""
    differing: Count | None = None
    compared: Count | None = None
    largest: Count | None = None
    channel: Count | None = None


class Stage(Part):
    """One way of running the net over the same preprocessed images, or the reason why it was skipped.

    Args:
        name: as shown, such as `PyTorch quantized` or `onnxruntime (optimized)`.
        kind: what ran; `engine` is a built file in the run folder.
        images: how many images it saw.
        top1: accuracy in percent.
        top1_interval: where it lies on all images of this kind, with 95 % confidence (Wilson).
        top5: accuracy in percent; None for fewer than six classes.
        agreement_with_quantized: images with the same prediction as PyTorch quantized, in percent.
        metric: value of the report's metric, in its unit; None without one.
        flips: number of images whose prediction differs from PyTorch quantized.
        lost: images that PyTorch quantized has right and this stage has not.
        gained: the reverse.
        p_value: of the exact McNemar test on those two; 1 where there are none.
        differing_codes: integer codes that differ from PyTorch quantized; None if not compared.
        codes_compared: integer codes that were compared; None if not compared.
        max_logit_difference: largest absolute difference from PyTorch quantized's logits.
        images_per_second: throughput of the net alone, without decoding.
        latency_ms: milliseconds an image in batches, without decoding: the median batch.
        latency_p90_ms: nine of ten batches take no longer.
        largest_batch: images in the largest batch that was run.
        batch_dependent_logits: logits of a few images that differ between batch sizes; None if not tried or not judged.
        skipped: why it did not run; every number is then None.
    """

    name: str
    kind: Literal["float", "quantized", "reference", "onnxruntime", "engine"]
    images: Count = 0
    top1: Percent | None = None
    top1_interval: tuple[Percent, Percent] | None = None
    top5: Percent | None = None
    metric: float | None = None
    agreement_with_quantized: Percent | None = None
    flips: Count | None = None
    lost: Count | None = None
    gained: Count | None = None
    p_value: Share | None = None
    differing_codes: Count | None = None
    codes_compared: Count | None = None
    max_logit_difference: float | None = None
    images_per_second: float | None = None
    latency_ms: float | None = None
    latency_p90_ms: float | None = None
    largest_batch: Count | None = None
    batch_dependent_logits: Count | None = None
    skipped: str | None = None

    @model_validator(mode="after")
    def _ran_or_was_skipped(self) -> Self:
        if (self.skipped is None) == (self.top1 is None):
            raise ValueError(f"stage {self.name!r} must have either top1 or a reason why it was skipped")
        if (self.differing_codes is None) != (self.codes_compared is None):
            raise ValueError(f"stage {self.name!r} has differing codes without the number compared, or the reverse")
        return self


class Layer(Part):
    """The grid of one quantized tensor.

    Args:
        name: of the activation quantizer or of the layer whose weights these are.
        kind: activation or weight.
        bits: width of a code.
        signed: whether codes may be negative.
        exponent_min: the smallest exponent l among channels (value = code x 2^l).
        exponent_max: the largest; the same as `exponent_min` where one l serves the whole tensor.
        y: the calibrated range of an activation.
        ymax: `y` rounded up to a power of two.
        waste: share of the range lost to that rounding, 1 - y / ymax.
        dead_channels: output channels whose weight codes are all zero.
        certificate_ratio: largest possible sum in a layer over 2^24; under 1 it is exact in any order.
        histogram: how many codes lie in each sixteenth of the grid, from the lowest to the highest (each code on its
            own, where there are fewer); of an activation over the images whose codes were compared; empty if none were.
        zero: share of the codes that are 0.
        clipped: share on the highest code, or on the lowest of a signed grid.
    """

    name: str
    kind: Literal["activation", "weight"]
    bits: Annotated[int, Field(ge=1, le=32)]
    signed: bool
    exponent_min: int
    exponent_max: int
    y: float | None = None
    ymax: float | None = None
    waste: Share | None = None
    dead_channels: Count | None = None
    certificate_ratio: float | None = None
    histogram: Annotated[list[Count], Field(max_length=BINS)] = Field(default=[])
    zero: Share | None = None
    clipped: Share | None = None


class Epoch(Part):
    """One epoch of fine-tuning.

    Args:
        epoch: counted from 1.
        top1: accuracy on the held-out images in percent; None if not measured.
        loss: mean training loss.
        lr: learning rate.
    """

    epoch: Count
    top1: Percent | None = None
    loss: float
    lr: float


class Engine(Part):
    """One engine file that `build` left.

    Args:
        name: folder under `engines/`.
        runtime: what runs it; empty where its record can't be read.
        sm: compute capability it was built for, such as `86`; None for engines that run on a CPU.
        bytes: size of the file.
        seconds: how long the build took.
        status: ran or skipped (and is a stage above), or not asked for: --engine named others.
        note: one sentence, such as why it was skipped.
        plan: what it runs, predicted or by its own account; None for runtimes that are not TensorRT's.
        int8_share: of the multiply-adds of an image, those in INT8 by that plan, or by the graph where there is none.
    """

    name: str
    runtime: Literal["", "onnxruntime", "tensorrt", "tensorrt-rtx"] = ""
    sm: str | None = None
    bytes: Count | None = None
    seconds: float | None = None
    status: Literal["ran", "skipped", "not asked for"]
    note: str = ""
    plan: EnginePlan | None = None
    int8_share: Share | None = None


class Report(Part):
    """Everything that report.html shows.

    Args:
        schema_version: `schema` in JSON: of this file, as in docs/report.schema.json.
        faq_deploy: version of this tool.
        created: when, with a time zone.
        run: name of the run folder.
        model: as named on the command line.
        weights: what the float net started from, in words; empty where it isn't known.
        data: where the images come from, in words.
        preprocessing: how they are prepared, in words; empty where it isn't known.
        metric: that stages were judged by besides top-1, as --metric named it; empty without one.
        images: how many were evaluated.
        recipe: the resolved recipe, flat, JSON values: `training.lr` -> 0.0001.
        verdict: passed or not, and why.
        gates: the rules.
        blame: where it goes wrong first; None where nothing differs.
        stages: float first, then quantized, then what was built from it.
        layers: the grids, in the order of the graph.
        training: empty if the run was calibrated only.
        engines: empty if none were built.
        warnings: sentences.
        versions: package name -> version, of what ran here.
        images_sha256: of the names and classes of the images, in order.
        onnx_sha256: of model.onnx.
        classes: one row a class.
        flips: images that stages answer otherwise, the first few.
        baseline: what this run is compared with.
    """

    schema_version: Annotated[Literal[2], Field(alias="schema")] = SCHEMA
    faq_deploy: str
    created: AwareDatetime
    run: str
    model: str
    weights: str = ""
    data: str
    preprocessing: str = ""
    metric: str = ""
    images: Count
    recipe: dict[str, object] = Field(default={})
    verdict: Verdict
    gates: list[Gate] = Field(default=[])
    blame: Blame | None = None
    stages: list[Stage]
    layers: list[Layer] = Field(default=[])
    training: list[Epoch] = Field(default=[])
    engines: list[Engine] = Field(default=[])
    warnings: list[str] = Field(default=[])
    versions: dict[str, str] = Field(default={})
    images_sha256: str = ""
    onnx_sha256: str = ""
    classes: list[ClassRow] = Field(default=[])
    flips: list[Flip] = Field(default=[])
    baseline: Baseline | None = None
