"""The verb `eval --bundle`: the accuracy of a bundle's engine on this machine, against the oracle; needs no torch."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from engines.build import BuildResult, build_onnx_file
from engines.build_options import BuildOptions
from engines.errors import CannotRunHere, InputError
from engines.first_difference import layer_before
from engines.host import RuntimeName
from engines.image_batches import BadImages, OnBad, batches
from engines.image_files import class_folders
from engines.images import ArrayImages, ImageFolder, ImageSet
from engines.invariance import batch_sentence
from engines.open_engine import open_engine
from engines.opened_bundle import OpenedBundle, opened
from engines.ort import OrtRunner
from engines.parity import LogitParity, accuracy, compare_codes, compare_logits, logits_of_bits
from engines.reference import ReferenceRunner
from engines.runner import FloatArray, Runner

__all__ = ["BundleReport", "EngineScore", "Limits", "ReferenceScore", "evaluate_bundle"]

_VALIDATION: Final = ("val", "valid", "validation", "test")
_AT_ONCE: Final = 2  # images whose codes are in memory
_BATCHED: Final = 8  # samples that are run alone and in batches


@dataclass(frozen=True)
class Limits:
    """The gates.

    Attributes:
        max_drop: points of top-1 that the engine may lose against the oracle.
        max_flips: images whose top-1 may differ.
        allow_skip: pass although the engine can't run here.
        min_top1: percent that the oracle must reach on the images; None for no such gate.
    """

    max_drop: float = 0.1
    max_flips: int = 0
    allow_skip: bool = False
    min_top1: float | None = None


@dataclass(frozen=True)
class EngineScore:
    """One engine on all images.

    Attributes:
        name: of the engine.
        top1: in percent.
        parity: how its logits compare with the oracle's.
        batch: a sentence where an image's logits depend on its batch; not looked for where parts of the net are in
            float.
        skipped: why it did not run.
    """

    name: str
    top1: float | None = None
    parity: LogitParity | None = None
    batch: str = ""
    skipped: str = ""


@dataclass(frozen=True)
class ReferenceScore:
    """The integer reference against the oracle, on the first images.

    Attributes:
        logits: how they compare.
        codes: integers that were compared.
        differing: how many of them differ.
        first: the layer whose codes differ first; empty where none do.
    """

    logits: LogitParity
    codes: int
    differing: int
    first: str


@dataclass(frozen=True)
class BundleReport:
    """What `eval --bundle` found.

    Attributes:
        bundle: the file.
        data: which images.
        images: how many of them.
        top1: of the oracle (onnxruntime without optimizations), in percent.
        reference: the integer reference on the first images.
        engines: one a wanted engine.
        warnings: about the images, and about codes that differ.
        broken: sentences, one a gate that was not kept.
        exit_code: 0 passed, 1 a gate broken, 3 an engine was skipped.
    """

    bundle: str
    data: str
    images: int
    top1: float | None
    reference: ReferenceScore
    engines: tuple[EngineScore, ...]
    warnings: tuple[str, ...]
    broken: tuple[str, ...]
    exit_code: int


def evaluate_bundle(
    bundle: Path,
    data: Path | None,
    runtimes: Sequence[RuntimeName],
    limits: Limits,
    *,
    version: str,
    batch_size: int = 32,
    code_images: int = 64,
    reference_images: int = 64,
    on_bad: OnBad = "error",
    on_images: Callable[[int], None] = lambda count: None,
) -> BundleReport:
    """Build the engine of a bundle for this machine and judge it against the oracle.

    Args:
        bundle: the file.
        data: labelled images, one folder a class, or a folder that holds such a validation folder; None takes the
            samples of the bundle.
        runtimes: what to build for; empty takes TensorRT where it runs, else onnxruntime.
        limits: the gates.
        version: of faq-deploy.
        batch_size: images a batch.
        code_images: of those that the reference runs, how many have all their codes compared.
        reference_images: images that the integer reference runs (up to a second each at ResNet-18's size).
        on_bad: what to do about an image that can't be read.
        on_images: told how many more images are done.

    Returns:
        The report.

    Raises:
        InputError: a damaged bundle, no such data, classes that the network doesn't know, or a bad image.
    """
    bad, labels = BadImages(), []
    expected: list[FloatArray] = []
    with opened(bundle) as found, contextlib.ExitStack() as closing:
        images = _images(found, data)
        results = build_onnx_file(found.model, found.folder / "engines", runtimes, (), BuildOptions(), version=version)
        runners, skipped = _load(found, results, closing)
        oracle = OrtRunner(found.model, oracle=True)
        reference = _Reference(found, oracle, reference_images, code_images)
        logits: dict[str, list[FloatArray]] = {name: [] for name in runners}
        for batch in batches(images, None, batch_size, on_bad=on_bad, bad=bad):
            expected.append(oracle(batch.images))
            labels.append(batch.labels)
            reference.run(batch.images, expected[-1])
            for name, runner in runners.items():
                logits[name].append(runner(batch.images))
            on_images(len(batch.labels))
        dependent = {name: _batch_sentence(found, runner) for name, runner in runners.items()}
    if not labels:
        raise InputError(f"No image of {images.name} can be read.", "give a folder with images.")
    wanted, truth = np.concatenate(expected), np.concatenate(labels)
    top1, score = accuracy(wanted, truth), reference.score()
    scores = [EngineScore(name, skipped=reason) for name, reason in skipped.items()]
    for name, pieces in logits.items():
        whole = np.concatenate(pieces)
        scores.append(EngineScore(name, accuracy(whole, truth), compare_logits(whole, wanted), dependent[name]))
    wrong = limits.min_top1 is not None and (top1 is None or top1 < limits.min_top1 - 1e-9)
    low = (f"top-1 is {top1:.2f} %, the limit is {limits.min_top1:g} %.",) if wrong else ()
    broken = (*low, *_flipped("The integer reference", score.logits, limits), *_broken(scores, top1, limits))
    is_skipped = bool(skipped) and not limits.allow_skip
    return BundleReport(
        bundle=str(bundle),
        data=images.name,
        images=len(truth),
        top1=top1,
        reference=score,
        engines=tuple(scores),
        warnings=(*bad.warnings(), *_about(score)),
        broken=broken,
        exit_code=1 if broken else 3 if is_skipped else 0,
    )


class _Reference:
    """The integer reference, run on the first images only: it is thorough, and slow."""

    def __init__(self, bundle: OpenedBundle, oracle: OrtRunner, images: int, code_images: int) -> None:
        self._graph, self._oracle, self._runner = bundle.graph, oracle, ReferenceRunner(bundle.model)
        self._left, self._codes_left = images, min(images, code_images)
        self._logits: list[FloatArray] = []
        self._expected: list[FloatArray] = []
        self._compared = self._differing = 0
        self._first = ""

    def run(self, images: FloatArray, expected: FloatArray) -> None:
        """Run what is left to run of a batch; `expected` are the oracle's logits."""
        count, done = min(len(images), self._left), 0
        while done < count:
            piece = images[done : min(count, done + min(_AT_ONCE, self._codes_left or _AT_ONCE))]
            self._logits.append(self._with_codes(piece) if self._codes_left else self._runner(piece))
            done += len(piece)
        self._expected.append(expected[:count])
        self._left -= count

    def _with_codes(self, images: FloatArray) -> FloatArray:
        """The logits, once the codes before them were compared."""
        found = self._runner.codes(images)
        parity = compare_codes(found, self._oracle.codes(images), self._graph.code_names)
        self._compared, self._differing = self._compared + parity.compared, self._differing + parity.differing
        if parity.first is not None and not self._first:
            self._first = layer_before(self._graph, parity.first.tensor)
        self._codes_left -= len(images)
        return logits_of_bits(found["logits"])

    def score(self) -> ReferenceScore:
        logits = compare_logits(np.concatenate(self._logits), np.concatenate(self._expected))
        return ReferenceScore(logits, self._compared, self._differing, self._first)


def _load(
    bundle: OpenedBundle, results: Sequence[BuildResult], closing: contextlib.ExitStack
) -> tuple[dict[str, Runner], dict[str, str]]:
    """The engines that run here, by name, and why the others don't."""
    runners: dict[str, Runner] = {}
    skipped = {result.name: result.reason for result in results if result.manifest is None}
    for result in results:
        if result.manifest is None:
            continue
        try:
            runner = open_engine(bundle.folder / "engines" / result.name, result.manifest.onnx_sha256)
        except CannotRunHere as error:
            skipped[result.name] = error.what
            continue
        closing.callback(runner.close)
        runners[result.name] = runner
    return runners, skipped


def _batch_sentence(bundle: OpenedBundle, runner: Runner) -> str:
    """Where nobody promises that a sum is the same in every batch, it is not looked for."""
    if bundle.manifest.float_parts:
        return ""
    profile = BuildOptions().profile
    said = batch_sentence(runner, bundle.images()[:_BATCHED], (profile.best, profile.largest))
    return f"{runner.name}: {said}" if said else ""


def _images(bundle: OpenedBundle, data: Path | None) -> ImageSet:
    classes = bundle.classes or tuple(map(str, range(bundle.samples.expected.logits.shape[1])))
    if data is None:
        pixels = bundle.samples.pixels
        # they are as the network sees them: resized and cropped once, and not again
        done = bundle.preprocessing.model_copy(update={"resize": None, "crop": None})
        return ArrayImages(pixels, bundle.samples.labels, classes, done, f"the {len(pixels)} samples of the bundle")
    if not data.is_dir() and str(data).partition(":")[0] in ("digits", "cifar10"):
        raise InputError(f"--data {data} is for runs: a bundle is judged on a folder of images.", "name such a folder.")
    names = class_folders(data)
    validation = next((name for name in _VALIDATION if name in names and name not in classes), None)
    return ImageFolder(data if validation is None else data / validation, bundle.preprocessing, classes)


def _broken(scores: Sequence[EngineScore], top1: float | None, limits: Limits) -> Iterator[str]:
    for score in scores:
        if score.parity is None:
            continue
        drop = None if top1 is None or score.top1 is None else top1 - score.top1
        if drop is not None and drop > limits.max_drop + 1e-9:
            limit = f"the limit is {limits.max_drop:g}"
            yield f"{score.name} loses {drop:.2f} points of top-1 against the oracle, and {limit}."
        yield from _flipped(score.name, score.parity, limits)
        if score.batch:
            yield score.batch


def _flipped(name: str, parity: LogitParity, limits: Limits) -> Iterator[str]:
    if parity.flips > limits.max_flips:
        limit = f"the limit is {limits.max_flips}"
        yield f"{name} names another class than the oracle for {parity.flips} images, and {limit}."


def _about(score: ReferenceScore) -> Iterator[str]:
    if score.differing:
        yield f"the integer reference: {score.differing} of {score.codes} codes differ, first in {score.first}"
