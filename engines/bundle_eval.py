"""The verb `eval --bundle`: the accuracy of a bundle's engine on this machine, against the oracle; needs no torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from engines.build import BuildResult, build_onnx_file
from engines.build_options import BuildOptions
from engines.errors import CannotRunHere, InputError
from engines.host import RuntimeName
from engines.image_batches import BadImages, OnBad, batches
from engines.image_files import class_folders
from engines.images import ArrayImages, ImageFolder, ImageSet
from engines.open_engine import open_engine
from engines.opened_bundle import OpenedBundle, opened
from engines.ort import OrtRunner
from engines.parity import LogitParity, accuracy, compare_logits
from engines.runner import FloatArray

__all__ = ["BundleReport", "EngineScore", "Limits", "evaluate_bundle"]

_VALIDATION: Final = ("val", "valid", "validation", "test")


@dataclass(frozen=True)
class Limits:
    """The gates.

    Attributes:
        max_drop: points of top-1 that the engine may lose against the oracle.
        max_flips: images whose top-1 may differ.
        allow_skip: pass although the engine can't run here.
    """

    max_drop: float = 0.1
    max_flips: int = 0
    allow_skip: bool = False


@dataclass(frozen=True)
class EngineScore:
    """One engine on all images: its top-1 in percent and how its logits compare; `skipped` says why it did not run."""

    name: str
    top1: float | None = None
    parity: LogitParity | None = None
    skipped: str = ""


@dataclass(frozen=True)
class BundleReport:
    """What `eval --bundle` found.

    Attributes:
        bundle: the file.
        data: which images.
        images: how many of them.
        top1: of the oracle (onnxruntime without optimizations), in percent.
        engines: one a wanted engine.
        warnings: about the images.
        broken: sentences, one a gate that was not kept.
        exit_code: 0 passed, 1 a gate broken, 3 an engine was skipped.
    """

    bundle: str
    data: str
    images: int
    top1: float | None
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
        on_bad: what to do about an image that can't be read.
        on_images: told how many more images are done.

    Returns:
        The report.

    Raises:
        InputError: a damaged bundle, no such data, classes that the network doesn't know, or a bad image.
    """
    with opened(bundle) as found:
        images = _images(found, data)
        results = build_onnx_file(found.model, found.folder / "engines", runtimes, (), BuildOptions(), version=version)
        runners = {}
        skipped = {r.name: EngineScore(r.name, skipped=r.reason) for r in results if r.manifest is None}
        for result in results:
            if result.manifest is not None:
                try:
                    runners[result.name] = open_engine(found.folder / "engines" / result.name)
                except CannotRunHere as error:
                    skipped[result.name] = EngineScore(result.name, skipped=error.what)
        bad, labels = BadImages(), []
        oracle = OrtRunner(found.model, oracle=True)
        expected: list[FloatArray] = []
        logits: dict[str, list[FloatArray]] = {name: [] for name in runners}
        try:
            for batch in batches(images, None, batch_size, on_bad=on_bad, bad=bad):
                expected.append(oracle(batch.images))
                labels.append(batch.labels)
                for name, runner in runners.items():
                    logits[name].append(runner(batch.images))
                on_images(len(batch.labels))
        finally:
            for runner in runners.values():
                runner.close()
    if not labels:
        raise InputError(f"No image of {images.name} can be read.", "give a folder with images.")
    wanted, truth = np.concatenate(expected), np.concatenate(labels)
    scores = tuple(skipped.get(r.name) or _score(r, np.concatenate(logits[r.name]), wanted, truth) for r in results)
    top1 = accuracy(wanted, truth)
    broken = tuple(s for score in scores for s in _broken(score, top1, limits))
    is_skipped = bool(skipped) and not limits.allow_skip
    return BundleReport(
        bundle=str(bundle),
        data=images.name,
        images=len(truth),
        top1=top1,
        engines=scores,
        warnings=tuple(bad.warnings()),
        broken=broken,
        exit_code=1 if broken else 3 if is_skipped else 0,
    )


def _images(bundle: OpenedBundle, data: Path | None) -> ImageSet:
    classes = bundle.classes or tuple(map(str, range(bundle.samples.expected.logits.shape[1])))
    if data is None:
        pixels = bundle.samples.pixels
        # they are as the network sees them: resized and cropped once, and not again
        done = bundle.preprocessing.model_copy(update={"resize": None, "crop": None})
        return ArrayImages(pixels, bundle.samples.labels, classes, done, f"the {len(pixels)} samples of the bundle")
    names = class_folders(data)
    validation = next((name for name in _VALIDATION if name in names and name not in classes), None)
    return ImageFolder(data if validation is None else data / validation, bundle.preprocessing, classes)


def _score(result: BuildResult, logits: FloatArray, expected: FloatArray, labels: np.ndarray) -> EngineScore:
    return EngineScore(result.name, accuracy(logits, labels), compare_logits(logits, expected))


def _broken(score: EngineScore, top1: float | None, limits: Limits) -> list[str]:
    if score.parity is None:
        return []
    found = []
    drop = None if top1 is None or score.top1 is None else top1 - score.top1
    if drop is not None and drop > limits.max_drop + 1e-9:
        found.append(
            f"{score.name} loses {drop:.2f} points of top-1 against the oracle, and the limit is {limits.max_drop:g}."
        )
    if score.parity.flips > limits.max_flips:
        found.append(
            f"{score.name} names another class than the oracle for {score.parity.flips} images, "
            f"and the limit is {limits.max_flips}."
        )
    return found
