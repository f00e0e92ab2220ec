"""The cache of decoded pixels: the same bytes, decoded once, in all processes; bad images stay bad."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engines.image_batches import BadImages, batches
from engines.images import ArrayImages, ImageFolder, ImageSubset
from engines.preprocess import BadImage, PixelArray, Preprocessing
from faq_deploy import pixel_cache
from faq_deploy.augment import TrainingData, training_batches
from faq_deploy.pixel_cache import CachedImages, cached

SPEC = Preprocessing(resize=10, crop=8)


class Counted(ArrayImages):
    """Counts what is decoded."""

    decoded = 0

    def pixels(self, index: int) -> PixelArray:
        self.decoded += 1
        return super().pixels(index)


def counted(spec: Preprocessing = SPEC, count: int = 20) -> Counted:
    pixels = np.random.default_rng(0).integers(0, 256, (count, 16, 12, spec.channels), dtype=np.uint8)
    return Counted(pixels, np.arange(count) % 2, ["a", "b"], spec, "noise")


@pytest.mark.parametrize("color", ["RGB", "L"])
def test_pixels_are_the_same_and_decoded_once(color: str) -> None:
    channels = 3 if color == "RGB" else 1
    spec = Preprocessing(resize=10, crop=(8, 6), color=color, mean=(0.5,) * channels, std=(0.5,) * channels)  # type: ignore[arg-type]
    base, plain = counted(spec), counted(spec)
    images = CachedImages(base)
    for _ in range(3):
        for index in range(20):
            np.testing.assert_array_equal(images.pixels(index), plain.pixels(index))
    assert (base.decoded, plain.decoded) == (20, 60)
    assert (images.name, images.classes, images.identity(3), len(images)) == ("noise", ("a", "b"), "3", 20)
    assert images.labels is base.labels and images.preprocessing == spec
    assert images.raw(2).tobytes() == base.raw(2).tobytes()


def test_callers_may_write_to_what_they_get() -> None:
    images = CachedImages(counted())
    wanted = images.pixels(0).copy()
    images.pixels(0)[:] = 0
    images.pixels(0)[:] = 0
    np.testing.assert_array_equal(images.pixels(0), wanted)


def test_what_workers_decode_stays_for_the_next_epoch() -> None:
    images = CachedImages(counted())
    data = TrainingData(images, "cifar", seed=0)
    first = [batch.tolist() for batch, _ in training_batches(data, np.arange(20), 5, workers=2)]
    again = [batch.tolist() for batch, _ in training_batches(data, np.arange(20), 5)]
    assert images.base.decoded == 0  # type: ignore[attr-defined]  # in this process
    assert first == again


def test_threads_fill_it_too() -> None:
    images, plain = CachedImages(counted()), counted()
    for _ in range(2):
        found = np.concatenate([batch.images for batch in batches(images, batch_size=4, workers=3)])
        np.testing.assert_array_equal(found, np.concatenate([batch.images for batch in batches(plain)]))
    assert images.base.decoded == 20  # type: ignore[attr-defined]


def test_bad_images_are_told_of_each_time(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for index in range(3):
        Image.new("RGB", (8, 8), (index, 0, 0)).save(tmp_path / "a" / f"{index}.png")
    (tmp_path / "a" / "1.png").write_bytes(b"no image")
    images, bad = cached(ImageFolder(tmp_path, SPEC)), BadImages()
    assert isinstance(images, CachedImages)
    for _ in range(2):
        with pytest.raises(BadImage, match=r"a/1\.png can't be used"):
            images.pixels(1)
    (batch,) = batches(images, on_bad="skip", bad=bad)
    assert batch.indices.tolist() == [0, 2]
    assert set(bad.reasons) == {"a/1.png"}


def test_sets_that_do_not_fit_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    images, without_crop = counted(), counted(Preprocessing())
    assert cached(without_crop) is without_crop
    monkeypatch.setattr(pixel_cache, "LARGEST", 20 * 8 * 8 * 3)
    assert isinstance(cached(images), CachedImages)
    monkeypatch.setattr(pixel_cache, "LARGEST", 20 * 8 * 8 * 3 - 1)
    assert cached(images) is images
    monkeypatch.setattr(pixel_cache, "LARGEST", 512 << 20)
    monkeypatch.setattr(pixel_cache, "_memory", lambda: 1000)
    assert cached(images) is images


def test_a_pickled_cache_is_empty_and_works() -> None:
    part = ImageSubset(CachedImages(counted()), np.array([4, 2]), "part")
    wanted = part.pixels(1)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(part)).pixels(1), wanted)
