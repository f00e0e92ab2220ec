"""The verb `eval`: the same images through every stage, from PyTorch float to each engine."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone

import numpy as np

from engines.errors import InputError
from engines.files import sha256_of
from engines.images import ImageSet
from engines.run_folder import RunFolder
from faq_deploy import __version__
from faq_deploy.baseline import Candidate, against_baseline, read_baseline
from faq_deploy.blame import Inquiry, find_blame, told
from faq_deploy.checkpoint import METRICS
from faq_deploy.class_rows import class_gate, class_rows
from faq_deploy.engine_gates import engine_gates, with_int8_shares
from faq_deploy.evidence_gates import check_file, code_gates, fall_gate, file_gates
from faq_deploy.flip_gallery import flip_gallery
from faq_deploy.gate import judge, what_images_show
from faq_deploy.limits import Limits
from faq_deploy.metric_gates import metric_gates
from faq_deploy.predictions import Predictions, images_sha256
from faq_deploy.report_layers import report_layers
from faq_deploy.report_model import Epoch, Gate, Report
from faq_deploy.run_data import preprocessing_in_words
from faq_deploy.stage_runs import EvalOptions, LoadedRun, load_run, run_stages
from faq_deploy.stages import Tally
from faq_deploy.stored_net import NetFacts
from faq_deploy.versions import engine_versions

__all__ = ["EvalOptions", "Evaluation", "LoadedRun", "evaluate", "load_run"]


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found.

    Attributes:
        report: with the verdict.
        predictions: what each stage answered.
    """

    report: Report
    predictions: Predictions


def evaluate(
    loaded: LoadedRun,
    images: ImageSet,
    description: str,
    options: EvalOptions,
    *,
    on_images: Callable[[int], None] = lambda count: None,
) -> Evaluation:
    """Run every stage over `images` and judge the result.

    Args:
        loaded: the run.
        images: labelled, in the order of the run's classes.
        description: of the data, for the report.
        options: see `EvalOptions`.
        on_images: told how many more images are done.

    Returns:
        The report, verdict included, and what each stage answered.

    Raises:
        InputError: a bad image, a stale engine, NaN logits.
    """
    earlier = None
    if options.baseline is not None:
        earlier = read_baseline(options.baseline, loaded.quantized.facts.model, images.classes)
    check = check_file(loaded.quantized, loaded.onnx_path)
    ran = run_stages(loaded, images, options, on_images)
    stages, indices, limits = [tally.stage() for tally in ran.tallies], ran.indices, options.limits
    row, in_float, facts = stages[1], ran.in_float, loaded.quantized.facts
    engines = with_int8_shares(loaded.quantized, ran.engines)
    predictions = _predictions(images, indices, ran.tallies)
    digest, onnx_sha256 = images_sha256(predictions.images, predictions.labels), sha256_of(loaded.onnx_path)
    baseline, on_baseline = None, list[Gate]()
    if earlier is not None:
        candidate = Candidate(row, stages, engines, predictions, digest, onnx_sha256)
        baseline, on_baseline = against_baseline(earlier, candidate, limits)
    fall = fall_gate(loaded.run, row, limits.max_fall)
    certain = [*file_gates(check), *code_gates(loaded.quantized, stages), *([fall] if fall else [])]
    certain += [*engine_gates(engines, stages, limits), *_class_gates(predictions, limits), *on_baseline]
    if options.metric is not None:
        certain += metric_gates(stages, options.metric.name, limits.max_metric_drop)
    gates, verdict = judge(stages, limits, certain, predictions)
    inquiry = Inquiry(loaded.run, loaded.quantized, check, images, ran.bad, ran.others, row)
    # what is undecided is no sign of a mistake
    blame, found = find_blame(inquiry, [gate for gate in gates if not gate.undecided])
    if found:
        gates, verdict = judge(stages, limits, [*certain, *found], predictions)
    curve, lost = _curve(loaded.run)
    said = [*verdict.sentences, what_images_show(row), *_about(facts, curve, in_float)]
    report = Report(
        faq_deploy=__version__,
        created=datetime.now(timezone.utc).replace(microsecond=0),
        run=loaded.run.path.resolve().name,
        model=facts.model,
        weights=_weights(facts),
        data=description,
        preprocessing=preprocessing_in_words(facts.preprocessing),
        metric="" if options.metric is None else options.metric.name,
        images=row.images,
        recipe=_flat(json.loads(loaded.quantized.recipe.model_dump_json())),
        verdict=verdict.model_copy(update={"sentences": said}),
        gates=told(gates, blame),
        blame=blame,
        stages=stages,
        layers=report_layers(loaded.quantized, ran.histograms),
        training=curve,
        engines=engines,
        warnings=[*ran.bad.warnings(), *lost, *_differences(ran.others)],
        versions=engine_versions(),
        images_sha256=digest,
        onnx_sha256=onnx_sha256,
        classes=class_rows(predictions),
        flips=flip_gallery(images, indices, predictions),
        baseline=baseline,
    )
    return Evaluation(report, predictions)


def _predictions(images: ImageSet, indices: np.ndarray, tallies: Sequence[Tally]) -> Predictions:
    return Predictions(
        images=[images.identity(int(index)) for index in indices],
        classes=images.classes,
        labels=images.labels[indices],
        answers={tally.name: tally.answered() for tally in tallies if tally.images},
    )


def _class_gates(predictions: Predictions, limits: Limits) -> list[Gate]:
    if limits.max_class_drop is None:
        return []
    stages, allowed = ("PyTorch float", "PyTorch quantized"), limits.allow_undecided
    gate = class_gate(predictions, *stages, limits.max_class_drop, allow_undecided=allowed)
    return [] if gate is None else [gate]


def _about(facts: NetFacts, curve: Sequence[Epoch], in_float: bool) -> Iterator[str]:
    """What a reader of the verdict should know of the net."""
    if curve or facts.epoch:
        calibrated = "The weights are the calibrated ones: every epoch of fine-tuning was worse."
        yield f"The weights are those of the {facts.kept} epoch ({facts.epoch})." if facts.epoch else calibrated
    if in_float:
        yield (
            "Parts of the net are kept in float, so codes that differ, and logits that depend on the batch, are "
            "reported and not judged."
        )


def _differences(stages: Sequence[Tally]) -> Iterator[str]:
    """Where a stage's integers are others, or depend on the batch."""
    for tally in stages:
        if tally.codes.differing:
            count = f"{tally.codes.differing} of {tally.codes.compared}"
            yield f"{tally.name}: {count} codes differ, first in {tally.codes.first}"
        if tally.batch_dependence is not None:
            yield f"{tally.name}: {tally.batch_dependence}"


def _weights(facts: NetFacts) -> str:
    sha256 = "" if facts.weights_sha256 is None else f" (sha256 {facts.weights_sha256[:12]}...)"
    return f"{facts.weights.removeprefix('weights ')}{sha256}".strip()


def _curve(run: RunFolder) -> tuple[list[Epoch], list[str]]:
    """The epochs of fine-tuning, and a warning where their record was lost: it is for the eye alone."""
    if METRICS not in run.manifest().steps["quantize"].outputs:
        return [], []
    try:
        text = run.require("quantize", METRICS).read_text("utf-8")
    except InputError as error:
        return [], [f"{error.what} The report shows no training curve."]
    lines = [json.loads(line) for line in text.splitlines()]
    epochs = [
        Epoch(epoch=line["epoch"] + 1, top1=line["top1"], loss=line["loss"], lr=line["lr"])
        for line in lines
        if line["kind"] == "epoch"
    ]
    return epochs, []


def _flat(table: dict[str, object], prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in table.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
