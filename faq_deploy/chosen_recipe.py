"""The recipe that a command line asks for: a named one, with the values of the options in it and what follows."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence

from faq_deploy.recipe import Recipe, load_recipe, override
from faq_deploy.schedule import scaled_doublings, scaled_milestones

__all__ = ["assignments", "chosen_recipe"]


def chosen_recipe(
    name: str | None,
    bits: int | None,
    overrides: Mapping[str, object],
    texts: Sequence[str],
    note: Callable[[str], None],
) -> Recipe:
    """A recipe with the command line's values in it.

    Where another number of epochs is asked for, the milestones of a step schedule and the epochs at which the batch
    doubles move in proportion. A recipe made for one precision and taken at the other says so in its name.

    Args:
        name: of the recipe, or its file; None takes the paper's for `bits`.
        bits: precision; None leaves it to the recipe.
        overrides: values by key.
        texts: of `--set`, such as `training.lr=0.01`.
        note: told, a sentence each, what was fitted.

    Raises:
        InputError: no such recipe or key, or a value that cannot be.
    """
    base = load_recipe(name or f"faq-{bits or 8}bit")
    wanted = assignments(bits, overrides, texts)
    recipe = override(base, [*wanted, *_fitted_schedule(base, wanted, note)])
    if recipe.bits == base.bits:
        return recipe
    note(
        f"recipe {base.name} is meant for {base.bits} bits: with --bits {recipe.bits} its training is kept and its "
        f"precision is not (recipe faq-{recipe.bits}bit is the paper's for {recipe.bits} bits)"
    )
    return recipe.model_copy(update={"name": f"{base.name} with --bits {recipe.bits}"})


def assignments(bits: int | None, overrides: Mapping[str, object], texts: Sequence[str]) -> list[str]:
    """All values of the command line as `KEY=VALUE`, to be set at once: one alone may not fit the recipe."""
    given = dict(overrides)
    if bits is not None:
        given["bits"] = bits
    return [f"{key}={_toml(value)}" for key, value in given.items()] + list(texts)


def _toml(value: object) -> str:
    """A number, text, list or table of these on one line."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{json.dumps(key)} = {_toml(item)}" for key, item in value.items()) + "}"
    return json.dumps(value)


def _fitted_schedule(base: Recipe, wanted: Sequence[str], note: Callable[[str], None]) -> list[str]:
    """What to set besides, so that the recipe's schedules fit another number of epochs."""
    keys = {text.partition("=")[0].strip() for text in wanted}
    own = base.training
    steps = own.schedule == "step" and not keys & {"training.schedule", "training.milestones"}
    doubles = bool(own.batch_doublings) and "training.batch_doublings" not in keys
    if "training.epochs" not in keys or not (steps or doubles):
        return []
    free = ["training.schedule=constant"] if steps else []  # there milestones don't count
    free += ["training.batch_doublings=[]"] if doubles else []
    epochs = override(base, [*wanted, *free]).training.epochs
    if epochs in (0, own.epochs):
        return []
    fitted = _fitted_milestones(base, epochs, note) if steps else []
    return fitted + (_fitted_doublings(base, epochs, note) if doubles else [])


def _fitted_milestones(base: Recipe, epochs: int, note: Callable[[str], None]) -> list[str]:
    own, marks = base.training, scaled_milestones(base.training, epochs)
    if not marks:
        note(f"learning rate: constant over {_epochs(epochs)}, too few for the steps of recipe {base.name}")
        return ["training.schedule=constant"]
    note(
        f"learning rate: falls after epoch {_listed(marks)} of {epochs}, in proportion to {_listed(own.milestones)} "
        f"of {own.epochs} in recipe {base.name}"
    )
    return [f"training.milestones={list(marks)}"]


def _fitted_doublings(base: Recipe, epochs: int, note: Callable[[str], None]) -> list[str]:
    own, marks = base.training, scaled_doublings(base.training, epochs)
    if not marks:
        note(f"batch: constant over {_epochs(epochs)}, too few for the doublings of recipe {base.name}")
    else:
        note(
            f"batch: doubles after epoch {_listed(marks)} of {epochs}, in proportion to "
            f"{_listed(own.batch_doublings)} of {own.epochs} in recipe {base.name}"
        )
    return [f"training.batch_doublings={list(marks)}"]


def _epochs(count: int) -> str:
    return f"{count} epoch{'s' if count != 1 else ''}"


def _listed(numbers: Sequence[int]) -> str:
    *first, last = map(str, numbers)
    return f"{', '.join(first)} and {last}" if first else last
