"""A recipe: every choice of a run, as TOML, checked before anything starts. Needs no torch."""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Final, Literal

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from engines.errors import InputError

__all__ = [
    "CalibrationSection",
    "QuantizerSection",
    "Recipe",
    "TrainingSection",
    "dump_toml",
    "list_recipes",
    "load_recipe",
    "override",
    "parse_recipe",
    "recipe_keys",
    "resolved",
    "weight_rule_for",
]

WeightRule = Literal["sigma", "max", "mse"]

_FOLDER: Final = Path(__file__).parent / "recipes"
_BARE_WORD: Final = re.compile(r"(?!(true|false|inf|nan)$)[A-Za-z_][\w.:-]*")


class _Section(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class QuantizerSection(_Section):
    """How weights and batch norm get onto the grid (paper 3.1.1)."""

    batch_norm: Literal["fold", "paper", "fit"] = "fold"
    """fold: into weights and bias; paper: multiplier k/16 with |k| up to 127; fit: such k, exponent fitted"""
    granularity: Literal["auto", "channel", "tensor"] = "auto"
    """a weight exponent per output channel or per tensor; auto: channel if batch_norm is fold, else tensor"""
    weight_rule: Literal["auto", "sigma", "max", "mse"] = "auto"
    """how a weight's exponent is found; auto: mse for 8-bit weights, sigma for 4-bit ones"""
    sigma_multiple: float = Field(default=4.12, gt=0)
    """c of the rule sigma, over 0; the paper's is 4.12 at 4 bits"""
    sigma_reading: Literal["R2", "R1"] = "R2"
    """R2: step = c*sigma/(2^bits - 1); R1: twice that, so that +-c*sigma is the range"""
    certify: bool | Literal["auto"] = "auto"
    """halve the codes of channels whose sums could pass 2^24, where fp32 rounds; auto: if batch_norm is fold"""

    @model_validator(mode="after")
    def _possible(self) -> QuantizerSection:
        if self.certify is True and self.batch_norm != "fold":
            raise ValueError(f"quantizer.certify is true, which needs batch_norm fold, not {self.batch_norm}")
        return self


class CalibrationSection(_Section):
    """How activation ranges are found (paper 3.2)."""

    method: Literal["percentile", "max", "mse", "entropy"] = "percentile"
    """the range estimator"""
    batches: int = Field(default=5, ge=1)
    """training batches to look at, at least 1"""
    batch_size: int = Field(default=256, ge=1)
    """images in a calibration batch, at least 1"""
    percentile_8: float = Field(default=99.99, gt=0, le=100)
    """percentile of 8-bit tensors, over 0 and up to 100"""
    percentile_4: float = Field(default=99.9, gt=0, le=100)
    """percentile of 4-bit tensors, over 0 and up to 100"""
    round_up: Literal["next", "even"] = "next"
    """ymax goes up to the next power of two, or to the next one with an even exponent"""
    waste_warning: float = Field(default=0.4, gt=0, le=1)
    """warn if rounding up wastes more than this share of a range, over 0 and up to 1"""
    weight_rounding: Literal["nearest", "compensated"] = "nearest"
    """compensated: weight codes and biases chosen by what the layer's output becomes on images"""
    bias_correction: Literal["none", "analytic", "empirical"] = "none"
    """how biases make good the mean shift of rounding to nearest; compensated does that by itself"""
    correction_images: int = Field(default=128, ge=1)
    """how many calibration images these two look at, at least 1"""

    @model_validator(mode="after")
    def _possible(self) -> CalibrationSection:
        if self.weight_rounding != "nearest" and self.bias_correction != "none":
            raise ValueError("calibration.bias_correction must be none where weight_rounding is compensated")
        return self


class TrainingSection(_Section):
    """How long, how fast and from which seed to train (paper 3.3)."""

    epochs: int = Field(ge=0)
    """passes over the training images; 0 calibrates only"""
    batch_size: int = Field(default=256, ge=1)
    """images in a training step, at least 1"""
    lr: float = Field(gt=0)
    """learning rate of the first epoch, over 0"""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """of SGD, at least 0 and under 1"""
    weight_decay: float = Field(default=1e-4, ge=0)
    """of SGD, on every parameter, at least 0"""
    weight_decay_for: dict[str, Annotated[float, Field(ge=0)]] = {}
    """weight decay by pattern on the model's name, the first match counts: {"*resnet18*" = 0.5e-4}"""
    schedule: Literal["constant", "exponential", "step"] = "constant"
    """exponential: lr*gamma^epoch; step: lr times gamma at each milestone"""
    gamma: float = Field(default=1.0, gt=0, le=1)
    """factor of the schedule, over 0 and up to 1"""
    milestones: tuple[int, ...] = Field(default=(), strict=False)
    """epochs, ascending from 1 to the last, at which the schedule step multiplies by gamma"""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """of image order, augmentation and dropout, 0 to 2^31 - 1"""
    augment: Literal["auto", "none", "shift", "cifar", "imagenet"] = "auto"
    """random changes to training images; auto: what suits the data"""

    @model_validator(mode="after")
    def _possible(self) -> TrainingSection:
        if self.schedule == "step" and self.epochs > 0:
            marks = self.milestones
            if not marks or marks[0] < 1 or any(a >= b for a, b in pairwise(marks)):
                raise ValueError(f"training.milestones {list(marks)} must ascend from 1, and not be empty")
            if marks[-1] >= self.epochs:
                raise ValueError(f"training.milestones has {marks[-1]}, but the last epoch is {self.epochs - 1}")
        return self


class Recipe(_Section):
    """One run's choices. `target` decides the grids before training starts."""

    name: str = ""
    """of the recipe"""
    description: str = ""
    """what it is for, and which reading of the paper it takes"""
    bits: Literal[8, 4] = 8
    """precision of weights and activations"""
    target: Literal["tensorrt", "onnxruntime", "paper"] = "tensorrt"
    """whose grids and quantizer places to train on"""
    cpu: Literal["any", "vnni"] = "any"
    """any: exact on every x86 CPU; vnni: 8-bit ReLU outputs, only with target onnxruntime"""
    quantizer: QuantizerSection = QuantizerSection()
    calibration: CalibrationSection = CalibrationSection()
    training: TrainingSection

    @model_validator(mode="after")
    def _possible(self) -> Recipe:
        if self.cpu == "vnni" and self.target != "onnxruntime":
            raise ValueError(f"cpu is vnni, which target {self.target} has no use for")
        return self


def list_recipes() -> tuple[str, ...]:
    """Names of the recipes that come with the tool, sorted."""
    return tuple(sorted(file.stem for file in _FOLDER.glob("*.toml")))


def load_recipe(name_or_path: str | Path) -> Recipe:
    """A recipe by its name, or from a TOML file; an InputError if there is none, or as in `parse_recipe`."""
    names = list_recipes()
    path = _FOLDER / f"{name_or_path}.toml" if str(name_or_path) in names else Path(name_or_path)
    if path.suffix != ".toml" and not path.exists():
        remedy = _nearest(str(name_or_path), names) or f"take one of {', '.join(names)}, or name a .toml file."
        raise InputError(f"There is no recipe {str(name_or_path)!r}.", remedy)
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} could not be read: {error}.", "name a recipe, or a TOML file.") from error
    recipe = parse_recipe(text, str(path))
    return recipe if recipe.name else recipe.model_copy(update={"name": path.stem})


def parse_recipe(text: str, source: str) -> Recipe:
    """A recipe from TOML text; an InputError that names `source` if a key is unknown or a value cannot be."""
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{source} is not TOML: {error}.", "correct that line.") from error
    return _validated(raw, source)


def override(recipe: Recipe, assignments: Mapping[str, object] | Sequence[str]) -> Recipe:
    """The recipe with some values replaced, all at once.

    Args:
        recipe: where to start.
        assignments: typed values by key (`{"training.lr": 0.01}`), or texts `"training.lr=0.01"` whose
            right side is a TOML value; a bare word is taken as a string.

    Returns:
        A new recipe.

    Raises:
        InputError: an unknown key (the nearest one is named), or a value that cannot be.
    """
    pairs = assignments.items() if isinstance(assignments, Mapping) else map(_parsed, assignments)
    raw, keys = recipe.model_dump(), recipe_keys()
    for key, value in pairs:
        if key not in keys:
            raise InputError(f"{key} is no key of a recipe.", _key_remedy(key))
        section, _, field = key.rpartition(".")
        (raw[section] if section else raw)[field] = value
    return _validated(raw, "The recipe")


def dump_toml(recipe: Recipe) -> str:
    """The recipe as TOML text; `parse_recipe` gives an equal recipe back."""
    return tomli_w.dumps(recipe.model_dump())


def resolved(recipe: Recipe, model_name: str) -> Recipe:
    """The recipe with `auto` replaced by what it stands for with this model.

    The granularity, `certify` and the weight decay become definite, and `weight_decay_for` empty. `weight_rule` stays
    `auto` at 4 bits, where it stands for two rules (the first and last layers have 8 bits): see
    `weight_rule_for`. `augment` depends on the data and is left as it is.

    Args:
        recipe: any recipe.
        model_name: as the user gave it, such as `torchvision:resnet18`.

    Returns:
        A new recipe; resolving it again changes nothing.
    """
    quantizer, training = recipe.quantizer, recipe.training
    granularity = quantizer.granularity
    if granularity == "auto":
        granularity = "channel" if quantizer.batch_norm == "fold" else "tensor"
    certify = quantizer.certify if quantizer.certify != "auto" else quantizer.batch_norm == "fold"
    rule = weight_rule_for(quantizer, 8) if recipe.bits == 8 else quantizer.weight_rule
    patterns = training.weight_decay_for.items()
    decay = next((value for pattern, value in patterns if fnmatchcase(model_name, pattern)), training.weight_decay)
    found = {"quantizer.granularity": granularity, "quantizer.weight_rule": rule, "quantizer.certify": certify}
    return override(recipe, found | {"training.weight_decay": decay, "training.weight_decay_for": {}})


def weight_rule_for(quantizer: QuantizerSection, bits: int) -> WeightRule:
    """The rule for weights of this many bits: `auto` is mse at 8 bits (S8), sigma at 4 (paper 3.1.1)."""
    if quantizer.weight_rule == "auto":
        return "mse" if bits == 8 else "sigma"
    return quantizer.weight_rule


def recipe_keys() -> dict[str, str]:
    """Every key that can be set, such as `training.lr`, with its description."""
    keys: dict[str, str] = {}
    for name, field in Recipe.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            inner = field.annotation.model_fields.items()
            keys |= {f"{name}.{key}": value.description or "" for key, value in inner}
        else:
            keys[name] = field.description or ""
    return keys


def _parsed(assignment: str) -> tuple[str, object]:
    key, equals, text = (part.strip() for part in assignment.partition("="))
    if not equals or not text:
        raise InputError(f"{assignment!r} sets nothing.", "write KEY=VALUE, such as training.lr=0.01.")
    if _BARE_WORD.fullmatch(text):
        text = f'"{text}"'
    try:
        parsed: dict[str, object] = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError as error:
        remedy = 'write numbers as 0.01 or 1e-4, lists as [30, 60], texts as "text".'
        raise InputError(f"{key}={text}: the value is not TOML ({error}).", remedy) from error
    if parsed.keys() != {"value"}:
        raise InputError(f"{assignment!r} holds more than one value.", "give each key its own assignment.")
    return key, parsed["value"]


def _validated(raw: Mapping[str, object], source: str) -> Recipe:
    try:
        return Recipe.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        match first["type"]:
            case "extra_forbidden":
                what = f"{key} is no key of a recipe"
            case "missing":
                what = f"{key} is missing"
            case "value_error":  # ours: the text starts with the key
                what = str(first["ctx"]["error"])
                key = what.partition(" ")[0]
            case _:
                what = f"{key} is {first['input']!r}: {first['msg'][0].lower()}{first['msg'][1:]}"
        raise InputError(f"{source}: {what}.", _key_remedy(key)) from error


def _key_remedy(key: str) -> str:
    keys = recipe_keys()
    known = next((name for name in (key, key.rpartition(".")[0]) if name in keys), None)
    if known is not None:
        return f"{known}: {keys[known]}."
    return _nearest(key, keys) or f"the keys are {', '.join(keys)}."


def _nearest(word: str, names: Iterable[str]) -> str:
    """A question with the most similar name, first by the last part (`lr` for `training.lr`), or nothing."""
    last_parts = {name.rpartition(".")[2]: name for name in names}
    last = word.rpartition(".")[2]
    close = difflib.get_close_matches(last, last_parts, 1, 0.6)
    return f"did you mean {last_parts[close[0]]}?" if close else ""
