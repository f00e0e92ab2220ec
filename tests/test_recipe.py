"""Recipes: what comes with the tool, what can be changed, and what is refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.errors import InputError
from faq_deploy.recipe import (
    Recipe,
    dump_toml,
    list_recipes,
    load_recipe,
    override,
    parse_recipe,
    recipe_keys,
    resolved,
    weight_rule_for,
)

MINIMAL = "[training]\nepochs = 2\nlr = 0.1\n"


def refusal(recipe: Recipe, *assignments: str) -> str:
    with pytest.raises(InputError) as caught:
        override(recipe, assignments)
    return str(caught.value)


def test_the_recipes_of_the_manual_are_there_under_their_own_names() -> None:
    names = list_recipes()
    assert tuple(name for name in names if not load_recipe(name).paper.row) == (
        "cifar-quick",
        "digits-4bit",
        "digits-8bit",
        "digits-float",
        "faq-4bit",
        "faq-8bit",
        "float",
        "quick",
    )
    assert len(names) == 8 + 23  # and those of tests/test_paper_recipes.py
    assert tuple(load_recipe(name).name for name in names) == names


@pytest.mark.parametrize("name", list_recipes())
def test_every_recipe_says_what_it_is_and_survives_a_round_trip(name: str) -> None:
    recipe = load_recipe(name)
    assert len(recipe.description) > 40
    assert not re.search(r"\b[A-Z]\d+\b", recipe.description)  # codes of our own notes mean nothing to a reader
    assert parse_recipe(dump_toml(recipe), name) == recipe


def test_faq_8bit_has_the_papers_numbers() -> None:
    recipe = load_recipe("faq-8bit")
    training = recipe.training
    assert (recipe.bits, training.epochs, training.lr, training.momentum) == (8, 1, 1e-4, 0.9)
    assert (training.batch_size, training.weight_decay, training.schedule) == (256, 1e-4, "constant")
    assert "section 3.3" in recipe.description and "our choice" in recipe.description


def test_faq_4bit_has_the_papers_numbers() -> None:
    recipe = load_recipe("faq-4bit")
    training = recipe.training
    assert (recipe.bits, training.epochs, training.lr, training.gamma) == (4, 110, 0.0015, 0.936)
    assert (training.batch_size, training.momentum, training.schedule) == (256, 0.9, "exponential")
    assert "section 3.3" in recipe.description and "misprint" in recipe.description


def test_calibration_defaults_are_the_papers() -> None:
    section = load_recipe("faq-4bit").calibration
    assert (section.batches, section.batch_size) == (5, 256)
    assert (section.percentile_8, section.percentile_4) == (99.99, 99.9)


@pytest.mark.parametrize(
    ("model", "decay"),
    [("torchvision:resnet18", 0.5e-4), ("torchvision:resnet34", 1e-4), ("net.py:resnet18_cifar", 0.5e-4)],
)
def test_weight_decay_is_halved_for_resnet18_only(model: str, decay: float) -> None:
    assert resolved(load_recipe("faq-4bit"), model).training.weight_decay == decay


def test_the_first_matching_pattern_gives_the_weight_decay() -> None:
    recipe = override(load_recipe("quick"), ['training.weight_decay_for={"*net*" = 0.25, "resnet" = 0.5}'])
    assert resolved(recipe, "resnet").training.weight_decay == 0.25


@pytest.mark.parametrize(("mode", "granularity"), [("fold", "channel"), ("paper", "tensor"), ("fit", "tensor")])
def test_granularity_auto_follows_the_batch_norm_mode(mode: str, granularity: str) -> None:
    recipe = override(load_recipe("faq-4bit"), {"quantizer.batch_norm": mode})
    assert resolved(recipe, "any").quantizer.granularity == granularity


def test_granularity_that_was_chosen_is_kept() -> None:
    recipe = override(load_recipe("faq-4bit"), {"quantizer.granularity": "tensor"})
    assert resolved(recipe, "any").quantizer.granularity == "tensor"


def test_weight_rule_auto_depends_on_the_bits_of_the_weight() -> None:
    quantizer = load_recipe("faq-4bit").quantizer
    assert (weight_rule_for(quantizer, 8), weight_rule_for(quantizer, 4)) == ("mse", "sigma")
    chosen = quantizer.model_copy(update={"weight_rule": "max"})
    assert (weight_rule_for(chosen, 8), weight_rule_for(chosen, 4)) == ("max", "max")


def test_resolving_keeps_auto_only_where_it_means_two_rules() -> None:
    assert resolved(load_recipe("faq-8bit"), "any").quantizer.weight_rule == "mse"
    assert resolved(load_recipe("faq-4bit"), "any").quantizer.weight_rule == "auto"


@pytest.mark.parametrize("name", list_recipes())
def test_resolving_twice_changes_nothing(name: str) -> None:
    once = resolved(load_recipe(name), "torchvision:resnet18")
    assert resolved(once, "another model") == once


def test_overrides_are_typed_as_in_toml() -> None:
    recipe = override(
        load_recipe("faq-4bit"),
        ["training.lr = 1e-3", "training.epochs=3", "bits=8", 'target="paper"', "quantizer.batch_norm=fit"],
    )
    assert (recipe.training.lr, recipe.training.epochs, recipe.bits) == (1e-3, 3, 8)
    assert (recipe.target, recipe.quantizer.batch_norm) == ("paper", "fit")
    assert recipe.training.momentum == 0.9


def test_overrides_are_checked_together() -> None:
    steps = ["training.schedule=step", "training.milestones=[30, 60, 90]", "training.gamma=0.1"]
    assert override(load_recipe("faq-4bit"), steps).training.milestones == (30, 60, 90)


def test_calibrating_only_needs_no_possible_milestones() -> None:
    assert override(load_recipe("float"), {"training.epochs": 0}).training.milestones == (30, 60)


@pytest.mark.parametrize(
    ("assignment", "nearest"),
    [
        ("lr=0.1", "training.lr"),
        ("training.epoch=1", "training.epochs"),
        ("trainig.lr=1", "training.lr"),
        ("calibration.percentile=99", "calibration.percentile_8"),
        ("traget=paper", "target"),
        ("bit=8", "bits"),
        ("training.precison=bf16", "training.precision"),
        ("training.doublings=[3]", "training.batch_doublings"),
        ("freeze=3", "training.freeze_exponents"),
        ("training.freeze_bn=3", "training.freeze_batch_norm"),
        ("training.percentile_8=99", "calibration.percentile_8"),
        ("paper.rows=x", "paper.row"),
    ],
)
def test_an_unknown_key_is_answered_with_the_nearest_one(assignment: str, nearest: str) -> None:
    text = refusal(load_recipe("quick"), assignment)
    assert assignment.partition("=")[0] in text and f"did you mean {nearest}?" in text


@pytest.mark.parametrize(
    ("assignments", "key"),
    [
        (["training.lr=0"], "training.lr"),
        (["training.lr=inf"], "training.lr"),
        (["training.lr=fast"], "training.lr"),
        (["training.lr=true"], "training.lr"),
        (["training.lr=.1"], "training.lr"),
        (["training.epochs=-1"], "training.epochs"),
        (["training.epochs=1.5"], "training.epochs"),
        (["training.gamma=0"], "training.gamma"),
        (["training.gamma=1.01"], "training.gamma"),
        (["training.momentum=1"], "training.momentum"),
        (["training.batch_size=0"], "training.batch_size"),
        (["training.schedule=cosine"], "training.schedule"),
        (["training.schedule=step"], "training.milestones"),
        (["training.schedule=step", "training.milestones=[1]"], "training.milestones"),
        (["training.schedule=step", "training.epochs=9", "training.milestones=[3, 2]"], "training.milestones"),
        (["training.schedule=step", "training.epochs=9", "training.milestones=[0, 2]"], "training.milestones"),
        (["training.milestones=[1.5]"], "training.milestones"),
        (['training.weight_decay_for={"*" = -1.0}'], "training.weight_decay_for"),
        (["bits=5"], "bits"),
        (["bits=true"], "bits"),
        (["cpu=vnni"], "cpu"),
        (["calibration.percentile_8=101"], "calibration.percentile_8"),
        (["training.epochs=1\nbits=4"], "training.epochs"),
        (["training.epochs"], "training.epochs"),
        (["paper.top1=101"], "paper.top1"),
        (["paper.readings=A4"], "paper.readings"),
    ],
)
def test_an_impossible_value_is_refused_with_its_key(assignments: list[str], key: str) -> None:
    assert key in refusal(load_recipe("quick"), *assignments)


def test_a_milestone_after_the_last_epoch_is_named() -> None:
    text = refusal(load_recipe("float"), "training.epochs=60")
    assert "training.milestones has 60, but the last epoch is 59" in text


@pytest.mark.parametrize(
    ("assignments", "sentence"),
    [
        (["training.batch_doublings=[1]"], "training.batch_doublings has 1, but the last epoch is 0."),
        (
            ["training.epochs=9", "training.batch_doublings=[0, 3]"],
            "training.batch_doublings [0, 3] must ascend from 1.",
        ),
        (
            ["training.epochs=9", "training.batch_doublings=[3, 3]"],
            "training.batch_doublings [3, 3] must ascend from 1.",
        ),
        (["training.batch_doublings=55"], "training.batch_doublings is 55: input should be a valid list."),
        (["training.freeze_exponents=2"], "training.freeze_exponents is 2, but training.epochs is 1."),
        (["training.freeze_batch_norm=2"], "training.freeze_batch_norm is 2, but training.epochs is 1."),
        (["training.distill=1.5"], "training.distill is 1.5: input should be less than or equal to 1."),
        (["training.distill=half"], "training.distill is 'half': input should be a valid number."),
        (["training.distill_temperature=0"], "training.distill_temperature is 0: input should be greater than 0."),
        (["training.precision=fp8"], "training.precision is 'fp8': input should be 'fp32', 'bf16' or 'fp16'."),
        (
            ["training.memory_format=nhwc"],
            "training.memory_format is 'nhwc': input should be 'auto', 'contiguous' or 'channels_last'.",
        ),
        (["training.sync_batch_norm=1"], "training.sync_batch_norm is 1: input should be a valid boolean."),
        (
            ["calibration.method=fix"],
            "calibration.method is 'fix': input should be 'percentile', 'max', 'mse', 'entropy' or 'fixed'.",
        ),
        (["quantizer.certify=maybe"], "quantizer.certify is 'maybe': input should be True, False or 'auto'."),
    ],
)
def test_what_cannot_be_is_one_sentence_with_the_key_and_its_range(assignments: list[str], sentence: str) -> None:
    what, _, note = refusal(load_recipe("quick"), *assignments).partition("\n")
    assert what == f"The recipe: {sentence}"
    key = sentence.partition(" ")[0]
    assert note == f"Note: {key}: {recipe_keys()[key]}."


def test_ranges_are_named_in_what_a_key_means() -> None:
    keys = recipe_keys()
    assert "ascending from 1 to the last" in keys["training.batch_doublings"]
    assert "0 to 1" in keys["training.distill"]
    assert "up to all" in keys["training.freeze_exponents"]


def test_exponents_may_be_frozen_in_all_epochs_and_where_none_are_trained() -> None:
    assert override(load_recipe("quick"), {"training.freeze_exponents": 1}).training.freeze_exponents == 1
    none = {"training.freeze_exponents": 3, "training.epochs": 0, "training.batch_doublings": [5]}
    assert override(load_recipe("quick"), none).training.batch_doublings == (5,)


def test_a_milestone_may_be_given_twice() -> None:
    steps = ["training.schedule=step", "training.epochs=9", "training.milestones=[2, 2, 5]"]
    assert override(load_recipe("quick"), steps).training.milestones == (2, 2, 5)


def test_a_section_is_answered_with_its_keys() -> None:
    text = refusal(load_recipe("quick"), "layers=3")
    assert text == (
        "layers is no key of a recipe.\n"
        "Note: it is a section, with layers.leaf, layers.skip, layers.bits, layers.int4_linear, layers.output."
    )


def test_a_key_like_no_other_is_answered_with_those_of_its_section() -> None:
    text = refusal(load_recipe("quick"), "layers.zzz=3")
    assert text.endswith("the keys are layers.leaf, layers.skip, layers.bits, layers.int4_linear, layers.output.")


def test_the_papers_figures_change_no_other_value() -> None:
    base = load_recipe("quick")
    recipe = override(base, {"paper.row": "Table 9", "paper.top1": 70.0})
    assert recipe.model_copy(update={"paper": base.paper}) == base


def test_a_recipe_file_is_named_after_itself_and_gets_the_defaults(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(MINIMAL)
    recipe = load_recipe(file)
    assert (recipe.name, recipe.bits, recipe.target, recipe.training.epochs) == ("mine", 8, "tensorrt", 2)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[training]\nepochs = 1\n", "training.lr is missing"),
        (MINIMAL + "rate = 3\n", "training.rate is no key"),
        (MINIMAL + "lr = 3\n", "is not TOML"),
        (MINIMAL + "epochs", "is not TOML"),
        (f"quantizer = 3\n{MINIMAL}", "quantizer is 3"),
    ],
)
def test_a_faulty_recipe_file_is_refused_by_name(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(text)
    with pytest.raises(InputError) as caught:
        load_recipe(file)
    assert str(file) in caught.value.what and said in caught.value.what


@pytest.mark.parametrize(
    ("text", "what", "note"),
    [
        (MINIMAL + "epoch = 3\n", "training.epoch is no key of a recipe.", "did you mean training.epochs?"),
        (MINIMAL + "[trainings]\nx = 1\n", "trainings is no key of a recipe.", "did you mean training?"),
        (MINIMAL + "[layer]\nskip = []\n", "layer is no key of a recipe.", "did you mean layers?"),
        (
            MINIMAL + "batch_doublings = [1, 2]\n",
            "training.batch_doublings has 2, but the last epoch is 1.",
            f"training.batch_doublings: {recipe_keys()['training.batch_doublings']}.",
        ),
        (
            "[layers.bits]\nconv1 = 9\n" + MINIMAL,
            "layers.bits.conv1 is 9: input should be less than or equal to 8.",
            f"layers.bits: {recipe_keys()['layers.bits']}.",
        ),
    ],
)
def test_a_fault_in_a_file_is_one_sentence_with_its_remedy(text: str, what: str, note: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_recipe(text, "mine.toml")
    assert str(caught.value) == f"mine.toml: {what}\nNote: {note}"


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="could not be read"):
        load_recipe(file)


def test_an_unknown_recipe_is_answered_with_the_nearest_one() -> None:
    with pytest.raises(InputError, match="did you mean faq-4bit"):
        load_recipe("faq-4bits")
    with pytest.raises(InputError, match="did you mean table2-growing-batch"):
        load_recipe("growing")
    with pytest.raises(InputError, match="see `faq-deploy recipes`, or name a"):
        load_recipe("zzz")


def test_every_key_has_a_description() -> None:
    assert [key for key, text in recipe_keys().items() if not text] == []
    assert {"bits", "training.lr", "quantizer.sigma_multiple", "calibration.method"} <= recipe_keys().keys()


@given(
    name=st.text(),
    description=st.text(),
    lr=st.floats(1e-300, 1e300),
    epochs=st.integers(0, 10**6),
    patterns=st.dictionaries(st.text(), st.floats(0, 1)),
    milestones=st.lists(st.integers()),
)
def test_any_recipe_survives_being_written_and_read(
    name: str, description: str, lr: float, epochs: int, patterns: dict[str, float], milestones: list[int]
) -> None:
    training = {"lr": lr, "epochs": epochs, "weight_decay_for": patterns, "milestones": milestones}
    recipe = Recipe.model_validate({"name": name, "description": description, "training": training})
    assert parse_recipe(dump_toml(recipe), "text") == recipe


@given(st.floats(1e-300, 1e300), st.integers(0, 2**31 - 1))
def test_text_and_typed_assignments_agree(lr: float, seed: int) -> None:
    recipe = load_recipe("quick")
    typed = override(recipe, {"training.lr": lr, "training.seed": seed})
    assert override(recipe, [f"training.lr={lr!r}", f"training.seed={seed}"]) == typed
    assert (typed.training.lr, typed.training.seed) == (lr, seed)
