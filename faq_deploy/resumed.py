"""A run that is continued: what it was begun with, and that the command line asks for nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from engines.errors import InputError
from engines.files import sha256_of
from engines.preprocess import Preprocessing
from faq_deploy.checkpoint import recipe_differences
from faq_deploy.chosen_recipe import assignments
from faq_deploy.new_run import QuantizeOptions, make_recipe
from faq_deploy.recipe import Recipe, dump_toml, override, resolved
from faq_deploy.run_data import DataFacts, preprocessing_for

__all__ = ["Begun", "continued_recipe"]


@dataclass(frozen=True)
class Begun:
    """What a run was begun with.

    Attributes:
        model: as named on the command line.
        recipe: that its training has reached.
        weights_sha256: of the checkpoint file it started from, if there was one.
        classes: how many.
        data: how to open its images.
        preprocessing: of them.
    """

    model: str
    recipe: Recipe
    weights_sha256: str | None
    classes: int
    data: DataFacts
    preprocessing: Preprocessing


def continued_recipe(begun: Begun, options: QuantizeOptions) -> tuple[Recipe, list[str]]:
    """The recipe to go on with, once nothing on the command line asks for another run; --epochs may differ.

    With --force, everything that the recipe says of training may.

    Returns:
        The recipe, and what --force changed in it, such as `training.lr: 0.01 became 0.02`.

    Raises:
        InputError: an option asks for something else than the run was begun with.
    """
    recipe = begun.recipe
    wanted = override(recipe, assignments(options.bits, options.overrides, options.assignments))
    named = make_recipe(options).name if options.recipe is not None else recipe.name
    if options.force and named != recipe.name:
        wanted, named = resolved(make_recipe(options), begun.model), recipe.name
    differences = recipe_differences(dump_toml(recipe), dump_toml(wanted))
    changes = [text for text in differences if options.force and text.startswith("training.")]
    differences = [text for text in differences if text not in changes]
    if wanted.name != recipe.name:
        changes.append(f"recipe: {recipe.name} became {wanted.name}")
    given = options.weights
    sha256 = sha256_of(Path(given)) if given is not None and Path(given).is_file() else begun.weights_sha256
    choices: list[tuple[str, object, object]] = [
        ("model", begun.model, options.model),
        ("recipe", recipe.name, named),
        ("sha256 of the weights", begun.weights_sha256, sha256),
        ("number of classes", begun.classes, options.num_classes),
        ("training fraction", begun.data.train_fraction, options.data.train_fraction),
        ("class order", begun.data.class_order, options.data.class_order),
    ]
    prepared = preprocessing_for(options.data, begun.preprocessing)
    choices += [(key, getattr(begun.preprocessing, key), getattr(prepared, key)) for key in type(prepared).model_fields]
    differences += [f"{name}: {was} became {now}" for name, was, now in choices if now is not None and was != now]
    if differences:
        raise InputError(
            f"{options.output} was begun in another way ({'; '.join(differences)}).",
            _remedy(differences, forced=options.force),
        )
    return wanted, changes


def _remedy(differences: Sequence[str], *, forced: bool) -> str:
    trained = all(text.startswith("training.") for text in differences)
    if trained and not forced:
        return "resume without those options, go on with them by --resume --force, or start anew with --force alone."
    return "resume without those options, or start anew with --force alone."
