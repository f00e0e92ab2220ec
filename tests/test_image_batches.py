"""Batches: the same for any number of threads; bad images stop them or are counted."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from engines.errors import InputError
from engines.image_batches import BadImages, Batch, batches
from engines.images import ArrayImages, ImageFolder
from engines.preprocess import PixelArray, Preprocessing, normalize

PLAIN = Preprocessing()
PIXELS = np.random.default_rng(0).integers(0, 256, (11, 6, 5, 3), dtype=np.uint8)
IMAGES = ArrayImages(PIXELS, np.arange(11) % 3, ["a", "b", "c"], PLAIN)


def folder(root: Path, broken: tuple[int, ...] = ()) -> ImageFolder:
    (root / "a").mkdir()
    for index in range(10):
        path = root / "a" / f"{index}.png"
        Image.new("RGB", (8, 8), (index, 0, 0)).save(path)
        if index in broken:
            path.write_bytes(path.read_bytes()[:40])
    return ImageFolder(root, PLAIN)


@given(
    indices=st.lists(st.integers(0, 10), max_size=25), batch_size=st.integers(1, 8), workers=st.sampled_from([0, 1, 3])
)
def test_batches_hold_the_wanted_images_in_order(indices: list[int], batch_size: int, workers: int) -> None:
    found = list(batches(IMAGES, indices, batch_size, workers=workers))
    assert [len(batch.labels) for batch in found[:-1]] == [batch_size] * (len(found) - 1)
    assert [index for batch in found for index in batch.indices.tolist()] == indices
    for images, labels, chosen in found:
        assert images.tobytes() == normalize(PIXELS[chosen], PLAIN).tobytes()
        assert images.flags.c_contiguous
        assert labels.tolist() == (chosen % 3).tolist()


def test_all_images_by_default() -> None:
    assert [batch.indices.tolist() for batch in batches(IMAGES, batch_size=8)] == [[*range(8)], [8, 9, 10]]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_image_stops_by_default_and_the_batch_is_counted(tmp_path: Path, workers: int) -> None:
    images = folder(tmp_path, broken=(5, 7))
    found = batches(images, batch_size=4, workers=workers)
    assert next(found).indices.tolist() == [0, 1, 2, 3]
    with pytest.raises(InputError, match=r"a/5\.png can't be used.* 2 of the 4 images in its batch") as caught:
        next(found)
    assert "--on-bad-image skip" in caught.value.remedy


@pytest.mark.parametrize("workers", [0, 2])
def test_skipped_images_are_counted_by_name(tmp_path: Path, workers: int) -> None:
    images = folder(tmp_path, broken=(1, 4, 5, 6, 7))
    bad = BadImages()
    found = list(batches(images, batch_size=4, on_bad="skip", bad=bad, workers=workers))
    assert [batch.indices.tolist() for batch in found] == [[0, 2, 3], [8, 9]]
    assert len(bad) == 5
    assert list(bad.reasons) == ["a/1.png", "a/4.png", "a/5.png", "a/6.png", "a/7.png"]


def test_skipping_without_a_counter_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs a BadImages"):
        next(batches(folder(tmp_path), on_bad="skip"))


@pytest.mark.parametrize("batch_size", [1, 10])
def test_images_of_unequal_size_are_both_named(tmp_path: Path, batch_size: int) -> None:
    images = folder(tmp_path)
    Image.new("RGB", (9, 7)).save(tmp_path / "a" / "4.png")
    with pytest.raises(InputError, match=r"a/0\.png is 8x8 pixels, but a/4\.png is 9x7") as caught:
        list(batches(images, batch_size=batch_size))
    assert "--crop" in caught.value.remedy


def test_a_file_that_vanished_stops_even_when_skipping(tmp_path: Path) -> None:
    images = folder(tmp_path)
    (tmp_path / "a" / "4.png").unlink()
    with pytest.raises(InputError, match="could not be read"):
        list(batches(images, on_bad="skip", bad=BadImages()))


class CountedImages(ArrayImages):
    """Counts how many images were decoded."""

    def __init__(self) -> None:
        super().__init__(np.zeros((100, 2, 2, 3), np.uint8), np.zeros(100, np.int64), ["a"], PLAIN)
        self.decoded = 0
        self.lock = threading.Lock()

    def pixels(self, index: int) -> PixelArray:
        with self.lock:
            self.decoded += 1
        return super().pixels(index)


def test_decoding_runs_ahead_by_two_batches_at_most_and_ends_with_the_reader() -> None:
    images = CountedImages()
    found = batches(images, batch_size=5, workers=2)
    first: Batch = next(found)
    assert first.indices.tolist() == [0, 1, 2, 3, 4]
    del found
    assert 5 <= images.decoded <= 15
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("decode")]
