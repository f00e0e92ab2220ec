"""The images of a run: how the command line names and prepares them, and how they are opened again later."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, cast

from pydantic import BaseModel, ConfigDict, ValidationError

from engines.errors import InputError
from engines.files import sha256_of
from engines.image_batches import OnBad
from engines.image_files import VALIDATION_FOLDERS, ClassOrder, class_folders
from engines.images import ImageFolder, ImageSet
from engines.preprocess import Preprocessing
from engines.run_folder import RunFolder
from faq_deploy.data import Splits, default_preprocessing, open_data
from faq_deploy.pixel_cache import CachedImages
from faq_deploy.shards import ShardImages, shard_spec

__all__ = [
    "DataFacts",
    "DataOptions",
    "data_facts",
    "data_of_run",
    "preprocessing_for",
    "preprocessing_in_words",
    "reopen_data",
    "reopen_validation",
    "trained_preprocessing",
    "training_images_warning",
]

_CHANNELS: Final = {"RGB": 3, "L": 1}
_KEYS: Final = ("resize", "crop", "mean", "std", "scale", "interpolation", "color", "orientation")


@dataclass(frozen=True)
class DataOptions:
    """Where images come from and how they are prepared; None leaves a choice to the model's weights or the data."""

    data: str | None = None
    train_fraction: float | None = None
    class_order: ClassOrder | None = None
    resize: int | None = None
    crop: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    scale: float | None = None
    interpolation: str | None = None
    color: str | None = None
    orientation: str | None = None
    on_bad: OnBad = "error"


class DataFacts(BaseModel):
    """What the manifest says of a run's images, enough to open them again.

    Attributes:
        data: `digits`, `cifar10:DIR`, a folder or shards, absolute.
        train_fraction: share of the images to train on; None where the data has a split of its own.
        class_order: of class folders; None is lexical.
        seed: of the split.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    data: str
    train_fraction: float | None
    class_order: Literal["lexical", "numeric"] | None
    seed: int


def data_facts(options: DataOptions, seed: int) -> DataFacts:
    """What to keep of the options in the manifest.

    Raises:
        InputError: no images were named.
    """
    if not options.data:
        raise InputError("No images were named.", "pass --data DIR (or SHARDS.tar, cifar10:DIR, digits).")
    kind, colon, folder = options.data.partition(":")
    place = options.data
    if colon and kind == "cifar10":
        place = f"cifar10:{Path(folder).expanduser().resolve()}"
    elif options.data != "digits":
        shards = shard_spec(options.data)
        place = str(Path(options.data).expanduser().resolve()) if shards is None else shards.text
    return DataFacts(data=place, train_fraction=options.train_fraction, class_order=options.class_order, seed=seed)


def data_of_run(run: RunFolder) -> DataFacts:
    """What the manifest of a calibrated run says of its images.

    Raises:
        InputError: no run, or a damaged manifest.
    """
    steps = run.manifest().steps
    step = steps.get("calibrate")
    if step is None and "begin" in steps and steps["begin"].facts.get("verb") == "train":
        raise InputError(
            f"{run.path} holds a float training, not a quantized run.",
            f"`faq-deploy train --resume -o {run.path}` goes on with it; quantize its float.pth into another folder.",
        )
    try:
        return DataFacts.model_validate(step.facts["data"] if step is not None else None)
    except (KeyError, ValidationError) as error:
        raise InputError(
            f"{run / 'manifest.json'} is damaged: it doesn't say which images the run was made from.",
            "make the run again with `faq-deploy quantize --force`.",
        ) from error


def reopen_data(
    facts: DataFacts, preprocessing: Preprocessing, classes: tuple[str, ...], instead: str | None = None
) -> Splits:
    """The images of a run, opened again.

    Args:
        facts: of the run.
        preprocessing: of the run.
        classes: of the run, in the order of the logits.
        instead: another place of the same data.

    Raises:
        InputError: they are gone, or don't fit.
    """
    return open_data(
        instead or facts.data,
        preprocessing=preprocessing,
        train_fraction=facts.train_fraction,
        seed=facts.seed,
        class_order=facts.class_order,
        classes=classes,
    )


def reopen_validation(
    facts: DataFacts, preprocessing: Preprocessing, classes: tuple[str, ...], instead: str | None = None
) -> tuple[ImageSet, str]:
    """The validation images of a run, and a line that describes them; the training images may be absent.

    Their pixels are not kept: they are read once, and memory should not grow with their number.

    Args:
        facts: of the run.
        preprocessing: of the run.
        classes: of the run, in the order of the logits.
        instead: another place of the same data, or such images: a folder with one folder per class, or shards.

    Raises:
        InputError: they are gone, or don't fit.
    """
    place = instead or facts.data
    root = Path(place).expanduser()
    shards = None if facts.train_fraction is not None or default_preprocessing(place) else shard_spec(place)
    if shards is not None:
        found = ShardImages(shards.val or shards.train, preprocessing, classes)
        return found, f"{shards.text}: {len(found):,} validation images, {len(classes)} classes"
    if facts.train_fraction is None and default_preprocessing(place) is None and root.is_dir():
        folders = class_folders(root)
        own = next((name for name in VALIDATION_FOLDERS if name in folders), None)
        if own is not None or set(folders) <= set(classes):
            images = ImageFolder(root if own is None else root / own, preprocessing, classes)
            return images, f"{root}: {len(images):,} validation images, {len(classes)} classes"
    splits = reopen_data(facts, preprocessing, classes, instead)
    return splits.val, splits.description


def training_images_warning(facts: DataFacts, images: ImageSet) -> str | None:
    """A sentence where the images to evaluate are the very ones that the run was trained on; None elsewhere.

    Args:
        facts: of the run.
        images: to evaluate.
    """
    source = images.base if isinstance(images, CachedImages) else images
    if facts.train_fraction is not None or not _is_training_part(facts, source):
        return None
    return (
        f"{source.name} holds the images that this run was trained on: the accuracies below say nothing about new "
        "images, only whether all stages agree."
    )


def _is_training_part(facts: DataFacts, images: ImageSet) -> bool:
    if isinstance(images, ImageFolder):
        return images.root.resolve() == (Path(facts.data) / "train").resolve()
    if not isinstance(images, ShardImages):
        return False
    shards = shard_spec(facts.data)
    return shards is not None and images.places == shards.train


def trained_preprocessing(weights: str | None) -> Preprocessing | None:
    """The preprocessing that a checkpoint of `faq-deploy train` was trained with; None for other weights.

    Args:
        weights: as --weights names them.
    """
    path = Path(weights).expanduser() if weights else None
    if path is None or not path.is_file() or not (path.parent / "manifest.json").is_file():
        return None
    try:
        step = RunFolder(path.parent).manifest().steps.get("train")
    except InputError:  # another program's manifest.json, which happens to lie beside the weights
        return None
    if step is None or step.outputs.get(path.name) != sha256_of(path) or "preprocessing" not in step.facts:
        return None
    return Preprocessing.model_validate(step.facts["preprocessing"])


def preprocessing_in_words(spec: Preprocessing) -> str:
    """One line, such as `resize 256 (bilinear), center crop 224x224, RGB, mean 0.485,0.456,0.406, std ...`."""
    size = spec.crop_size
    parts = [
        "no resize" if spec.resize is None else f"resize {spec.resize} ({spec.interpolation})",
        "no crop" if size is None else f"center crop {size[0]}x{size[1]}",
        "RGB" if spec.color == "RGB" else "grey",
        f"mean {','.join(f'{value:.4g}' for value in spec.mean)}",
        f"std {','.join(f'{value:.4g}' for value in spec.std)}",
    ]
    if spec.scale != 255.0:
        parts.append(f"pixels divided by {spec.scale:g}")
    if spec.orientation == "upright":
        parts.append("turned upright")
    return ", ".join(parts)


def preprocessing_for(options: DataOptions, base: Preprocessing | None) -> Preprocessing:
    """How images are prepared: the command line's choices, the rest as the data set or the weights want it.

    Args:
        options: of the command line.
        base: of the data set, of the weights, or of a run to go on with; None is ImageNet's.

    Returns:
        The preprocessing. A single mean or std stands for all channels. Where only --color changes the number of
        channels, grey takes the average of the colours' mean and std, and colours take grey's.

    Raises:
        InputError: a mean, std or scale that cannot be.
    """
    start = base or Preprocessing(resize=256, crop=224)
    given = {key: getattr(options, key) for key in _KEYS if getattr(options, key) is not None}
    given |= {key: None for key in ("resize", "crop") if given.get(key) == 0}
    wanted = {**start.model_dump(), **given}
    if not (math.isfinite(wanted["scale"]) and 1e-30 < wanted["scale"] < 1e30):
        raise InputError(
            f"--pixel-scale {wanted['scale']:g} cannot be: it is not a positive, finite number.",
            "pass 255 for values from 0 to 1, or 1 for a network that was trained on 0..255.",
        )
    channels = _CHANNELS[wanted["color"]]
    for key in ("mean", "std"):
        values = cast(tuple[float, ...], wanted[key])
        _require_numbers(key, values)
        if key not in given and len(values) != channels:
            values = (sum(values) / len(values),)
        if len(values) not in (1, channels):
            raise InputError(
                f"--{key} has {len(values)} values, but --color {wanted['color']} has {channels} "
                f"channel{'s' if channels > 1 else ''}.",
                f"give {channels} values, or one for all." if channels > 1 else "give one value.",
            )
        wanted[key] = values * channels if len(values) == 1 else values
    return Preprocessing.model_validate(wanted)


def _require_numbers(key: str, values: tuple[float, ...]) -> None:
    for value in values:
        if not math.isfinite(value) or (key == "std" and not 1e-30 < value < 1e30):
            raise InputError(
                f"--{key} {','.join(f'{v:g}' for v in values)} cannot be: {value:g} is not a "
                f"{'positive, ' if key == 'std' else ''}finite number.",
                "take the values that the network was trained with.",
            )
