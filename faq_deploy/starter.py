"""The verb `init`: look at a model and at images, and write a recipe to start from."""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from torch import Tensor

from engines.files import write_atomic
from engines.host import Host, this_host
from engines.image_batches import BadImages
from engines.preprocess import Preprocessing
from faq_deploy.before_torch import require_model
from faq_deploy.data import Splits, brings_validation, default_preprocessing, open_data
from faq_deploy.inspect import inspect_net
from faq_deploy.model_fit import example_of, require_fit
from faq_deploy.models import LoadedModel, load_model
from faq_deploy.new_run import QuantizeOptions
from faq_deploy.recipe import load_recipe, override, parse_recipe, resolved
from faq_deploy.rewrite import rewrite
from faq_deploy.run_data import (
    DataOptions,
    data_facts,
    preprocessing_for,
    preprocessing_in_words,
    trained_preprocessing,
)
from faq_deploy.starter_file import next_commands, require_free, starter_toml
from faq_deploy.starter_look import look_at, same_parameters, suited, tried
from faq_deploy.starter_rules import Choice, ImageFacts, Machine, ModelFacts, Tried, cautions, choose, float_recipe

__all__ = ["Starter", "findings", "init_verb"]

_TRAIN_FRACTION: Final = 0.8  # where the images bring no validation part


@dataclass(frozen=True)
class Starter:
    """A starter recipe.

    Attributes:
        path: of the TOML file.
        model, images: what was found.
        preprocessing: in words, with where it is from.
        tried: how the float net does on some validation images; None without weights.
        choices: what the recipe says, and why.
        cautions: sentences.
        commands: what to type next, in order, each as words.
    """

    path: Path
    model: ModelFacts
    images: ImageFacts
    preprocessing: str
    tried: Tried | None
    choices: tuple[Choice, ...]
    cautions: tuple[str, ...]
    commands: tuple[tuple[str, ...], ...]


def init_verb(options: QuantizeOptions) -> Starter:
    """Look, choose, and write the recipe; see `faq-deploy init --help`.

    Args:
        options: of the command line; `output` is the recipe's file.

    Raises:
        InputError: bad input of any kind, one sentence; nothing is written then.
        CannotRunHere: a package that the model or the data needs is not installed.
    """
    require_free(options.output, force=options.force)
    model = require_model(options.model)
    loaded = load_model(
        model, options.weights, num_classes=options.num_classes, allow_random=True, prefer_ema=options.prefer_ema
    )
    loaded = _told_from_random(loaded, options)
    base, origin = _known_preprocessing(options, loaded)
    data, splits = _opened(options.data, base)
    images = look_at(splits)
    if base is None:
        data = suited(loaded.module, images, data)
        data, splits = _opened(data, None)
        images = dataclasses.replace(images, augment=splits.augment)  # at the size that was found
    classes = len(splits.train.classes)
    if loaded.untrained and loaded.takes_num_classes and options.num_classes is None:
        remade = load_model(model, options.weights, num_classes=classes, allow_random=True)
        loaded = dataclasses.replace(remade, untrained=True, source=loaded.source)
    example = example_of(splits.train, on_bad=data.on_bad, bad=BadImages())
    require_fit(loaded.module, example, model, classes)
    seen = None if loaded.untrained else tried(loaded.module, splits.val, data.on_bad)
    host = this_host()
    machine = _machine(host)
    target = options.overrides.get("target")
    size = (example.shape[2], example.shape[3])
    choices = choose(size, images, machine, options.bits or 8, None if target is None else str(target))
    made_for = next(choice.value for choice in choices if choice.key == "target")
    facts = _model_facts(model, loaded, choices, example, classes)
    trained_by = float_recipe(images) if loaded.untrained and options.weights is None else None
    starter = Starter(
        path=options.output,
        model=facts,
        images=images,
        preprocessing=f"{preprocessing_in_words(splits.train.preprocessing)} ({origin})",
        tried=seen,
        choices=choices,
        cautions=cautions(facts, images, seen, choices, machine),
        commands=next_commands(dataclasses.replace(options, data=data), loaded.name, trained_by, made_for, host),
    )
    text = starter_toml(choices, findings(starter), starter.commands)
    parse_recipe(text, str(options.output))
    write_atomic(options.output, text)
    return starter


def findings(starter: Starter) -> tuple[str, ...]:
    """What was found, a line each."""
    model, images = starter.model, starter.images
    smallest, largest = ("x".join(map(str, size)) for size in (images.smallest, images.largest))
    colours = "grey" if images.grey else "in colour"
    sizes = f"{smallest} pixels" if images.one_size else f"{smallest} to {largest} pixels"
    counts = f"{images.fewest:,}" if images.fewest == images.most else f"{images.fewest:,} to {images.most:,}"
    whole = "all of them on codes" if model.int8_layers == model.layers else f"{model.int8_layers} of them on codes"
    steps = "; ".join(f"{count} {kind}" for kind, count in model.float_steps.items())
    steps = f"; between INT8 kernels: {steps}" if steps else ""
    seen = f"{images.looked_at} looked at: {sizes}, {colours}"
    outputs = f"{model.classes} output{'' if model.classes == 1 else 's'}"
    lines = [
        f"Model: {model.source}; {outputs}; {model.layers} layers, {whole}{steps}",
        f"Data: {images.description}; {counts} training images a class; {seen}",
        f"Preprocessing: {starter.preprocessing}",
    ]
    if starter.tried is not None:
        lines.append(f"Float net: {starter.tried.right} of {starter.tried.images} validation images right")
    return (*lines, *(f"Caution: {sentence}" for sentence in starter.cautions))


def _told_from_random(loaded: LoadedModel, options: QuantizeOptions) -> LoadedModel:
    """A function of the user's own may leave the weights as they were drawn, or load trained ones: a second net tells.

    Where any parameter is drawn, a new head on a trained body, say, the net has to be trained before it is quantized.
    """
    if loaded.untrained or loaded.weights_sha256 is not None or options.weights is not None:
        return loaded
    again = load_model(options.model or "", None, num_classes=options.num_classes, seed=1)
    if same_parameters(loaded.module, again.module):
        return loaded
    source = f"{options.model}, whose weights are drawn at random (trained ones come with --weights FILE)"
    return dataclasses.replace(loaded, untrained=True, source=source)


def _known_preprocessing(options: QuantizeOptions, loaded: LoadedModel) -> tuple[Preprocessing | None, str]:
    """As `quantize` finds it, and where it is from."""
    trained = trained_preprocessing(options.weights)
    if trained is not None:
        return trained, "as the weights were trained"
    of_data = default_preprocessing(options.data.data or "")
    if of_data is not None:
        return of_data, "the data set's"
    if loaded.preprocessing is not None:
        return loaded.preprocessing, f"as {loaded.name}'s publisher trained it"
    return None, "a size that the net takes; mean and std are ImageNet's: make them what it was trained with"


def _opened(data: DataOptions, base: Preprocessing | None) -> tuple[DataOptions, Splits]:
    """The images, and the options with a part to evaluate on where the data brings none."""
    facts = data_facts(data, 0)
    if data.train_fraction is None and not brings_validation(facts.data):
        data = dataclasses.replace(data, train_fraction=_TRAIN_FRACTION)
    splits = open_data(
        facts.data,
        preprocessing=preprocessing_for(data, base),
        train_fraction=data.train_fraction,
        class_order=facts.class_order,
    )
    return data, splits


def _machine(host: Host) -> Machine:
    names = {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT-RTX"}
    found = [name for package, name in names.items() if package in host.versions]
    return Machine("" if host.gpu is None else host.gpu.name, found[0] if found else "")


def _model_facts(
    model: str, loaded: LoadedModel, choices: tuple[Choice, ...], example: Tensor, classes: int
) -> ModelFacts:
    recipe = override(load_recipe("faq-8bit"), {choice.key: choice.value for choice in choices})
    found = inspect_net(rewrite(loaded.module, example, resolved(recipe, model)), recipe, model)
    channels, height, width = example.shape[1:]
    return ModelFacts(
        name=model,
        source=loaded.source,
        classes=classes,
        input_shape=(channels, height, width),
        layers=len(found.layers),
        int8_layers=sum(row.int8 for row in found.layers),
        float_layers=tuple(f"{row.name} {row.why_float}" for row in found.layers if not row.int8),
        float_steps=dict(Counter(row.kind for row in found.floats)),
        own_weights=loaded.weights_sha256 is None and not loaded.untrained,
    )
