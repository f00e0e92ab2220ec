"""What the command line of `quantize` and `train` asks for: the model, the images and the recipe of a new run."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from engines.errors import CannotRunHere, InputError
from faq_deploy.before_torch import require_model
from faq_deploy.chosen_recipe import chosen_recipe
from faq_deploy.data import Splits, default_preprocessing, open_data
from faq_deploy.models import LoadedModel, load_model
from faq_deploy.recipe import Recipe, resolved
from faq_deploy.run_data import (
    DataFacts,
    DataOptions,
    data_facts,
    preprocessing_for,
    preprocessing_in_words,
    trained_preprocessing,
)

__all__ = ["Note", "QuantizeOptions", "make_recipe", "open_training", "pick_device"]

Note = Callable[[str], None]


@dataclass(frozen=True)
class QuantizeOptions:
    """What the command line of `quantize` (and `train`) says."""

    model: str | None
    output: Path
    data: DataOptions
    weights: str | None = None
    num_classes: int | None = None
    prefer_ema: bool = False
    recipe: str | None = None
    bits: int | None = None
    assignments: Sequence[str] = ()
    overrides: dict[str, object] = dataclasses.field(default_factory=dict)
    device: str = "auto"
    workers: int = 0
    keep: str | None = None
    resume: bool = False
    force: bool = False


def make_recipe(options: QuantizeOptions, note: Note = lambda text: None) -> Recipe:
    """The named recipe (or the one that --bits stands for) with the command line's values in it.

    Args:
        options: of the command line.
        note: told what was fitted to those values.

    Raises:
        InputError: no such recipe or key, or a value that cannot be.
    """
    return chosen_recipe(options.recipe, options.bits, options.overrides, options.assignments, note)


def open_training(options: QuantizeOptions, note: Note) -> tuple[LoadedModel, Splits, Recipe, DataFacts]:
    """The float model, the data and the resolved recipe of a new run.

    Args:
        options: of the command line.
        note: told, a sentence each, what was chosen where the command line leaves it open.

    Raises:
        InputError: an argument is missing or wrong.
    """
    model = require_model(options.model)
    recipe = make_recipe(options, note)
    seed = recipe.training.seed
    facts = data_facts(options.data, seed)
    loaded = load_model(
        model, options.weights, num_classes=options.num_classes, prefer_ema=options.prefer_ema, seed=seed
    )
    if options.prefer_ema and loaded.weights_sha256 is None:
        raise InputError(
            "--ema chooses among the weights of a checkpoint, and no checkpoint file was named.",
            "pass --weights FILE, or leave out --ema.",
        )
    if options.weights is None:
        note(f"no --weights: {model} is taken with the weights that its factory gives it")
    trained = trained_preprocessing(options.weights)
    base = trained or default_preprocessing(facts.data) or loaded.preprocessing
    splits = open_data(
        facts.data,
        preprocessing=preprocessing_for(options.data, base),
        train_fraction=facts.train_fraction,
        seed=seed,
        class_order=facts.class_order,
    )
    origin = "" if trained is None else " (as the weights were trained)"
    note(f"preprocessing{origin}: {preprocessing_in_words(splits.train.preprocessing)}")
    random = options.weights == "random" and options.num_classes is None
    if random and loaded.takes_num_classes:  # a new head takes the data's class count
        loaded = load_model(model, "random", num_classes=len(splits.train.classes), seed=seed)
    return loaded, splits, resolved(recipe, model), facts


def pick_device(name: str) -> torch.device:
    """The device that trains: `auto` takes a GPU where torch finds one.

    Raises:
        InputError: no such kind of device.
        CannotRunHere: a GPU was asked for and there is none, or fewer.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        name = "cuda" if count else "cpu"
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise InputError(f"--device {name} is not known.", "pass auto, cpu, cuda, or cuda:1 for the second GPU.")
    device = torch.device(name)
    if device.type == "cuda" and not count:
        raise CannotRunHere("torch finds no CUDA GPU here.", "pass --device cpu, or see `faq-deploy doctor`.")
    if device.type == "cuda" and (device.index or 0) >= count:
        raise CannotRunHere(f"There is no GPU {device.index} here, only {count}.", f"pass up to cuda:{count - 1}.")
    return device
