"""Who broke it: the first stage, layer and channel that leave the net, or the preprocessing, with the likely cause."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from engines.causes import likely_cause
from engines.image_batches import BadImages, batches
from engines.images import ImageSet
from engines.ort import OrtRunner
from engines.parity import top1
from engines.run_folder import RunFolder
from engines.swaps import IMAGES, restoring_swap, spread
from faq_deploy.class_order import other_class_order
from faq_deploy.evidence_gates import FALL, FileCheck
from faq_deploy.first_layer import FirstLayer, walk
from faq_deploy.report_model import Blame, Gate, Stage
from faq_deploy.stages import Tally
from faq_deploy.stored_net import StoredNet

__all__ = ["ALL_STAGES", "Inquiry", "find_blame", "told"]

ALL_STAGES = "all stages"
_CHANCE = 1.2  # times what guessing gives: no more than luck
_FEW = 96  # images that are tried where no gate broke: what restores top-1 from chance shows on these
_ENOUGH = 95.0  # percent of the wanted top-1: a swap that reaches it is the one
# gates on what an engine is, or how fast: no answer is wrong
_NOT_ANSWERS = {"engine bytes", "INT8 share", "latency ratio", "required runtime", "bytes growth", "latency growth"}
# gates on PyTorch quantized against nets whose images are prepared in the same way, and what breaks them
_AGAINST = {
    "drop of quantization": "quantization",
    "largest drop of a class": "quantization",
    "regression": "other weights",
}


@dataclass(frozen=True)
class Inquiry:
    """What an evaluation left to look at.

    Attributes:
        run: the run.
        stored: its quantized net.
        check: of its model.onnx.
        images: that were evaluated.
        bad: those among them that were left out.
        tallies: the stages after PyTorch quantized.
        quantized: PyTorch quantized's row.
    """

    run: RunFolder
    stored: StoredNet
    check: FileCheck
    images: ImageSet
    bad: BadImages
    tallies: Sequence[Tally]
    quantized: Stage


def find_blame(asked: Inquiry, gates: Sequence[Gate]) -> tuple[Blame | None, list[Gate]]:
    """Find where it goes wrong first.

    The images are tried with other preprocessing only where all stages agree and top-1 is suspicious.

    Args:
        asked: the evaluation.
        gates: as judged so far.

    Returns:
        The blame, None where nothing is wrong; and a gate on the preprocessing where that was tried.
    """
    broken = [gate for gate in gates if not gate.passed and _on_answers(gate)]
    if not broken and any(node.is_float for node in asked.stored.net.graph):
        return None, []  # nobody promises the same codes in float
    differing = next((t for t in asked.tallies if t.example is not None), None)
    if asked.check.facts:
        return _of_facts(asked.check.facts), []
    if differing is not None:
        return _of_stage(asked, differing), []
    if asked.check.constants:
        return _of_constants(asked.check), []
    suspicious = any(_on_accuracy(gate) for gate in broken) or _near_chance(asked)
    return _of_images(asked, broken) if suspicious else (None, [])


def told(gates: Sequence[Gate], blame: Blame | None) -> list[Gate]:
    """The gates, each broken one on answers with the blame in its detail: what CI shows beside a failed test."""
    if blame is None:
        return list(gates)
    said = " ".join(blame.sentences)
    return [
        gate
        if gate.passed or not _on_answers(gate)
        else gate.model_copy(update={"detail": f"{gate.detail}. {said}".lstrip(". ")})
        for gate in gates
    ]


def _of_facts(facts: Sequence[str]) -> Blame:
    return Blame(
        stage="model.onnx",
        cause="preprocessing",
        sentences=[
            "model.onnx says otherwise than the run how images are prepared or what its classes are: "
            f"{'; '.join(facts)}.",
            "Likely cause: its metadata was edited, and every box that reads it prepares images in another way.",
            "Note: export again.",
        ],
    )


def _of_constants(check: FileCheck) -> Blame:
    """A change of the file that shows in none of the images."""
    first = check.constants[0]
    more = f" ({len(check.constants) - 1} more)" if len(check.constants) > 1 else ""
    return Blame(
        stage="model.onnx",
        cause="changed file",
        layer=first.layer,
        module=first.module,
        tensor=first.tensor,
        sentences=[
            f"model.onnx is not the net: {first}{more}; none of the images that were compared shows it.",
            "Likely cause: the file was edited, or damaged and recorded again.",
            "Note: export again, and build the engines again.",
        ],
    )


def _of_stage(asked: Inquiry, tally: Tally) -> Blame:
    assert tally.example is not None
    found = walk(asked.run, asked.stored, asked.run / "model.onnx", asked.check, tally, tally.example.image)
    cause = likely_cause(found.evidence)
    image = _name_of(asked, tally.example.position)
    first = found.first
    notes = [found.note] if found.note else []
    return Blame(
        stage=tally.name,
        cause=cause.name,
        layer=found.layer,
        module=found.module,
        tensor=found.tensor,
        image=image,
        differing=None if first is None else first.count,
        compared=None if first is None else found.compared,
        largest=None if first is None else first.largest,
        channel=None if first is None else first.channel,
        sentences=[
            " ".join([_place(tally.name, found, image), *notes]),
            f"Likely cause: {cause.says(found.evidence)}",
            f"Note: {cause.remedy}",
        ],
    )


def _place(stage: str, found: FirstLayer, image: str) -> str:
    module = f" (module {found.module})" if found.module and found.module != found.layer else ""
    start = f"{stage} first leaves PyTorch quantized in {found.layer}{module}"
    if found.first is None:
        return f"{start}: logits differ for image {image}, and no code before them."
    first = found.first
    channel = "" if first.channel is None else f", the most in channel {first.channel}"
    return (
        f"{start}: {first.count:,} of {found.compared:,} codes of {found.tensor} differ by up to {first.largest}"
        f"{channel} (image {image})."
    )


def _of_images(asked: Inquiry, broken: Sequence[Gate]) -> tuple[Blame | None, list[Gate]]:
    """All stages agree, and top-1 is too low: try what is often wrong with images and classes."""
    # all stages agree: this one needs the least time of those that can run everywhere
    runner, classes = OrtRunner(asked.run / "model.onnx", oracle=True), asked.images.classes
    recorded = asked.run.manifest().steps["quantize"].facts.get("top1")
    recorded = float(recorded) if isinstance(recorded, int | float) else 0.0
    goal = _ENOUGH / 100 * recorded if recorded else None
    most = IMAGES if broken else _FEW
    chosen = spread(len(asked.images), most)
    answers, labels = [], []
    for batch in batches(asked.images, chosen, on_bad="skip", bad=BadImages()):
        answers.append(top1(runner(batch.images)))
        labels.append(batch.labels)
    order = other_class_order(np.concatenate(answers), np.concatenate(labels), classes) if answers else None
    trial = restoring_swap(asked.images, runner, goal=goal, most=most)
    order = order if order is not None and _restores(order.before, order.after, recorded) else None
    trial = trial if trial is not None and _restores(trial.before, trial.after, recorded) else None
    tried = "on images that a failed evaluation tries other preprocessing and class orders on"
    if order is not None and (trial is None or order.after >= trial.after):
        return _swapped(
            "class order", order.says, "give a --class-order, or a folder with the net's classes.", order, tried
        )
    if trial is not None:
        return _swapped("preprocessing", trial.swap.says, trial.swap.remedy, trial, tried)
    if not broken:
        return None, []
    return _of_the_net(asked, broken), []


def _of_the_net(asked: Inquiry, broken: Sequence[Gate]) -> Blame:
    """No swap restores top-1: then the weights are to blame, or the images themselves."""
    causes = {_AGAINST.get(gate.name, "other images") for gate in broken}
    cause = "other images" if "other images" in causes else min(causes)
    likely, note = {
        "quantization": (
            "quantization itself: the float net is better on the same images, prepared in the same way.",
            "train for more epochs or at more bits; `faq-deploy analyze` shows the layers that lose most.",
        ),
        "other weights": (
            "other weights, or another recipe, than the baseline's: it was better, and no stage adds an error.",
            "compare the recipes and the top-1 that quantize printed for both.",
        ),
        "other images": (
            "the images themselves, or weights that were never right on such: no swap of colours, mean and std, size "
            "or class order restores top-1.",
            "look at the images of the classes that lost most, and at the top-1 that quantize printed.",
        ),
    }[cause]
    return Blame(
        stage=ALL_STAGES,
        cause=cause,
        sentences=[
            f"All stages agree, and are right on {asked.quantized.top1:.2f} % of the images.",
            f"Likely cause: {likely}",
            f"Note: {note}",
        ],
    )


def _swapped(cause: str, says: str, remedy: str, found: object, tried: str) -> tuple[Blame, list[Gate]]:
    images, before, after = (getattr(found, name) for name in ("images", "before", "after"))
    gate = Gate(
        name=cause,
        limit=0,
        value=round(after - before, 2),
        passed=False,
        detail=f"points of top-1 that another {cause} gains, {tried}",
    )
    sentences = [
        f"All stages agree. On {images} images top-1 is {before:.2f} %, {after:.2f} % where this is undone: {says}.",
        f"Likely cause: {says}.",
        f"Note: {remedy}",
    ]
    return Blame(stage=ALL_STAGES, cause=cause, sentences=sentences), [gate]


def _restores(before: float, after: float, recorded: float) -> bool:
    """Whether a swap gives back half of what was lost, or, where nothing better was ever measured, halves the error."""
    wanted = recorded if recorded > before + 1 else 100.0
    return after - before >= (wanted - before) / 2


def _on_answers(gate: Gate) -> bool:
    return gate.name.split(":")[0] not in _NOT_ANSWERS


def _on_accuracy(gate: Gate) -> bool:
    """Whether a gate is on PyTorch quantized itself, rather than on what was built from it."""
    return gate.name == FALL or ":" not in gate.name


def _near_chance(asked: Inquiry) -> bool:
    count = len(asked.images.classes)
    return count > 1 and (asked.quantized.top1 or 0.0) <= _CHANCE * 100 / count


def _name_of(asked: Inquiry, position: int) -> str:
    """The name of the image that was run as number `position`."""
    names = (asked.images.identity(index) for index in range(len(asked.images)))
    kept = (name for name in names if name not in asked.bad.reasons)
    return next(name for number, name in enumerate(kept) if number == position)
