"""Random views: drawn for each image by (seed, epoch, image) alone, with torchvision's pixels and distribution."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import RandomResizedCrop, functional

from engines.preprocess import PixelArray, Preprocessing
from faq_deploy import random_views
from faq_deploy.data import Augment
from faq_deploy.random_views import moved, moves, random_part, seed_of

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 9, 7, 3), dtype=np.uint8)


def by_kernels(image: PixelArray, down: int, right: int, mirrored: int) -> PixelArray:
    """The same by torchvision: pad, crop, flip."""
    tensor = torch.from_numpy(image).permute(2, 0, 1)
    cropped = functional.crop(functional.pad(tensor, [4]), 4 + down, 4 + right, *image.shape[:2])
    flipped = functional.horizontal_flip(cropped) if mirrored else cropped
    return np.asarray(flipped.permute(1, 2, 0).numpy())


def test_moved_pixels_are_those_of_torchvisions_kernels() -> None:
    table = moves("cifar", 0, 0, 40)
    wanted = np.stack([by_kernels(image, *row) for image, row in zip(PIXELS, table.tolist(), strict=True)])
    np.testing.assert_array_equal(moved(PIXELS, table), wanted)


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (4, 4)])
def test_images_smaller_than_the_border_are_moved_out_of_sight(size: tuple[int, int]) -> None:
    images, table = np.full((81, *size, 1), 255, np.uint8), np.zeros((81, 3), np.int8)
    table[:, :2] = [(y, x) for y in range(-4, 5) for x in range(-4, 5)]
    wanted = np.stack([by_kernels(image, *row) for image, row in zip(images, table.tolist(), strict=True)])
    np.testing.assert_array_equal(moved(images, table), wanted)


@pytest.mark.parametrize(("augment", "reach"), [("shift", 1), ("cifar", 4)])
def test_moves_are_uniform_and_independent(augment: Augment, reach: int) -> None:
    table = moves(augment, 3, 1, 20_000).astype(int)
    for column in (0, 1):
        values, counts = np.unique(table[:, column], return_counts=True)
        assert values.tolist() == list(range(-reach, reach + 1))
        assert np.abs(counts / 20_000 * (2 * reach + 1) - 1).max() < 0.1
    mirrored = table[:, 2].mean()
    assert mirrored == 0 if augment == "shift" else abs(mirrored - 0.5) < 0.02
    if augment == "cifar":
        assert np.abs(np.corrcoef(table.T) - np.eye(3)).max() < 0.03


def test_a_move_depends_on_seed_epoch_and_image_alone() -> None:
    few, many = moves("cifar", 5, 2, 10), moves("cifar", 5, 2, 1000)
    np.testing.assert_array_equal(few, many[:10])
    assert few[:6].tolist() == [[1, -4, 0], [-3, -3, 1], [1, -3, 1], [1, -1, 0], [-1, 0, 1], [1, -2, 0]]
    assert not np.array_equal(many, moves("cifar", 6, 2, 1000))
    assert not np.array_equal(many, moves("cifar", 5, 3, 1000))
    with pytest.raises(ValueError, match="read-only"):
        few[0] = 0


def test_parts_are_torchvisions_crops_of_the_same_place(monkeypatch: pytest.MonkeyPatch) -> None:
    picture = Image.fromarray(np.random.default_rng(1).integers(0, 256, (60, 80, 3), dtype=np.uint8))
    spec = Preprocessing(crop=(24, 16), interpolation="bicubic")
    monkeypatch.setattr(random_views, "_part", lambda height, width, rng: (5, 7, 30, 40))
    mode = InterpolationMode.BICUBIC
    plain = np.asarray(functional.resized_crop(picture, 5, 7, 30, 40, [24, 16], mode, antialias=True))
    found = [random_part(picture, spec, 0, 0, index) for index in range(30)]
    mirrored = [np.array_equal(part, plain[:, ::-1]) for part in found]
    assert all(flip or np.array_equal(part, plain) for part, flip in zip(found, mirrored, strict=True))
    assert 5 < sum(mirrored) < 25


@pytest.mark.parametrize("size", [(300, 400), (400, 300), (60, 150), (150, 60), (1, 1)])
def test_places_of_parts_are_distributed_as_torchvisions(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    found = np.array([random_views._part(*size, rng) for _ in range(2000)])
    torch.manual_seed(0)
    image = torch.zeros(3, *size)
    theirs = RandomResizedCrop(8)
    drawn = [theirs.make_params([image]) for _ in range(2000)]
    wanted = np.array([[p["top"], p["left"], p["height"], p["width"]] for p in drawn])
    assert (found[:, 0] + found[:, 2] <= size[0]).all() and (found[:, 1] + found[:, 3] <= size[1]).all()
    spread = wanted.std(0) + 1e-9
    assert (np.abs(found.mean(0) - wanted.mean(0)) < 0.12 * spread + 1e-6).all()
    assert (np.abs(found.std(0) - wanted.std(0)) < 0.08 * spread + 1e-6).all()


def test_parts_follow_seed_epoch_and_image() -> None:
    picture = Image.fromarray(np.random.default_rng(1).integers(0, 256, (30, 40, 3), dtype=np.uint8))
    spec = Preprocessing(crop=8)
    views = {random_part(picture, spec, *key).tobytes() for key in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1))}
    assert len(views) == 4
    assert random_part(picture, spec, 0, 0, 3).tobytes() == random_part(picture, spec, 0, 0, 3).tobytes()
    assert seed_of("order", 1, 2) != seed_of("augment", 1, 2)
