"""The recipes of the paper's rows: its figures and numbers, and where each reading is explained."""

from __future__ import annotations

import re
from math import isclose
from pathlib import Path

import pytest

from faq_deploy.recipe import Recipe, list_recipes, load_recipe, override, resolved
from faq_deploy.schedule import learning_rate, micro_batches, optimizer_steps

_READINGS = Path(__file__).parents[1] / "docs" / "readings.md"
_RECIPES = Path(__file__).parents[1] / "faq_deploy" / "recipes"

# as printed: top-1 of the float net and of FAQ
TABLE_1 = {
    "table1-resnet18-8bit": (69.76, 70.02),
    "table1-resnet18-4bit": (69.76, 69.78),
    "table1-resnet34-8bit": (73.30, 73.71),
    "table1-resnet34-4bit": (73.30, 73.31),
    "table1-resnet50-8bit": (76.15, 76.52),
    "table1-resnet50-4bit": (76.15, 76.27),
    "table1-resnet152-8bit": (78.31, 78.54),
    "table1-inceptionv3-8bit": (77.45, 77.60),
    "table1-densenet161-8bit": (77.65, 77.84),
    "table1-vgg16bn-8bit": (73.36, 73.66),
}
# epochs, batch, schedule, weight decay and top-1 of Table 2, and of sections 4.2 and 4.3
TABLE_2: dict[str, tuple[int, int, str, float, float]] = {
    "table2-standard": (110, 256, "exponential", 0.5e-4, 69.82),
    "table2-60-epochs": (60, 400, "exponential", 0.5e-4, 69.40),
    "table2-scratch-steps": (110, 256, "step", 0.5e-4, 69.24),
    "table2-growing-batch": (165, 256, "exponential", 0.5e-4, 69.96),
    "table2-steps": (110, 256, "step", 0.5e-4, 69.90),
    "table2-weight-decay": (110, 256, "exponential", 1e-4, 69.59),
    "table2-no-calibration": (110, 256, "exponential", 0.5e-4, 69.19),
    "section42-30-epochs": (30, 400, "exponential", 0.5e-4, 69.30),
    "section42-110-epochs": (110, 400, "exponential", 0.5e-4, 69.68),
    "section43-scratch-exponential": (110, 256, "exponential", 0.5e-4, 67.14),
}
CIFAR = {"cifar-resnet18-8bit": (94.65, 94.65), "cifar-resnet18-4bit": (94.65, 94.63)}
ROWS = (*TABLE_1, *TABLE_2, *CIFAR)
FROM_SCRATCH = ("table2-scratch-steps", "section43-scratch-exponential")


def explained() -> set[str]:
    """Numbers of the readings that the page has a paragraph for."""
    return set(re.findall(r"^\*\*(A\d+)\. ", _READINGS.read_text("utf-8"), re.MULTILINE))


def test_every_row_has_its_recipe_and_no_recipe_is_without_a_test() -> None:
    found = {name for name in list_recipes() if load_recipe(name).paper.row}
    assert found == {*ROWS, "cifar-float"}


@pytest.mark.parametrize("name", [*TABLE_1, *CIFAR])
def test_figures_are_the_papers(name: str) -> None:
    paper = load_recipe(name).paper
    assert (paper.float_top1, paper.top1) == (TABLE_1 | CIFAR)[name]


@pytest.mark.parametrize("name", TABLE_2)
def test_rows_of_table_2_differ_from_the_standard_as_printed(name: str) -> None:
    recipe = load_recipe(name)
    training = recipe.training
    found = (training.epochs, training.batch_size, training.schedule, training.weight_decay, recipe.paper.top1)
    assert found == TABLE_2[name]
    assert (recipe.bits, recipe.paper.model, training.momentum) == (4, "torchvision:resnet18", 0.9)


@pytest.mark.parametrize("name", ROWS)
def test_rows_are_in_the_papers_own_form(name: str) -> None:
    recipe = resolved(load_recipe(name), "any")
    assert (recipe.target, recipe.quantizer.batch_norm, recipe.quantizer.granularity) == ("paper", "paper", "tensor")
    assert recipe.quantizer.certify is False


@pytest.mark.parametrize("name", ROWS)
def test_the_deployable_form_is_the_options_that_the_description_names(name: str) -> None:
    recipe = load_recipe(name)
    options = "--target tensorrt --set quantizer.batch_norm=fold"
    assert f"`{options}`" in recipe.description
    deployable = resolved(override(recipe, ["target=tensorrt", options.rpartition(" ")[2]]), "any")
    assert (deployable.quantizer.granularity, deployable.quantizer.certify) == ("channel", True)


@pytest.mark.parametrize("name", ROWS)
def test_descriptions_name_their_section_and_recipes_are_complete(name: str) -> None:
    assert re.search(r"[Ss]ection [34]\.\d", load_recipe(name).description)
    text = (_RECIPES / f"{name}.toml").read_text("utf-8")
    keys = set(re.findall(r"^(\w+) = ", text, re.MULTILINE))
    assert keys >= {"batch_norm", "method", "epochs", "batch_size", "lr", "momentum", "weight_decay", "schedule"}
    assert keys >= {"augment", "row", "model", "weights", "top1", "readings"}


@pytest.mark.parametrize("name", ROWS)
def test_readings_of_a_row_are_explained(name: str) -> None:
    readings = load_recipe(name).paper.readings
    assert len(readings) >= 5
    assert set(readings) <= explained()


def test_all_readings_are_explained_in_order() -> None:
    numbers = re.findall(r"^\*\*A(\d+)\. ", _READINGS.read_text("utf-8"), re.MULTILINE)
    assert [int(number) for number in numbers] == list(range(1, 35))


def test_the_generic_4_bit_recipe_trains_resnet18_as_its_row_does() -> None:
    generic = resolved(load_recipe("faq-4bit"), "resnet18").training
    row = load_recipe("table1-resnet18-4bit").training
    assert generic.model_copy(update={"augment": "imagenet"}) == row == load_recipe("table2-standard").training


@pytest.mark.parametrize("name", FROM_SCRATCH)
def test_nets_from_scratch_start_from_random_weights_without_calibration(name: str) -> None:
    recipe = load_recipe(name)
    assert (recipe.paper.weights, recipe.calibration.method, recipe.training.lr) == ("random", "fixed", 0.1)
    assert recipe.paper.float_top1 is None


def test_only_the_row_without_calibration_fixes_the_ranges_of_a_pretrained_net() -> None:
    fixed = {name for name in ROWS if load_recipe(name).calibration.method == "fixed"}
    assert fixed == {*FROM_SCRATCH, "table2-no-calibration"}


def after_last(recipe: Recipe) -> float:
    """The rate that an exponential would reach one epoch after the last, which the paper calls the final one."""
    return learning_rate(recipe.training, recipe.training.epochs)


@pytest.mark.parametrize(
    ("name", "gamma", "final"),
    [
        ("table1-resnet18-4bit", 0.936, 1.04e-6),
        ("section42-30-epochs", 0.784, 1.01e-6),
        ("table2-60-epochs", 0.885, 0.98e-6),
        ("section42-110-epochs", 0.936, 1.04e-6),
        ("table2-growing-batch", 0.957, 1.06e-6),
        ("section43-scratch-exponential", 0.901, 1.05e-6),
    ],
)
def test_exponentials_end_near_one_millionth(name: str, gamma: float, final: float) -> None:
    recipe = load_recipe(name)
    lr, epochs = recipe.training.lr, recipe.training.epochs
    assert recipe.training.gamma == gamma == round((1e-6 / lr) ** (1 / epochs), 3)
    assert after_last(recipe) == lr * gamma**epochs
    assert isclose(after_last(recipe), final, abs_tol=0.005e-6)


def test_steps_from_scratch_drop_twice_at_the_last_milestone() -> None:
    training = load_recipe("table2-scratch-steps").training
    rates = [learning_rate(training, epoch) for epoch in (0, 29, 30, 60, 84, 85, 94, 95, 109)]
    expected = [0.1, 0.1, 1e-2, 1e-3, 1e-3, 1e-4, 1e-4, 1e-6, 1e-6]
    assert all(isclose(a, b, rel_tol=1e-12) for a, b in zip(rates, expected, strict=True))


@pytest.mark.parametrize(("name", "first"), [("table2-steps", 1e-3), ("cifar-resnet18-4bit", 0.02)])
def test_the_step_schedule_falls_by_a_thousand(name: str, first: float) -> None:
    training = load_recipe(name).training
    rates = [learning_rate(training, epoch) for epoch in (0, 29, 30, 59, 60, 89, 90, 109)]
    expected = [first, first, first / 10, first / 10, first / 100, first / 100, first / 1000, first / 1000]
    assert all(isclose(a, b, rel_tol=1e-12) for a, b in zip(rates, expected, strict=True))


def test_the_growing_batch_reaches_2048_and_keeps_the_number_of_updates() -> None:
    training = load_recipe("table2-growing-batch").training
    sizes = [training.batch_size * micro_batches(training, epoch) for epoch in (0, 54, 55, 149, 150, 159, 160, 164)]
    assert sizes == [256, 256, 512, 512, 1024, 1024, 2048, 2048]
    batches = 5005  # 1,281,167 images, 256 a batch
    updates = sum(optimizer_steps(training, batches, epoch) for epoch in range(165))
    assert updates == 55 * 5005 + 95 * 2503 + 10 * 1252 + 5 * 626 == 528710
    assert round(updates / batches, 1) == 105.6


def test_eight_bits_take_one_epoch_on_imagenet_and_ten_on_cifar10() -> None:
    rows = [load_recipe(name) for name in ROWS if load_recipe(name).bits == 8]
    assert {(r.training.lr, r.training.schedule, r.training.batch_size) for r in rows} == {(1e-4, "constant", 256)}
    found = {(r.paper.model.partition(":")[0], r.training.epochs, r.training.weight_decay) for r in rows}
    assert found == {("torchvision", 1, 1e-4), ("builtin", 10, 5e-4)}


def test_cifar_rows_keep_the_float_nets_weight_decay_and_augmentation() -> None:
    base = load_recipe("cifar-float").training
    for name in CIFAR:
        training = load_recipe(name).training
        assert (training.weight_decay, training.augment) == (base.weight_decay, base.augment) == (5e-4, "cifar")


def test_the_two_readings_of_the_4_bit_step_differ_by_five_decibels_on_normal_weights() -> None:
    torch = pytest.importorskip("torch")
    from faq_deploy.fixed_point import FixedPoint, quantize
    from faq_deploy.weight_rule import weight_exponents

    grid = FixedPoint(4, signed=True, narrow=True)
    scales = 2 ** (torch.arange(32) / 32)  # averages over what rounding up to a power of two adds
    quantiles = (torch.arange(2**16, dtype=torch.float64) + 0.5) / 2**16
    weights = torch.special.ndtri(quantiles).float() * scales[:, None]

    def decibels(factor: float) -> float:
        (exponents,) = weight_exponents([weights], [grid], ["sigma"], per_channel=True, sigma_factor=factor)
        error = (quantize(weights, exponents[:, None], grid) - weights) / scales[:, None]
        return float(-10 * error.square().mean().log10())

    found = {factor: round(decibels(factor), 1) for factor in (3.95, 4.12, 8.24)}
    assert found == {3.95: 17.9, 4.12: 17.8, 8.24: 12.6}
