"""Data by name: `digits`, `cifar10:DIR` or any folder of images, split into training and validation images."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np

from engines.errors import CannotRunHere, InputError
from engines.image_files import ClassOrder, class_folders, is_number
from engines.images import ArrayImages, DataWarning, ImageFolder, ImageSet, ImageSubset, IndexArray
from engines.preprocess import Preprocessing

__all__ = [
    "VALIDATION_FOLDERS",
    "Augment",
    "Splits",
    "calibration_indices",
    "default_preprocessing",
    "hold_out",
    "open_data",
]

Augment = Literal["none", "shift", "cifar", "imagenet"]

_DIGITS: Final = "digits"
_CIFAR10: Final = "cifar10:"
_DIGITS_TRAIN_FRACTION: Final = 0.75
VALIDATION_FOLDERS: Final = ("val", "valid", "validation", "test")
_SMALL_CROP: Final = (
    64  # pixels; up to here images are of the CIFAR kind, and cropping parts out of them loses too much
)


@dataclass(frozen=True)
class Splits:
    """What a data spec gave.

    Attributes:
        train: images to train and calibrate on.
        val: images to evaluate on; same classes in the same order.
        held_out: True if `val` was drawn from the training images, False if the data brought its own.
        description: one line for the log and the report.
        augment: what `augment = "auto"` means for these images.
    """

    train: ImageSet
    val: ImageSet
    held_out: bool
    description: str
    augment: Augment


def default_preprocessing(spec: str) -> Preprocessing | None:
    """The preprocessing that belongs to a data set; None for folders, where it belongs to the network's weights.

    Args:
        spec: as for `open_data`.
    """
    if spec == _DIGITS:
        return Preprocessing(color="L", crop=8, mean=(0.3061,), std=(0.3769,))  # measured over all 1,797 images
    if spec.startswith(_CIFAR10):
        return Preprocessing(crop=32, mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616))
    return None


def open_data(
    spec: str,
    *,
    preprocessing: Preprocessing,
    train_fraction: float | None = None,
    seed: int = 0,
    class_order: ClassOrder | None = None,
    classes: Sequence[str] | None = None,
) -> Splits:
    """Open a data set and split it.

    Args:
        spec: `digits` (scikit-learn's, 8x8 grey), `cifar10:DIR` (the Python version, unpacked in DIR), or a folder that
            holds train/ and val/ (or valid/, validation/, test/), or one folder per class with `train_fraction`.
        preprocessing: how images are prepared.
        train_fraction: share of the images to train on where the data has no split of its own, between 0 and 1; per
            class as far as counts allow. None means 0.75 for digits.
        seed: of that split.
        class_order: of class folders; None means lexical, with a warning where the names are numbers.
        classes: class names in the order of the network's outputs (of a run or checkpoint); None takes the folders.

    Returns:
        Both sets, with the same classes.

    Raises:
        InputError: the data is missing, empty or doesn't fit the arguments.
        CannotRunHere: a package that the data set needs is not installed.
    """
    if spec == _DIGITS:
        digits = _digits(preprocessing)
        _require_classes(digits, classes)
        fraction = _DIGITS_TRAIN_FRACTION if train_fraction is None else train_fraction
        return _held_out(digits, "scikit-learn's digits", fraction, seed, "shift")
    if spec.startswith(_CIFAR10):
        _refuse_fraction(spec, train_fraction)
        train, val = (_cifar10(Path(spec.removeprefix(_CIFAR10)), part, preprocessing) for part in ("train", "test"))
        _require_classes(train, classes)
        return _with_own_split(train, val, "CIFAR-10", "cifar")
    root = Path(spec).expanduser()
    if not root.is_dir():
        raise InputError(
            f"The data folder {root} {'is a file, not a folder' if root.exists() else 'does not exist'}.",
            "--data takes a folder of images, digits, or cifar10:DIR.",
        )
    train_root, val_root = _split_folders(root)
    names = tuple(classes) if classes is not None else _folder_classes(train_root, class_order)
    images = ImageFolder(train_root, preprocessing, names)
    augment = _folder_augment(preprocessing)
    if val_root is not None:
        _refuse_fraction(spec, train_fraction)
        return _with_own_split(images, ImageFolder(val_root, preprocessing, names), str(root), augment)
    if train_fraction is None:
        raise InputError(
            f"{root} does not hold train/ and a validation folder ({', '.join(VALIDATION_FOLDERS)}).",
            "pass --train-fraction 0.8 to train on 80 % of its images, one folder per class, and evaluate on the rest.",
        )
    return _held_out(images, str(root), train_fraction, seed, augment)


def hold_out(labels: IndexArray, train_fraction: float, seed: int) -> tuple[IndexArray, IndexArray]:
    """Draw a training and a validation part, class by class in proportion.

    A class keeps at least one image for training, unless it has a single one: that goes to either part.

    Args:
        labels: int64, shape (N,).
        train_fraction: share of the training part, between 0 and 1.
        seed: of the draw.

    Returns:
        Indices of the training and of the validation images, each sorted; together all N.

    Raises:
        InputError: the fraction isn't between 0 and 1, or leaves one part empty.
    """
    if not 0 < train_fraction < 1:
        raise InputError(f"The training fraction {train_fraction} is not between 0 and 1.", "pass, for example, 0.8.")
    rng = _generator(seed, "hold out")
    counts = np.bincount(labels)
    available = np.where(counts > 1, counts - 1, counts)
    wanted = min(round(len(labels) * (1 - train_fraction)), int(available.sum()))
    val = np.sort(_draw(labels, _proportional(available, wanted, rng), rng))
    train = np.setdiff1d(np.arange(len(labels)), val)
    if not len(train) or not len(val):
        raise InputError(
            f"A training fraction of {train_fraction} splits the images into {len(train)} for training and {len(val)} "
            "for validation.",
            "pass another fraction, or more images.",
        )
    return train, val


def calibration_indices(labels: IndexArray, count: int, seed: int) -> IndexArray:
    """Draw images to calibrate on: from all classes, in proportion, and mixed.

    The draw depends on the labels and the seed alone; image sets are ordered by file name, so that neither the order on
    disk nor the number of workers matters. Where `count` allows, each class gives at least one image.

    Args:
        labels: int64, shape (N,).
        count: how many; fewer are returned where there are fewer.
        seed: of the draw.

    Returns:
        Distinct indices in random order, shape (min(count, N),).
    """
    rng = _generator(seed, "calibration")
    available = np.bincount(labels)
    wanted = min(count, len(labels))
    one_each = np.minimum(available, 1)
    if wanted < int(one_each.sum()):
        one_each[:] = 0
    drawn = one_each + _proportional(available - one_each, wanted - int(one_each.sum()), rng)
    return rng.permutation(_draw(labels, drawn, rng))


def _digits(preprocessing: Preprocessing) -> ArrayImages:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise CannotRunHere("The digits data set needs scikit-learn.", "pip install 'faq-deploy[demo]'") from error
    digits = load_digits()
    pixels = np.minimum(255, digits.images * 16).astype(np.uint8)[..., np.newaxis]  # 0..16 becomes 0..255
    return ArrayImages(pixels, digits.target, [str(name) for name in digits.target_names], preprocessing, "digits")


def _cifar10(root: Path, part: Literal["train", "test"], preprocessing: Preprocessing) -> ArrayImages:
    from torchvision.datasets import CIFAR10

    try:
        # checks the MD5 of each file before it is unpickled
        cifar = CIFAR10(root.expanduser(), train=part == "train", download=False)
    except RuntimeError as error:
        raise InputError(
            f"{root} does not hold CIFAR-10, or its files are damaged.",
            f"unpack cifar-10-python.tar.gz there, so that {root / CIFAR10.base_folder} exists with all its files.",
        ) from error
    return ArrayImages(cifar.data, np.asarray(cifar.targets), cifar.classes, preprocessing, f"CIFAR-10 {part}")


def _split_folders(root: Path) -> tuple[Path, Path | None]:
    folders = class_folders(root)
    val = next((root / name for name in VALIDATION_FOLDERS if name in folders), None)
    # a class may be called "train": it is a split only beside a validation folder, or alone
    is_split = "train" in folders and (val is not None or len(folders) == 1)
    return (root / "train", val) if is_split else (root, None)


def _folder_classes(root: Path, order: ClassOrder | None) -> tuple[str, ...]:
    names = class_folders(root, order or "lexical")
    if order is None and all(is_number(name) for name in names):
        numeric = class_folders(root, "numeric")
        if names != numeric:
            index = next(i for i, name in enumerate(names) if name != numeric[i])
            warnings.warn(
                f"The class folders of {root} are numbers, taken in lexical order: class {index} is {names[index]}. "
                f"If your network's output {index} means {numeric[index]}, pass --class-order numeric.",
                DataWarning,
                stacklevel=3,
            )
    return names


def _folder_augment(preprocessing: Preprocessing) -> Augment:
    size = preprocessing.crop_size
    return "cifar" if size is None or min(size) <= _SMALL_CROP else "imagenet"


def _require_classes(images: ImageSet, classes: Sequence[str] | None) -> None:
    if classes is not None and tuple(classes) != images.classes:
        raise InputError(
            f"{images.name} has the classes {', '.join(images.classes)}, not those of the network.",
            "evaluate on the data that the network was trained for.",
        )


def _refuse_fraction(spec: str, train_fraction: float | None) -> None:
    if train_fraction is not None:
        raise InputError(f"{spec} brings its own validation images.", "drop --train-fraction.")


def _with_own_split(train: ImageSet, val: ImageSet, name: str, augment: Augment) -> Splits:
    description = f"{name}: {len(train):,} training and {len(val):,} validation images, {len(train.classes)} classes"
    return Splits(train, val, False, description, augment)


def _held_out(images: ImageSet, name: str, train_fraction: float, seed: int, augment: Augment) -> Splits:
    train, val = hold_out(images.labels, train_fraction, seed)
    description = (
        f"{name}: {len(train):,} training and {len(val):,} held-out images (seed {seed}), {len(images.classes)} classes"
    )
    parts = (ImageSubset(images, train, f"{name}, training part"), ImageSubset(images, val, f"{name}, held-out part"))
    return Splits(*parts, True, description, augment)


def _generator(seed: int, purpose: str) -> np.random.Generator:
    digest = hashlib.blake2b(f"{purpose}/{seed}".encode(), digest_size=16).digest()
    return np.random.default_rng(int.from_bytes(digest, "big"))


def _proportional(available: IndexArray, total: int, rng: np.random.Generator) -> IndexArray:
    """Split `total` in proportion to `available`, in whole numbers: largest remainders first, ties by lot."""
    whole = max(1, int(available.sum()))
    counts: IndexArray = total * available // whole
    remainders = total * available % whole
    order = np.lexsort((rng.permutation(len(available)), -remainders))
    counts[order[: total - int(counts.sum())]] += 1
    return counts


def _draw(labels: IndexArray, counts: IndexArray, rng: np.random.Generator) -> IndexArray:
    """`counts[c]` random images of each class c."""
    order = rng.permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]  # by class, in random order within each
    of_class = np.bincount(labels, minlength=len(counts))
    rank = np.arange(len(labels)) - np.repeat(np.cumsum(of_class) - of_class, of_class)
    return order[rank < np.repeat(counts, of_class)]
