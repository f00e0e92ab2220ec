"""What `init` chooses from what it found: by the number of images, their size and the machine."""

from __future__ import annotations

import dataclasses

import pytest

from faq_deploy.recipe import load_recipe
from faq_deploy.starter_rules import Choice, ImageFacts, Machine, ModelFacts, Tried, cautions, choose, float_recipe

GPU, NONE = Machine("NVIDIA A10", ""), Machine("", "")
DIGITS = ImageFacts(
    description="digits",
    train=1348,
    val=449,
    classes=10,
    fewest=131,
    most=137,
    looked_at=64,
    unreadable=0,
    smallest=(8, 8),
    largest=(8, 8),
    one_size=True,
    grey=True,
    augment="shift",
)
NET = ModelFacts("net", "net", 10, (1, 8, 8), 10, 10, (), {})


def values(choices: tuple[Choice, ...]) -> dict[str, object]:
    return {choice.key.removeprefix("training."): choice.value for choice in choices}


@pytest.mark.parametrize(
    ("train", "bits", "epochs", "batch", "lr", "schedule"),
    [
        (1348, 8, 3, 64, 3e-4, "constant"),
        (1348, 4, 12, 64, 0.01, "exponential"),
        (50_000, 8, 10, 256, 1e-4, "constant"),
        (50_000, 4, 110, 256, 0.02, "step"),
        (1_281_167, 8, 1, 256, 1e-4, "constant"),
        (1_281_167, 4, 110, 256, 0.0015, "exponential"),
    ],
)
def test_training_is_that_of_the_recipe_for_about_as_many_images(
    train: int, bits: int, epochs: int, batch: int, lr: float, schedule: str
) -> None:
    images = dataclasses.replace(DIGITS, train=train)
    found = values(choose((224, 224), images, GPU, bits, None))
    assert (found["epochs"], found["batch_size"], found["lr"], found["schedule"]) == (epochs, batch, lr, schedule)
    assert found.get("milestones", [30, 60, 90]) == [30, 60, 90]
    assert ("gamma" in found) == (schedule != "constant")


@pytest.mark.parametrize(
    ("augment", "recipe"), [("shift", "digits-float"), ("cifar", "cifar-quick"), ("imagenet", "float")]
)
def test_float_training_is_of_the_recipe_for_such_images(augment: str, recipe: str) -> None:
    assert float_recipe(dataclasses.replace(DIGITS, augment=augment)) == recipe
    assert load_recipe(recipe).training.augment in {augment, "auto"}


@pytest.mark.parametrize(
    ("train", "batch", "calibration", "batches"),
    [(1, 2, 1, 1), (12, 2, 2, 5), (63, 2, 12, 5), (64, 4, 12, 5), (1000, 32, 200, 5), (1280, 64, 256, 5)],
)
def test_few_images_still_make_an_epoch_of_some_steps(train: int, batch: int, calibration: int, batches: int) -> None:
    found = values(choose((8, 8), dataclasses.replace(DIGITS, train=train), NONE, 8, None))
    assert (found["batch_size"], found["calibration.batch_size"], found["calibration.batches"]) == (
        *(batch, calibration),
        batches,
    )


def test_large_images_without_a_gpu_take_smaller_batches() -> None:
    images = dataclasses.replace(DIGITS, train=1_281_167)
    assert [values(choose((224, 224), images, m, 8, None))["batch_size"] for m in (GPU, NONE)] == [256, 64]
    assert values(choose((127, 129), images, NONE, 8, None))["batch_size"] == 256
    assert values(choose((128, 128), images, GPU, 8, None))["calibration.batch_size"] == 64


@pytest.mark.parametrize(
    ("machine", "asked", "target", "reason"),
    [
        (GPU, None, "tensorrt", "NVIDIA A10"),
        (Machine("", "TensorRT-RTX"), None, "tensorrt", "TensorRT-RTX is installed"),
        (NONE, None, "onnxruntime", "neither an NVIDIA GPU nor TensorRT"),
        (NONE, "tensorrt", "tensorrt", "asked for"),
        (GPU, "paper", "paper", "asked for"),
    ],
)
def test_target_follows_the_machine_unless_it_is_asked_for(
    machine: Machine, asked: str | None, target: str, reason: str
) -> None:
    choice = next(choice for choice in choose((8, 8), DIGITS, machine, 8, asked) if choice.key == "target")
    assert choice.value == target
    assert reason in choice.reason


def test_every_choice_has_a_reason_and_keys_of_no_section_come_first() -> None:
    choices = choose((8, 8), DIGITS, NONE, 4, None)
    assert all(choice.reason for choice in choices)
    sections = [choice.key.rpartition(".")[0] for choice in choices]
    assert sections == sorted(sections)


@pytest.mark.parametrize(
    ("model", "images", "tried", "said"),
    [
        ({}, {}, Tried(60, 64, 0.0), None),
        ({}, {}, Tried(5, 64, 0.0), "the float net gets only 5 of 64 images right"),
        ({"own_weights": True}, {}, Tried(5, 64, 0.0), "pass --weights, or run `faq-deploy train` first"),
        (
            {"float_layers": ("fc reads a float tensor",)},
            {},
            None,
            "can't be quantized whole: fc reads",
        ),
        ({}, {"unreadable": 3}, None, "3 of the 64 images looked at can't be read"),
        ({}, {"fewest": 0}, None, "a class has only 0 training images"),
        ({}, {"fewest": 10, "most": 101}, None, "classes are uneven, 10 to 101"),
        ({"input_shape": (3, 8, 8)}, {}, None, "grey is repeated in three channels"),
        ({}, {"grey": False}, None, "the images are in colour and the net takes grey"),
        ({"input_shape": (1, 9, 8)}, {}, None, "smaller than the net's input (8x8)"),
        ({}, {}, Tried(60, 64, 0.3), "3 epochs may take 1 hours"),
    ],
)
def test_what_may_surprise_is_said_and_nothing_else(
    model: dict[str, object], images: dict[str, object], tried: Tried | None, said: str | None
) -> None:
    facts = dataclasses.replace(NET, **model)  # type: ignore[arg-type]
    seen = dataclasses.replace(DIGITS, **images)  # type: ignore[arg-type]
    found = cautions(facts, seen, tried, choose((8, 8), seen, NONE, 8, None), NONE)
    assert len(found) == (said is not None), found
    assert said is None or said in found[0]


def test_hours_of_training_are_not_said_where_there_is_a_gpu() -> None:
    assert cautions(NET, DIGITS, Tried(60, 64, 0.3), choose((8, 8), DIGITS, GPU, 8, None), GPU) == ()
