"""What a starter recipe chooses from what was found, each choice with its reason. Needs no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from faq_deploy.recipe import TrainingSection, load_recipe

__all__ = ["Choice", "ImageFacts", "Machine", "ModelFacts", "Tried", "cautions", "choose", "float_recipe"]

# up to so many training images, the recipe that was made for about as many
_BY_IMAGES: Final[tuple[tuple[float, str, str], ...]] = (
    (5_000, "digits-{}bit", "scikit-learn's 1,348 digits"),
    (200_000, "cifar-resnet18-{}bit", "CIFAR-10's 50,000 images"),
    (math.inf, "faq-{}bit", "ImageNet's 1.28 million images"),
)
# float training by what its images are like
_FLOAT: Final = {"shift": "digits-float", "cifar": "cifar-quick"}
_LARGE: Final = 128 * 128  # pixels; 256 such images and larger ones are much for a laptop's memory
_SMALLER_BATCH: Final = 64
_STEPS: Final = 16  # of an epoch, at least
_FEW: Final = 10  # training images of a class
_UNEVEN: Final = 10  # times as many images in one class as in another
_TRAINING_COST: Final = 4  # forward passes that a training step takes as long as, about
_LONG: Final = 3600.0  # seconds


@dataclass(frozen=True)
class ModelFacts:
    """A float model that was looked at.

    Attributes:
        name: as on the command line.
        source: where its weights are from, in words.
        classes: outputs.
        input_shape: channels, height, width.
        layers, int8_layers: weighted layers, and those whose products are on codes.
        float_layers: the others, each with why it stays in float.
        float_steps: what computes in float between codes, by kind, and how often.
        own_weights: its weights are those that the user's function left in it, trained or not.
    """

    name: str
    source: str
    classes: int
    input_shape: tuple[int, int, int]
    layers: int
    int8_layers: int
    float_layers: tuple[str, ...]
    float_steps: dict[str, int]
    own_weights: bool = False


@dataclass(frozen=True)
class ImageFacts:
    """Images that were looked at.

    Attributes:
        description: one line.
        train, val: how many.
        classes: how many.
        fewest, most: training images of the smallest and the largest class.
        looked_at: training images that were opened, evenly spaced; the rest is about these.
        unreadable: how many of them could not be read.
        smallest, largest: width and height in pixels.
        one_size: all are of the same size.
        grey: none has a colour.
        augment: what `augment = "auto"` stands for.
    """

    description: str
    train: int
    val: int
    classes: int
    fewest: int
    most: int
    looked_at: int
    unreadable: int
    smallest: tuple[int, int]
    largest: tuple[int, int]
    one_size: bool
    grey: bool
    augment: str


@dataclass(frozen=True)
class Tried:
    """What the float net made of some validation images.

    Attributes:
        right, images: so many of so many.
        seconds: that an image took, with its decoding.
    """

    right: int
    images: int
    seconds: float


@dataclass(frozen=True)
class Machine:
    """What decides about engines: the first NVIDIA GPU and the TensorRT package, or ""."""

    gpu: str
    tensorrt: str


@dataclass(frozen=True)
class Choice:
    """One key of a recipe, its value, and why."""

    key: str
    value: str | int | float | list[int]
    reason: str


def choose(
    size: tuple[int, int], images: ImageFacts, machine: Machine, bits: int, target: str | None
) -> tuple[Choice, ...]:
    """Every value of a starter recipe.

    Args:
        size: height and width of the net's input, in pixels.
        images, machine: as found.
        bits: precision, 8 or 4.
        target: asked for, or None.

    Returns:
        In the order of the file: keys without a section first.
    """
    base, made_for, training = _nearest(images.train, bits)
    epochs = training.epochs
    large = math.prod(size) >= _LARGE
    batch = _batch(images.train, training.batch_size, _SMALLER_BATCH if large and not machine.gpu else None)
    steps = math.ceil(images.train / batch)
    calibration = min(_SMALLER_BATCH if large else 256, max(1, images.train // 5))
    found = [
        Choice("bits", bits, _why_bits(bits)),
        _target(machine, target),
        Choice("calibration.batches", min(5, images.train), "the paper's number"),
        Choice("calibration.batch_size", calibration, _why_calibration(images, calibration, large=large)),
        Choice(
            "training.epochs",
            epochs,
            f"as in recipe {base}, made for {made_for}; here {_steps(steps)} each. 0 only calibrates",
        ),
        Choice("training.batch_size", batch, _why_batch(batch, training.batch_size, base, large=large)),
        Choice("training.lr", training.lr, f"as in recipe {base}: small, for a net that is trained already"),
        Choice("training.schedule", training.schedule, f"as in recipe {base}"),
    ]
    if training.schedule != "constant":
        found.append(Choice("training.gamma", training.gamma, "factor of that schedule"))
    if training.schedule == "step":
        marks = list(training.milestones)
        found.append(Choice("training.milestones", marks, "epochs at which it falls; they move with --epochs"))
    decay = "most published CNNs were trained with it: take what yours was"
    found.append(Choice("training.weight_decay", 1e-4, decay))
    found.append(Choice("training.augment", "auto", f"here it means {images.augment}, for images of this size"))
    return tuple(found)


def cautions(
    model: ModelFacts, images: ImageFacts, tried: Tried | None, choices: tuple[Choice, ...], machine: Machine
) -> tuple[str, ...]:
    """Sentences about what may surprise the user."""
    said = []
    if tried is not None and 2 * tried.right < tried.images and tried.right * images.classes < 10 * tried.images:
        untrained = ""
        if model.own_weights:
            untrained = "its function gave it no trained weights (pass --weights, or run `faq-deploy train` first), or "
        said.append(
            f"the float net gets only {tried.right} of {tried.images} images right, and guessing one in "
            f"{images.classes}. If it is better than that, {untrained}images are prepared in another way than it was "
            "trained with, or the classes are in another order"
        )
    if model.float_layers:
        named = "; ".join(model.float_layers[:3]) + ("; ..." if len(model.float_layers) > 3 else "")
        said.append(f"the net can't be quantized whole: {named} (`faq-deploy inspect` lists all)")
    if images.unreadable:
        said.append(
            f"{images.unreadable} of the {images.looked_at} images looked at can't be read: --on-bad-image skip leaves "
            "such images out"
        )
    if images.fewest < _FEW:
        said.append(f"a class has only {images.fewest} training images: accuracies will be uncertain")
    elif images.most > _UNEVEN * images.fewest:
        said.append(
            f"classes are uneven, {images.fewest:,} to {images.most:,} training images: top-1 favours the large"
        )
    if images.grey and model.input_shape[0] == 3:
        said.append("the images looked at are grey and the net takes colour: grey is repeated in three channels")
    elif not images.grey and model.input_shape[0] == 1:
        said.append("the images are in colour and the net takes grey: they are converted")
    width, height = images.smallest
    if height < model.input_shape[1] or width < model.input_shape[2]:
        said.append(f"some images are smaller than the net's input ({width}x{height}): they are enlarged or padded")
    if tried is not None and not machine.gpu:
        said += _slow(next(c.value for c in choices if c.key == "training.epochs"), tried, images)
    return tuple(said)


def _slow(epochs: object, tried: Tried, images: ImageFacts) -> list[str]:
    seconds = _TRAINING_COST * tried.seconds * images.train * (epochs if isinstance(epochs, int) else 0)
    if seconds < _LONG:
        return []
    return [
        f"there is no GPU here: {epochs} epoch{'' if epochs == 1 else 's'} may take {seconds / 3600:,.0f} hours; "
        "`quantize --epochs 0` calibrates only, which at 8 bits often suffices"
    ]


def float_recipe(images: ImageFacts) -> str:
    """The name of the recipe by which `train` makes weights from such images."""
    return _FLOAT.get(images.augment, "float")


def _nearest(count: int, bits: int) -> tuple[str, str, TrainingSection]:
    name, made_for = next((name.format(bits), made_for) for most, name, made_for in _BY_IMAGES if count <= most)
    return name, made_for, load_recipe(name).training


def _batch(count: int, usual: int, most: int | None) -> int:
    """A power of two that leaves an epoch some steps; at least 2, which batch norms need."""
    fitting = 1 << max(1, (count // _STEPS).bit_length() - 1)
    return min(usual, fitting, *([] if most is None else [most]))


def _target(machine: Machine, asked: str | None) -> Choice:
    if asked is not None:
        return Choice("target", asked, "asked for with --target")
    if machine.gpu:
        return Choice("target", "tensorrt", f"this machine has an NVIDIA GPU ({machine.gpu})")
    if machine.tensorrt:
        return Choice("target", "tensorrt", f"{machine.tensorrt} is installed, which makes engines for NVIDIA GPUs")
    reason = "neither an NVIDIA GPU nor TensorRT was found: fastest on CPUs. For a GPU elsewhere: tensorrt"
    return Choice("target", "onnxruntime", reason)


def _why_bits(bits: int) -> str:
    if bits == 8:
        return "a short fine-tuning keeps the accuracy at 8; 4 takes a long one"
    return "asked for with --bits; TensorRT runs 4-bit values in INT8 kernels"


def _why_calibration(images: ImageFacts, batch: int, *, large: bool) -> str:
    if batch == images.train // 5:
        return f"{5 * batch:,} of the {images.train:,} training images in 5 batches"
    return "images of this size take memory; 256 is the usual number" if large else "the usual number"


def _why_batch(batch: int, usual: int, base: str, *, large: bool) -> str:
    if batch == usual:
        return f"as in recipe {base}"
    if batch == _SMALLER_BATCH and large:
        return f"no GPU here, and images of this size take memory; recipe {base} has {usual}"
    return f"few training images: an epoch should have {_STEPS} steps or more; recipe {base} has {usual}"


def _steps(count: int) -> str:
    return f"{count:,} step{'' if count == 1 else 's'}"
