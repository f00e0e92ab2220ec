"""The recipe of a command line: its name says what it is, and its schedule fits the number of epochs."""

from __future__ import annotations

import pytest

from engines.errors import InputError
from faq_deploy.chosen_recipe import chosen_recipe
from faq_deploy.recipe import Recipe, load_recipe


def chosen(
    name: str | None = None, bits: int | None = None, texts: tuple[str, ...] = (), **overrides: object
) -> tuple[Recipe, list[str]]:
    """The recipe, and what was said about it."""
    said: list[str] = []
    values = {f"training.{key}": value for key, value in overrides.items()}
    return chosen_recipe(name, bits, values, texts, said.append), said


@pytest.mark.parametrize(("name", "bits"), [(None, None), (None, 4), ("faq-4bit", 4), ("float", None), ("quick", 8)])
def test_recipe_at_its_own_precision_keeps_its_name_and_nothing_is_said(name: str | None, bits: int | None) -> None:
    recipe, said = chosen(name, bits)
    assert recipe == load_recipe(name or f"faq-{bits or 8}bit")
    assert said == []


@pytest.mark.parametrize("texts", [(), ("bits=8",)])
def test_recipe_at_another_precision_says_so_in_its_name_and_once(texts: tuple[str, ...]) -> None:
    recipe, said = chosen("faq-4bit", None if texts else 8, texts)
    assert (recipe.name, recipe.bits, recipe.training.epochs) == ("faq-4bit with --bits 8", 8, 110)
    (line,) = said
    assert "recipe faq-4bit is meant for 4 bits" in line
    assert "faq-8bit is the paper's for 8 bits" in line


@pytest.mark.parametrize(
    ("epochs", "milestones"), [(45, (15, 30)), (9, (3, 6)), (180, (60, 120)), (3, (1, 2)), (2, (1,))]
)
def test_milestones_move_with_the_number_of_epochs(epochs: int, milestones: tuple[int, ...]) -> None:
    recipe, said = chosen("float", epochs=epochs)  # 30 and 60 of 90
    assert recipe.training.milestones == milestones
    assert (recipe.training.schedule, recipe.training.epochs) == ("step", epochs)
    (line,) = said
    assert f"of {epochs}, in proportion to 30 and 60 of 90 in recipe float" in line
    assert chosen("float", texts=(f"training.epochs={epochs}",))[0] == recipe


def test_a_single_epoch_has_no_steps() -> None:
    recipe, said = chosen("float", epochs=1)
    assert (recipe.training.schedule, recipe.training.lr) == ("constant", 0.1)
    assert said == ["learning rate: constant over 1 epoch, too few for the steps of recipe float"]


def test_milestones_that_were_named_are_taken_as_they_are() -> None:
    recipe, said = chosen("float", texts=("training.milestones=[5]",), epochs=10)
    assert (recipe.training.milestones, said) == ((5,), [])
    with pytest.raises(InputError, match=r"training\.milestones has 50, but the last epoch is 9"):
        chosen("float", texts=("training.milestones=[50]",), epochs=10)
    assert chosen("float", epochs=0)[1] == []
    assert chosen("float", epochs=90) == (load_recipe("float"), [])


def test_doublings_of_the_batch_move_with_the_number_of_epochs() -> None:
    recipe, said = chosen("table2-growing-batch", epochs=33)  # 55, 150 and 160 of 165
    assert (recipe.training.epochs, recipe.training.batch_doublings) == (33, (11, 30, 32))
    assert said == [
        "batch: doubles after epoch 11, 30 and 32 of 33, in proportion to 55, 150 and 160 of 165 in recipe "
        "table2-growing-batch"
    ]
    assert chosen("table2-growing-batch", texts=("training.epochs=33",))[0] == recipe


def test_a_single_epoch_has_no_doublings() -> None:
    recipe, said = chosen("table2-growing-batch", epochs=1)
    assert recipe.training.batch_doublings == ()
    assert said == ["batch: constant over 1 epoch, too few for the doublings of recipe table2-growing-batch"]


def test_doublings_that_were_named_are_taken_as_they_are() -> None:
    recipe, said = chosen("table2-growing-batch", texts=("training.batch_doublings=[5]",), epochs=10)
    assert (recipe.training.batch_doublings, said) == ((5,), [])
    with pytest.raises(InputError, match=r"training\.batch_doublings has 50, but the last epoch is 9"):
        chosen("table2-growing-batch", texts=("training.batch_doublings=[50]",), epochs=10)
    assert chosen("table2-growing-batch", epochs=0)[1] == []


def test_steps_and_doublings_move_together() -> None:
    texts = ("training.schedule=step", "training.milestones=[15]", "training.gamma=0.1")
    recipe, said = chosen("table2-growing-batch", texts=texts, epochs=33)
    assert (recipe.training.milestones, recipe.training.batch_doublings) == ((15,), (11, 30, 32))
    assert len(said) == 1
    grown = chosen("float", texts=("training.batch_doublings=[3]",), epochs=9)[0].training  # 30 and 60 of 90
    assert (grown.milestones, grown.batch_doublings) == ((3, 6), (3,))


def test_a_milestone_given_twice_stays_so() -> None:
    recipe, said = chosen("table2-scratch-steps", epochs=22)  # 30, 60, 85, 95 and 95 of 110
    assert recipe.training.milestones == (6, 12, 17, 19, 19)
    assert "falls after epoch 6, 12, 17, 19 and 19 of 22" in said[0]
