"""Models that don't belong to the data are refused before anything costly starts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from engines.errors import InputError
from faq_deploy.model_fit import require_fit, require_trainable


class Pair(nn.Module):
    """Gives a pair, always or in train mode only."""

    def __init__(self, *, always: bool) -> None:
        super().__init__()
        self.always = always

    def forward(self, x: Tensor) -> object:
        logits = x.mean((2, 3))
        return (logits, x) if self.always or self.training else logits


class Boxes(nn.Module):
    """Gives a list with a dict for each image, as torchvision's detectors do."""

    def forward(self, x: Tensor) -> list[dict[str, Tensor]]:
        return [{"boxes": torch.zeros(7, 4), "scores": torch.zeros(7)} for _ in x]


def normed(channels: int = 3) -> nn.Module:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(channels), nn.Flatten(), nn.Dropout(0.5))


def images(count: int = 2, channels: int = 3) -> Tensor:
    return torch.randn(count, channels, 6, 5, generator=torch.Generator().manual_seed(0))


def test_model_that_fits_passes() -> None:
    model = normed()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    require_fit(model, images(), "m", 3)
    require_trainable(model, images(), "m", 2)
    require_trainable(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), images(), "m", 1)  # nothing to normalize
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("model", "example", "what", "remedy"),
    [
        (normed(1), images(), "m fails on images of shape 3x6x5", "--color L"),
        (normed(3), images(channels=1), "m fails on images of shape 1x6x5", "--color RGB"),
        (nn.Linear(9, 9), images(), "m fails on images of shape 3x6x5", "--crop"),
        (nn.Conv2d(3, 4, 3), images(), "an output of shape 4x4x3 per image", "classifier"),
        (Boxes(), images(), "an output of shape 4 per image", "docs/tasks.md"),
        (nn.ReLU(), images(), "an output of shape 3x6x5 per image", "classifier"),
        (normed(), images(), "m has 3 classes but the data has 4", "--num-classes"),
    ],
)
def test_model_that_does_not_is_named(model: nn.Module, example: Tensor, what: str, remedy: str) -> None:
    with pytest.raises(InputError) as caught:
        require_fit(model, example, "m", 4)
    assert what in caught.value.what
    assert remedy in caught.value.remedy


def test_one_output_is_not_counted_as_several() -> None:
    with pytest.raises(InputError, match=r"let net\.py:make make 1 output \(--num-classes 1 "):
        require_fit(normed(), images(), "net.py:make", 1)


def test_first_of_several_outputs_is_judged_and_named() -> None:
    kept = require_fit(Pair(always=True), images(), "m", 3)
    assert kept is not None
    assert kept.label == "0"
    assert kept.sentence == "m returns 0, 1: 0 is quantized, the rest is left out (--model-output)"
    with pytest.raises(InputError, match="an output of shape 3x6x5 per image"):
        require_fit(Pair(always=True), images(), "m", 3, "1")
    with pytest.raises(InputError, match="no output 'logits'"):
        require_fit(Pair(always=True), images(), "m", 3, "logits")


def test_batch_norm_over_one_value_is_refused_before_training() -> None:
    with pytest.raises(InputError, match=r"m can't be trained on 1 image at a time: .*more than 1 value per channel"):
        require_trainable(normed(), images(), "m", 1)


def test_model_with_more_outputs_in_train_mode_is_refused() -> None:
    require_fit(Pair(always=False), images(), "m", 3)
    with pytest.raises(InputError, match="m gives tuple in train mode"):
        require_trainable(Pair(always=False), images(), "m", 2)


def test_looking_changes_neither_the_model_nor_the_random_state() -> None:
    model = normed()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    state = torch.get_rng_state()
    require_trainable(model, images(), "m", 2)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_what_is_no_classifier_is_sent_to_the_python_api() -> None:
    with pytest.raises(InputError, match=r"keeps 2 outputs.*\n.*name one of 0, 1, or quantize the model from Python"):
        require_fit(Pair(always=True), images(), "m", 3, "*")
    with pytest.raises(InputError, match=r"shape 3x6x5 per image.*\n.*other tasks are quantized from Python"):
        require_fit(nn.Conv2d(3, 3, 1), images(), "m", 3)
