"""What snapping costs: a file before and after on the user's images, with what so many images can show. No torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from engines.errors import InputError, NotInstalled
from engines.image_batches import BadImages, OnBad, batches
from engines.image_files import VALIDATION_FOLDERS, class_folders
from engines.images import ImageFolder, ImageSet
from engines.ort import OrtRunner
from engines.parity import top1
from engines.preprocess import Preprocessing
from engines.qdq_graph import load_model, read_graph
from engines.runner import FloatArray
from faq_deploy.data import default_preprocessing, open_data
from faq_deploy.run_data import DataOptions, preprocessing_for
from faq_deploy.statistics import Interval, Pairs, drop_interval, mcnemar, pairs_of, wilson

__all__ = ["SnapAccuracy", "images_for", "measure"]

_SMALL: Final = 64  # pixels; up to here images are stored at the size that the network reads
_IMAGENET: Final = 256 / 224  # how much larger the image is before the crop


@dataclass(frozen=True)
class SnapAccuracy:
    """A file before and after, on the same images.

    Attributes:
        data: which images.
        images: how many.
        before: top-1 of the file in percent.
        before_interval: Wilson's, 95 %.
        after: top-1 of the snapped file in percent.
        after_interval: Wilson's, 95 %.
        pairs: images lost, gained and answered otherwise.
        drop_interval: of the points lost, 95 %.
        p_value: of the exact McNemar test on lost and gained.
        warnings: about images that were skipped.
    """

    data: str
    images: int
    before: float
    before_interval: Interval
    after: float
    after_interval: Interval
    pairs: Pairs
    drop_interval: Interval
    p_value: float
    warnings: tuple[str, ...]


def images_for(model: Path, options: DataOptions) -> ImageSet:
    """The images that a file is judged on.

    Args:
        model: whose input says colour and size where the options don't.
        options: of the command line; `data` is a folder of class folders, or one that holds such a validation folder,
            or `digits`, or `cifar10:DIR`.

    Returns:
        The validation images. From 65 pixels on, images are resized to 8/7 of the crop, as is usual for ImageNet.

    Raises:
        InputError: no such data, or the file doesn't read images.
        NotInstalled: scipy is not installed.
    """
    assert options.data is not None
    _require_scipy()  # before anything is written
    preprocessing = preprocessing_for(options, default_preprocessing(options.data) or _preprocessing_of(model))
    folder = Path(options.data).expanduser()
    if folder.is_dir():
        names = class_folders(folder)
        inner = next((name for name in VALIDATION_FOLDERS if name in names), None)
        root = folder if inner is None else folder / inner
        return ImageFolder(root, preprocessing, class_folders(root, options.class_order or "lexical"))
    return open_data(options.data, preprocessing=preprocessing, class_order=options.class_order).val


def measure(
    before: Path,
    after: Path,
    images: ImageSet,
    *,
    batch_size: int = 32,
    on_bad: OnBad = "error",
    on_images: Callable[[int], None] = lambda count: None,
) -> SnapAccuracy:
    """Run both files on all images, in onnxruntime without optimizations: each operator as it is written.

    Args:
        before: the file.
        after: the snapped one.
        images: labelled, class i for output i.
        batch_size: images a batch; a batch that the file fixes counts more.
        on_bad: what to do about an image that can't be read.
        on_images: told how many more images are done.

    Returns:
        Accuracies, flips and intervals.

    Raises:
        InputError: a bad image, images that don't fit the file, or another number of classes.
        NotInstalled: onnxruntime is not installed.
    """
    bad = BadImages()
    runners = [OrtRunner(path, oracle=True) for path in (before, after)]
    fixed = read_graph(load_model(before)).input_shape[0]
    found: list[list[npt.NDArray[np.int64]]] = [[], []]
    labels = []
    for batch in batches(images, None, fixed or batch_size, on_bad=on_bad, bad=bad):
        for answers, runner in zip(found, runners, strict=True):
            answers.append(top1(_logits(runner, batch.images, fixed, images)))
        labels.append(batch.labels)
        on_images(len(batch.labels))
    if not labels:
        raise InputError(f"No image of {images.name} can be read.", "give a folder with images.")
    truth, first, second = np.concatenate(labels), np.concatenate(found[0]), np.concatenate(found[1])
    pairs = pairs_of(truth, first, second)
    right = [int(np.count_nonzero(answers == truth)) for answers in (first, second)]
    return SnapAccuracy(
        data=images.name,
        images=len(truth),
        before=100 * right[0] / len(truth),
        before_interval=wilson(right[0], len(truth)),
        after=100 * right[1] / len(truth),
        after_interval=wilson(right[1], len(truth)),
        pairs=pairs,
        drop_interval=drop_interval(pairs),
        p_value=mcnemar(pairs),
        warnings=tuple(bad.warnings()),
    )


def _require_scipy() -> None:
    try:
        import scipy  # noqa: F401
    except ImportError as error:
        raise NotInstalled("--data needs scipy, for the intervals.", "install it with `pip install scipy`.") from error


def _logits(runner: OrtRunner, batch: FloatArray, fixed: int | None, images: ImageSet) -> FloatArray:
    """Logits of a batch, which is filled up where the file fixes its size."""
    count = len(batch)
    filled = batch if fixed is None else np.resize(batch, (fixed, *batch.shape[1:]))
    logits = runner(filled)[:count]
    if logits.ndim != 2 or logits.shape[1] != len(images.classes):
        given = logits.shape[1] if logits.ndim == 2 else f"an output of shape {logits.shape[1:]}"
        raise InputError(
            f"The file has {given} classes, but {images.name} has {len(images.classes)}.",
            "--data takes a folder with one folder for each class of the network.",
        )
    return logits


def _preprocessing_of(model: Path) -> Preprocessing:
    shape = read_graph(load_model(model)).input_shape
    if len(shape) != 4 or shape[1] not in (1, 3, None):
        raise InputError(
            f"{model} reads a tensor of shape {tuple(size or 'any' for size in shape)}, not images (N, C, H, W).",
            "snap it without --data, and judge the result with your own tools.",
        )
    _, channels, height, width = shape
    crop = (height, width) if height and width else (224, 224)
    resize = None if max(crop) <= _SMALL else round(min(crop) * _IMAGENET)
    if channels == 1:
        return Preprocessing(color="L", mean=(0.449,), std=(0.226,), resize=resize, crop=crop)
    return Preprocessing(resize=resize, crop=crop)
