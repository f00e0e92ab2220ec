"""Loading processes of a training: started only where they have something to do."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from engines.image_batches import BadImages
from engines.images import ArrayImages, ImageSet, ImageSubset
from engines.preprocess import Preprocessing
from faq_deploy import augment
from faq_deploy.pixel_cache import CachedImages
from faq_deploy.quantize import Batches
from faq_deploy.ranks import one_process
from tests.quantized import make_recipe

PLAIN = ArrayImages(np.zeros((8, 6, 6, 3), np.uint8), np.arange(8) % 2, ["a", "b"], Preprocessing(crop=6), "black")


def batches(images: ImageSet, augmentation: str = "cifar", device: str = "cpu", workers: int = 2) -> Batches:
    ranks = replace(one_process(torch.device("cpu")), device=torch.device(device))
    return Batches(images, make_recipe(), augmentation, workers, "error", BadImages(), ranks)


@pytest.mark.parametrize(
    "images", [CachedImages(PLAIN), ImageSubset(CachedImages(PLAIN), np.array([1, 3, 4]), "three")]
)
def test_a_cpu_that_trains_on_kept_pixels_starts_no_processes(
    images: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = batches(images)
    assert found.useful_workers == 0
    assert found.notes == (
        "No loading processes are started: the images are kept decoded, and the CPU has the training to do.",
    )
    monkeypatch.setattr(augment, "from_workers", None)  # not called
    assert sum(len(labels) for _, labels in found.batches(0, 0)) == len(images)


@pytest.mark.parametrize(
    "found",
    [
        batches(PLAIN),  # decoded each time
        batches(CachedImages(PLAIN), "imagenet"),  # which takes parts of the whole picture
        batches(CachedImages(PLAIN), device="cuda"),
    ],
)
def test_others_start_those_that_were_asked_for(found: Batches) -> None:
    assert found.useful_workers == 2
    assert not found.notes


def test_nothing_is_said_where_none_were_asked_for() -> None:
    assert not batches(CachedImages(PLAIN), workers=0).notes
