"""Tests of which corrections a recipe may ask for, and that it gets them."""

from __future__ import annotations

import pytest
import torch

from engines.errors import InputError
from faq_deploy.activation_exponents import calibrate
from faq_deploy.correction import correct, correctable, corrects
from faq_deploy.recipe import Recipe, load_recipe, override
from faq_deploy.rewrite import rewrite
from tests.nets import Small, with_statistics
from tests.quantized import images


def _recipe(**calibration: object) -> Recipe:
    return override(load_recipe("faq-8bit"), {f"calibration.{key}": value for key, value in calibration.items()})


def test_recipes_ask_for_none_by_default() -> None:
    assert not corrects(load_recipe("faq-8bit").calibration)
    assert not corrects(load_recipe("faq-4bit").calibration)
    assert correctable(load_recipe("faq-4bit")) == load_recipe("faq-4bit")


@pytest.mark.parametrize("choice", [{"weight_rounding": "compensated"}, {"bias_correction": "empirical"}])
def test_batch_norms_of_the_paper_are_refused(choice: dict[str, object]) -> None:
    recipe = override(_recipe(**choice), {"quantizer.batch_norm": "paper"})
    with pytest.raises(InputError, match=f"{next(iter(choice))} needs layers whose bias can change, but batch_norm is"):
        correctable(recipe)


def test_compensated_rounding_takes_a_rule_that_finds_its_codes_again() -> None:
    recipe = override(_recipe(weight_rounding="compensated"), {"bits": 4})
    assert correctable(recipe).quantizer.weight_rule == "mse"
    assert correctable(override(recipe, {"quantizer.weight_rule": "max"})).quantizer.weight_rule == "max"
    with pytest.raises(InputError, match="the rule sigma would not find its codes again"):
        correctable(override(recipe, {"quantizer.weight_rule": "sigma"}))


def test_only_one_of_them_sets_biases() -> None:
    with pytest.raises(InputError, match="bias_correction must be none where weight_rounding is compensated"):
        _recipe(weight_rounding="compensated", bias_correction="analytic")


@pytest.mark.parametrize(
    "choice",
    [{"weight_rounding": "compensated"}, {"bias_correction": "empirical"}, {"bias_correction": "analytic"}, {}],
)
def test_what_is_asked_for_is_done_and_nothing_else(choice: dict[str, object]) -> None:
    recipe, data = correctable(_recipe(**choice)), images(16)
    net = rewrite(with_statistics(Small()), data, recipe)
    calibrate(net, [data], recipe.calibration, recipe.target)
    weights = {name: layer.constants()[0].detach().clone() for name, layer in net.weighted().items()}
    before = net(data).detach()
    correct(net, [data], recipe.calibration)
    same = [torch.equal(layer.constants()[0], weights[name]) for name, layer in net.weighted().items()]
    assert all(same) is ("weight_rounding" not in choice)
    assert torch.equal(net(data), before) is (not choice)
