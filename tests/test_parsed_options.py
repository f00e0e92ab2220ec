"""What Click parsed becomes options: a flag that is left out leaves a recipe as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from faq_deploy.new_run import QuantizeOptions, make_recipe
from faq_deploy.parsed_options import training_options


def parsed(tmp_path: Path, **given: object) -> QuantizeOptions:
    names = ("data", "train_fraction", "class_order", "resize", "crop", "mean", "std", "interpolation", "color")
    plain: dict[str, Any] = dict.fromkeys((*names, "orientation", "pixel_scale", "weights", "num_classes", "recipe"))
    plain |= {"on_bad_image": "error", "ema": False, "assignments": (), "device": "cpu", "workers": 0}
    plain |= {"resume": False, "force": False, "output": tmp_path, "int4_linear": False}
    return training_options("model", plain | given)


@pytest.mark.parametrize("flag", [True, False])
def test_int4_linear_is_a_key_of_the_recipe(flag: bool, tmp_path: Path) -> None:
    options = parsed(tmp_path, int4_linear=flag)
    assert options.overrides == ({"layers.int4_linear": True} if flag else {})
    assert make_recipe(options).layers.int4_linear is flag


def test_a_recipe_that_has_it_keeps_it_without_the_flag(tmp_path: Path) -> None:
    options = parsed(tmp_path, assignments=("layers.int4_linear=true",))
    assert make_recipe(options).layers.int4_linear


def test_it_goes_together_with_bits_by_pattern(tmp_path: Path) -> None:
    options = parsed(tmp_path, int4_linear=True, bits=("4", "layer4.*=8"))
    assert (options.bits, options.overrides) == (4, {"layers.bits": {"layer4.*": 8}, "layers.int4_linear": True})
    assert make_recipe(options).layers.bits == {"layer4.*": 8}


def test_precision_and_distillation_are_keys_of_the_recipe(tmp_path: Path) -> None:
    assert parsed(tmp_path).overrides == {}
    options = parsed(tmp_path, precision="bf16", distill=0.25)
    assert options.overrides == {"training.precision": "bf16", "training.distill": 0.25}
    training = make_recipe(options).training
    assert (training.precision, training.distill) == ("bf16", 0.25)
