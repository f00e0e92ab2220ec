"""A recipe: every choice of a run, as TOML, checked before anything starts. Needs no torch."""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final, Literal

import tomli_w
from pydantic import BaseModel, ValidationError, model_validator

from engines.errors import InputError
from faq_deploy.recipe_sections import (
    CalibrationSection,
    LayersSection,
    PaperSection,
    QuantizerSection,
    Section,
    TrainingSection,
)

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = [
    "CalibrationSection",
    "LayersSection",
    "PaperSection",
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


class Recipe(Section):
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
    layers: LayersSection = LayersSection()
    paper: PaperSection = PaperSection()

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
    if not isinstance(name_or_path, (str, Path)):
        raise InputError(f"A recipe can't be {name_or_path!r}.", "name one of `faq-deploy recipes`, or a .toml file.")
    names = list_recipes()
    path = _FOLDER / f"{name_or_path}.toml" if str(name_or_path) in names else Path(name_or_path)
    if path.suffix != ".toml" and not path.exists():
        remedy = _nearest(str(name_or_path), names) or "see `faq-deploy recipes`, or name a .toml file."
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
    except (tomllib.TOMLDecodeError, RecursionError) as error:
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
    return tomli_w.dumps(recipe.model_dump(exclude_none=True))


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
    except (tomllib.TOMLDecodeError, RecursionError) as error:
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
                said = first["msg"].replace("tuple", "list")  # TOML has lists
                what = f"{key} is {first['input']!r}: {said[0].lower()}{said[1:]}"
        raise InputError(f"{source}: {what}.", _key_remedy(key)) from error


def _key_remedy(key: str) -> str:
    keys = recipe_keys()
    known = next((name for name in (key, key.rpartition(".")[0]) if name in keys), None)
    if known is not None:
        return f"{known}: {keys[known]}."
    section = key.partition(".")[0]
    own = [name for name in keys if name.startswith(f"{section}.")]
    if key == section and own:
        return f"it is a section, with {', '.join(own)}."
    sections = () if "." in key else dict.fromkeys(name.partition(".")[0] for name in keys if "." in name)
    return _nearest(key, [*sections, *keys]) or f"the keys are {', '.join(own or keys)}."


def _nearest(word: str, names: Iterable[str]) -> str:
    """A question with the most similar name, first by the last part (`lr` for `training.lr`), or nothing."""
    all_names = list(names)
    last_parts = [name.rpartition(".")[2] for name in all_names]
    last = word.rpartition(".")[2]
    holding = [part for part in last_parts if len(last) > 3 and last in part]  # freeze, of freeze_exponents
    close = difflib.get_close_matches(last, last_parts, 1, 0.6) or holding
    if not close:
        return ""
    same = [name for name, part in zip(all_names, last_parts, strict=True) if part == close[0]]
    return f"did you mean {difflib.get_close_matches(word, same, 1, 0.0)[0]}?"
