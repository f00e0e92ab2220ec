"""What `recipes` prints: figures beside names, a command, and TOML that is the recipe."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from cli import main
from faq_deploy.recipe import dump_toml, list_recipes, load_recipe, override, parse_recipe


def call(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["recipes", *arguments], catch_exceptions=False)


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The list, as wide as a pipe makes it."""
    monkeypatch.setenv("COLUMNS", "80")
    return call().stdout.splitlines()


def test_list_fits_80_columns_and_names_every_recipe(lines: list[str]) -> None:
    assert [line for line in lines if len(line) > 80] == []
    found = [line.split()[0] for line in lines if re.match(r"  \S", line)]
    assert sorted(found) == sorted(list_recipes())


def test_rows_have_the_papers_figures_beside_their_name(lines: list[str]) -> None:
    assert "  table1-resnet50-4bit          76.15 -> 76.27  Table 1, ResNet-50, 4 bits" in lines
    assert "  table2-scratch-steps          random -> 69.24 Table 2, 3: from scratch, steps" in lines
    assert "  cifar-resnet18-4bit           94.65 -> 94.63  4.9, CIFAR-10, 4 bits" in lines


def test_rows_stand_in_the_order_of_the_paper(lines: list[str]) -> None:
    order = ["To start with", "Table 1, ImageNet", "Section 4.9, CIFAR-10"]
    assert [line for line in lines if line in order] == order
    table_2 = [re.findall(r"Table 2, (\d)", line) for line in lines]
    assert [found[0] for found in table_2 if found] == list("1234567")
    names = [line.split()[0] for line in lines if "Table 1, ResNet" in line]
    assert [names.index(f"table1-resnet{depth}-8bit") for depth in (18, 34, 50, 152)] == [1, 3, 5, 6]


def test_list_as_json_has_all_of_it() -> None:
    found = {entry["name"]: entry for entry in json.loads(call("--json").stdout)}
    assert tuple(sorted(found)) == list_recipes()
    row = found["table2-60-epochs"]
    assert (row["bits"], row["epochs"], row["target"]) == (4, 60, "paper")
    assert (row["paper"]["top1"], row["paper"]["float_top1"]) == (69.4, 69.76)
    assert row["command"][:3] == ["faq-deploy", "quantize", "torchvision:resnet18"]
    assert found["quick"]["paper"] is None


@pytest.mark.parametrize("name", list_recipes())
def test_what_is_shown_is_the_recipe_behind_comments(name: str) -> None:
    text = call("show", name).stdout
    assert parse_recipe(text, name) == load_recipe(name)
    comments = [line for line in text.splitlines() if line.startswith("#")]
    assert text.splitlines()[: len(comments)] == comments
    assert sum(line.startswith("# faq-deploy ") for line in comments) == 1


def test_comments_say_how_to_run_the_recipe_and_what_to_put_in() -> None:
    text = call("show", "table2-growing-batch").stdout
    start, _, toml = text.partition('name = "')
    assert start == (
        "# The paper is J. L. McKinstry et al., Discovering Low-Precision Networks Close to Full-Precision Networks "
        "for\n"
        "# Efficient Embedded Inference (arXiv:1809.04191, submitted to ICLR 2019).\n"
        "# Table 2, 4: batch 256 to 2048: 69.76 -> 69.96 (top-1 in percent, as printed)\n"
        "# How it was read (docs/readings.md): A4, A7, A8, A11, A12, A13, A14, A28, A29, A30\n"
        "#\n"
        "# faq-deploy quantize torchvision:resnet18 --weights IMAGENET1K_V1 --data DIR --recipe table2-growing-batch "
        "-o runs/table2-growing-batch\n"
        "# IMAGENET1K_V1: published weights, downloaded; or the file of them.\n"
        "# DIR: your images, train/ and val/ with a folder for each class.\n"
        "#\n"
    )
    assert "batch_doublings = [55, 150, 160]\n" in toml
    assert max(map(len, toml.splitlines())) <= 120


def test_a_recipe_is_shown_as_json_too() -> None:
    found = json.loads(call("show", "cifar-float", "--json").stdout)
    assert found["training"]["milestones"] == [150, 250]
    assert found["command"][:3] == ["faq-deploy", "train", "builtin:resnet18-cifar"]


@pytest.mark.parametrize(
    "description",
    [
        'Quotes "a", ' + "a long text " * 12,
        "A path C:\\dir and " + "more words " * 14 + 'at the end "x"',
        'Three """ and ' + "words " * 30,
        "Two  spaces " + "and more " * 20,
        "lines\nand \ttabs " * 12,
        "end with a backslash " * 8 + "\\",
    ],
)
def test_any_description_survives_being_shown(tmp_path: Path, description: str) -> None:
    recipe = override(load_recipe("quick"), {"description": description, "name": "mine", "layers.skip": ["a, b", "c]"]})
    file = tmp_path / "mine.toml"
    file.write_text(dump_toml(recipe), "utf-8")
    text = call("show", str(file)).stdout
    assert parse_recipe(text, "shown") == recipe
    assert f"--recipe {file}" in text


def test_json_before_show_is_refused() -> None:
    result = call("--json", "show", "quick")
    assert result.exit_code == 2
    assert "Error: --json belongs behind show." in result.stderr


def test_an_unknown_recipe_is_refused_with_the_nearest_one() -> None:
    result = call("show", "table2-step")
    assert (result.exit_code, result.stderr) == (
        2,
        "Error: There is no recipe 'table2-step'. [recipe]\nNote: did you mean table2-steps?\n",
    )
