"""Data by name: `digits`, `cifar10:DIR`, shards or a folder of images, split into training and validation images."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np

from engines.errors import InputError, NotInstalled
from engines.extras import pip_install
from engines.image_files import VALIDATION_FOLDERS, ClassOrder, class_folders, is_number
from engines.images import ArrayImages, DataWarning, ImageFolder, ImageSet, ImageSubset
from engines.preprocess import Preprocessing
from faq_deploy.image_draws import calibration_indices, hold_out
from faq_deploy.pixel_cache import cached
from faq_deploy.shards import ShardImages, ShardSpec, shard_spec

__all__ = [
    "VALIDATION_FOLDERS",
    "Augment",
    "Splits",
    "brings_validation",
    "calibration_indices",
    "default_preprocessing",
    "hold_out",
    "open_data",
    "require_place",
]

Augment = Literal["none", "shift", "cifar", "imagenet"]

_DIGITS: Final = "digits"
_CIFAR10: Final = "cifar10:"
_DIGITS_TRAIN_FRACTION: Final = 0.75
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


def brings_validation(spec: str) -> bool:
    """Whether a data set has validation images of its own; True for what `open_data` refuses.

    Args:
        spec: as for `open_data`.
    """
    if default_preprocessing(spec) is not None:
        return True
    shards = shard_spec(spec)
    if shards is not None:
        return bool(shards.val)
    root = Path(spec).expanduser()
    return not root.is_dir() or _split_folders(root)[1] is not None


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
        spec: `digits` (scikit-learn's, 8x8 grey), `cifar10:DIR` (the Python version, unpacked in DIR), a folder that
            holds train/ and val/ (or valid/, validation/, test/), or one folder per class with `train_fraction`, or
            shards as `shard_spec` reads them.
        preprocessing: how images are prepared.
        train_fraction: share of the images to train on where the data has no split of its own, between 0 and 1; per
            class as far as counts allow. None means 0.75 for digits.
        seed: of that split.
        class_order: of class folders; None means lexical, with a warning where the names are numbers.
        classes: class names in the order of the network's outputs (of a run or checkpoint); None takes the folders.

    Returns:
        Both sets, with the same classes. Where all of their pixels fit into memory, they are decoded only once.

    Raises:
        InputError: the data is missing, empty or doesn't fit the arguments.
        CannotRunHere: a package that the data set needs is not installed, or shards can't be reached.
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
    shards = shard_spec(spec)
    if shards is not None:
        if class_order is not None:
            raise InputError("Shards number their classes.", "drop --class-order.")
        return _shards(shards, preprocessing, train_fraction, seed, classes)
    require_place(spec)
    root = Path(spec).expanduser()
    train_root, val_root = _split_folders(root)
    names = tuple(classes) if classes is not None else _folder_classes(train_root, class_order)
    images = cached(ImageFolder(train_root, preprocessing, names))
    augment = _folder_augment(preprocessing)
    if val_root is not None:
        _refuse_fraction(spec, train_fraction)
        return _with_own_split(images, cached(ImageFolder(val_root, preprocessing, names)), str(root), augment)
    if train_fraction is None:
        raise InputError(
            f"{root} does not hold train/ and a validation folder ({', '.join(VALIDATION_FOLDERS)}).",
            "pass --train-fraction 0.8 to train on 80 % of its images, one folder per class, and evaluate on the rest.",
        )
    return _held_out(images, str(root), train_fraction, seed, augment)


def require_place(spec: str) -> None:
    """Refuse a folder of images that is not there.

    Args:
        spec: as for `open_data`.

    Raises:
        InputError: it isn't.
    """
    if spec == _DIGITS or spec.startswith(_CIFAR10) or shard_spec(spec) is not None:
        return
    root = Path(spec).expanduser()
    if not root.is_dir():
        raise InputError(
            f"The data folder {root} {'is a file, not a folder' if root.exists() else 'does not exist'}.",
            "--data takes a folder of images, shards such as train-{000..127}.tar, digits, or cifar10:DIR.",
        )


def _digits(preprocessing: Preprocessing) -> ArrayImages:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise NotInstalled("The digits data set needs scikit-learn.", pip_install("demo")) from error
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


def _shards(
    spec: ShardSpec,
    preprocessing: Preprocessing,
    train_fraction: float | None,
    seed: int,
    classes: Sequence[str] | None,
) -> Splits:
    augment = _folder_augment(preprocessing)
    train = ShardImages(spec.train, preprocessing, classes)
    if spec.val:
        _refuse_fraction(spec.text, train_fraction)
        val = cached(ShardImages(spec.val, preprocessing, train.classes))
        return _with_own_split(cached(train), val, spec.text, augment)
    if train_fraction is None:
        raise InputError(
            f"{spec.text} names no validation shards.",
            "add them, as in train-{000..127}.tar,val-{00..05}.tar, or pass --train-fraction 0.8 to evaluate on a part "
            "of the images.",
        )
    return _held_out(cached(train), spec.text, train_fraction, seed, augment)


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
