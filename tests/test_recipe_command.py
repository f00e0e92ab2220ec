"""The command that runs a recipe is one that the command line takes."""

from __future__ import annotations

import shlex

import pytest

from cli import main
from faq_deploy.chosen_recipe import chosen_recipe
from faq_deploy.recipe import list_recipes, load_recipe
from faq_deploy.recipe_command import run_command, trains_float


def words(name: str) -> str:
    return shlex.join(run_command(load_recipe(name)))


@pytest.mark.parametrize(
    ("name", "command"),
    [
        (
            "table1-vgg16bn-8bit",
            "faq-deploy quantize torchvision:vgg16_bn --weights IMAGENET1K_V1 --data DIR "
            "--recipe table1-vgg16bn-8bit -o runs/table1-vgg16bn-8bit",
        ),
        (
            "table2-scratch-steps",
            "faq-deploy quantize torchvision:resnet18 --weights random --data DIR "
            "--recipe table2-scratch-steps -o runs/table2-scratch-steps",
        ),
        (
            "cifar-resnet18-4bit",
            "faq-deploy quantize builtin:resnet18-cifar --weights runs/cifar-float/float.pth --data cifar10:DIR "
            "--recipe cifar-resnet18-4bit -o runs/cifar-resnet18-4bit",
        ),
        (
            "cifar-float",
            "faq-deploy train builtin:resnet18-cifar --data cifar10:DIR --recipe cifar-float -o runs/cifar-float",
        ),
        ("faq-4bit", "faq-deploy quantize MODEL --weights FILE --data DIR --recipe faq-4bit -o runs/faq-4bit"),
        ("float", "faq-deploy train MODEL --data DIR --recipe float -o runs/float"),
        (
            "digits-8bit",
            "faq-deploy quantize builtin:digits-resnet --weights runs/digits-float/float.pth --data digits "
            "--recipe digits-8bit -o runs/digits-8bit",
        ),
    ],
)
def test_commands_are_complete(name: str, command: str) -> None:
    assert words(name) == command


@pytest.mark.parametrize("name", list_recipes())
def test_command_line_takes_every_command_and_finds_the_recipe(name: str) -> None:
    program, verb, *arguments = run_command(load_recipe(name))
    assert program == "faq-deploy"
    context = main.commands[verb].make_context(verb, list(arguments))
    assert chosen_recipe(context.params["recipe"], None, {}, (), print) == load_recipe(name)


def test_recipes_whose_training_alone_counts_are_for_train() -> None:
    of_float = {name for name in list_recipes() if "Only [training] counts" in load_recipe(name).description}
    assert of_float == {name for name in list_recipes() if trains_float(load_recipe(name))}


def test_a_file_is_named_as_it_was_given() -> None:
    recipe = load_recipe("faq-8bit").model_copy(update={"name": "mine"})
    assert run_command(recipe, "my recipes/mine.toml")[-4:] == ("--recipe", "my recipes/mine.toml", "-o", "runs/mine")
