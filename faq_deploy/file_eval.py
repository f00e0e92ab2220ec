"""`eval` of an ONNX file on samples of the user's: codes, all outputs and a metric, whatever the net's task is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Final, cast

import numpy as np
import numpy.typing as npt
import onnx
import torch
from torch import Tensor, nn

from engines.batch import native_batch
from engines.errors import InputError
from engines.onnx_metadata import holds_float_weights, metadata_of
from engines.ort import OrtRunner
from engines.parity import compare_logits, logits_of_bits
from engines.qdq_graph import load_model, read_graph
from engines.reference import ReferenceRunner
from engines.runner import FloatArray
from faq_deploy.agreement import CodeCount, OutputAgreement
from faq_deploy.capture import choose_outputs
from faq_deploy.emit import output_name
from faq_deploy.given import images_of, targets_of
from faq_deploy.metric_gates import drop_gate
from faq_deploy.metrics import NamedMetric, Outputs, Total, outputs_for_metric
from faq_deploy.report_model import Gate
from faq_deploy.tracing import labelled

__all__ = ["FileReport", "FileStage", "evaluate_file"]

IntArray = npt.NDArray[np.int64]

_FLOAT: Final = "PyTorch float"
_ORACLE: Final = "onnxruntime, optimizations off"
_REFERENCE: Final = "integer reference (NumPy)"
_OPTIMIZED: Final = "onnxruntime"


@dataclass(frozen=True)
class FileStage:
    """One way of running the file, or the float model.

    Attributes:
        name: of the stage.
        images: how many it ran.
        metric: its value; None without one, and where only the first images were run.
        codes_compared, differing_codes: against onnxruntime without optimizations; 0 where none were compared.
        outputs: values of each output, against the same.
    """

    name: str
    images: int
    metric: float | None
    codes_compared: int = 0
    differing_codes: int = 0
    outputs: tuple[OutputAgreement, ...] = ()

    @property
    def differing_values(self) -> int:
        """Over all outputs."""
        return sum(output.differing for output in self.outputs)


@dataclass(frozen=True)
class FileReport:
    """What was found.

    Attributes:
        file: that was judged.
        metric: its name; empty without one.
        images: how many there were.
        stages: the float model if it was given, then onnxruntime without optimizations, the reference, onnxruntime.
        gates: the rules.
        notes: sentences.
    """

    file: str
    metric: str
    images: int
    stages: list[FileStage]
    gates: list[Gate]
    notes: list[str] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """0 where every gate held, else 1."""
        return int(not all(gate.passed for gate in self.gates))


def evaluate_file(
    path: Path,
    samples: Iterable[object],
    *,
    metric: NamedMetric | None = None,
    max_metric_drop: float | None = None,
    float_model: nn.Module | None = None,
    code_images: int = 64,
    on_stage: Callable[[str], None] = lambda text: None,
) -> FileReport:
    """Run the same samples through the integer reference, onnxruntime without and with optimizations, and judge.

    Args:
        path: that `export` wrote.
        samples: batches of images, float32, shape (N, C, H, W), or pairs of images and targets.
        metric: what stages are judged by.
        max_metric_drop: what onnxruntime may lose of it against the float model, and optimized against not optimized.
        float_model: that the file was made of, on the CPU.
        code_images: the first so many are run by the reference, and their codes are compared.
        on_stage: told what is being done.

    Raises:
        InputError: no such file, no images, no targets for the metric, or a metric that can't be computed.
    """
    oracle = _Stage(_ORACLE, metric, OrtRunner(path, oracle=True))
    reference = _Stage(_REFERENCE, None, ReferenceRunner(path))
    optimized = _Stage(_OPTIMIZED, metric, OrtRunner(path))
    floating = None if float_model is None or metric is None else metric.total()
    model = load_model(path)
    facts = metadata_of(model)
    kept = _kept_output(facts)
    shape = read_graph(model).input_shape
    on_stage(f"running the samples in {path.name}: the reference, and onnxruntime without and with optimizations")
    try:
        images = 0
        for given, targets in _batches(samples, wants_targets=metric is not None):
            batch = native_batch(given, shape, path.name)
            count = max(0, min(len(batch), code_images - images))
            answers = oracle.run(batch, targets)
            if count:
                wanted = oracle.runner.codes(batch[:count])
                optimized.compare_codes(optimized.runner.codes(batch[:count]), wanted)
                found = reference.runner.codes(batch[:count])
                reference.compare_codes(found, wanted)
                values = {name: logits_of_bits(found[name]) for name in answers}
                reference.take(values, {name: value[:count] for name, value in answers.items()}, count)
            optimized.take(optimized.run(batch, targets), answers, 0)
            if floating is not None and float_model is not None:
                floating.update(_float_outputs(float_model, batch, list(answers), kept), targets)
            images += len(batch)
    finally:
        for stage in (oracle, reference, optimized):
            stage.runner.close()
    if not images:
        raise InputError("the samples hold no images.", "yield at least one batch.")
    stages = [oracle.result(), reference.result(), optimized.result()]
    if floating is not None:
        stages.insert(0, FileStage(_FLOAT, images, floating.compute()))
    judged, notes = _judged(model, facts)
    gates = [*_exact(stages, judged), *_drops(stages, max_metric_drop, "" if metric is None else metric.name)]
    return FileReport(str(path), "" if metric is None else metric.name, images, stages, gates, notes)


class _Stage:
    """Running totals of one runtime."""

    def __init__(self, name: str, metric: NamedMetric | None, runner: OrtRunner | ReferenceRunner) -> None:
        self.name, self.runner = name, runner
        self._total: Total | None = None if metric is None else metric.total()
        self._counted = CodeCount()
        self._outputs: dict[str, OutputAgreement] = {}
        self._images = 0

    def compare_codes(self, found: Mapping[str, IntArray], wanted: Mapping[str, IntArray]) -> None:
        self._counted.add({name: wanted[name] for name in self.runner.code_names}, found)

    def run(self, batch: FloatArray, targets: object) -> dict[str, FloatArray]:
        found = self.runner.outputs(batch)
        self._images += len(batch)
        if self._total is not None:
            self._total.update(outputs_for_metric(found), targets)
        return found

    def take(self, found: Mapping[str, FloatArray], wanted: Mapping[str, FloatArray], images: int) -> None:
        self._images += images
        for name, values in wanted.items():
            close = compare_logits(values, found[name])
            self._outputs[name] = self._outputs.get(name, OutputAgreement(name)).plus(close, values.size)

    def result(self) -> FileStage:
        return FileStage(
            self.name,
            self._images,
            None if self._total is None else self._total.compute(),
            self._counted.compared,
            self._counted.differing,
            tuple(self._outputs.values()),
        )


def _batches(samples: Iterable[object], *, wants_targets: bool) -> Iterator[tuple[FloatArray, object]]:
    for sample in samples:
        pair = sample if isinstance(sample, (tuple, list)) else (sample,)
        first = torch.from_numpy(pair[0]) if pair and isinstance(pair[0], np.ndarray) else (pair or (None,))[0]
        batch = [first, *pair[1:]]
        images = images_of(batch)
        if images.dtype != torch.float32:
            raise InputError(f"images are {images.dtype}.", "give float32 images, normalized as for the float model.")
        if len(images):
            yield images.detach().cpu().contiguous().numpy(), targets_of(batch) if wants_targets else None


def _float_outputs(model: nn.Module, batch: FloatArray, names: Sequence[str], kept: str | None) -> Outputs:
    """The outputs of the float model that the file has, by the file's names; `kept` says which where it is one."""
    with torch.inference_mode():
        found = labelled(model(torch.from_numpy(batch)))
    values = {label: value.numpy() for label, value in found.items() if isinstance(value, Tensor)}
    if len(names) == 1:
        return values[choose_outputs(values, kept)[0]]
    named = {output_name(label): value for label, value in values.items()}
    missing = [name for name in names if name not in named]
    if missing:
        known = ", ".join(filter(None, named)) or "one without a name"
        raise InputError(
            f"the float model has no output {missing[0]}: it has {known}.",
            "name the model that the file was made of.",
        )
    return {name: named[name] for name in names}


def _kept_output(facts: Mapping[str, object]) -> str | None:
    """Which output of its model the file keeps, as its recipe says."""
    recipe = facts.get("recipe")
    layers = recipe.get("layers") if isinstance(recipe, dict) else None
    kept = layers.get("output") if isinstance(layers, dict) else None
    return kept if isinstance(kept, str) and kept else None


def _judged(model: onnx.ModelProto, facts: Mapping[str, object]) -> tuple[set[str], list[str]]:
    """The stages whose codes must be equal, and why others need not."""
    certificate = facts.get("certificate")
    bounds = cast("dict[str, dict[str, object]]", certificate) if isinstance(certificate, dict) else {}
    if not bounds or not all(isinstance(b, dict) and b.get("proven") for b in bounds.values()):
        return set(), ["not every sum is proven exact: codes that differ are counted and not judged."]
    if holds_float_weights(read_graph(model)):
        return set(), ["parts are kept in float: codes that differ are counted and not judged."]
    if facts.get("target") != "onnxruntime":
        return {_REFERENCE}, ["made for GPUs: optimized onnxruntime on a CPU is counted and not judged."]
    return {_REFERENCE, _OPTIMIZED}, []


def _exact(stages: Sequence[FileStage], judged: set[str]) -> Iterator[Gate]:
    for stage in stages:
        if stage.name not in judged:
            continue
        for name, compared, differing in (
            ("codes", stage.codes_compared, stage.differing_codes),
            *((f"output {o.name}", o.compared, o.differing) for o in stage.outputs),
        ):
            if compared:
                said = f"of {compared:,}, those that differ from onnxruntime without optimizations"
                yield Gate(name=f"{name}: {stage.name}", limit=0, value=differing, passed=not differing, detail=said)


def _drops(stages: Sequence[FileStage], limit: float | None, name: str) -> Iterator[Gate]:
    """From the float model to the file, and from there to the engine."""
    measured = [stage for stage in stages if stage.metric is not None]
    if limit is None:
        return
    for before, after in pairwise(measured):
        assert before.metric is not None and after.metric is not None
        pair = (before.name, before.metric), (after.name, after.metric)
        yield drop_gate(f"drop of {name}: {after.name}", *pair, limit)
