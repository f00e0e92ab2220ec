"""The images that a run keeps for export's check."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engines.errors import InputError
from engines.images import ArrayImages, ImageFolder
from engines.preprocess import BadImage, Preprocessing, normalize
from faq_deploy.samples import load_samples, write_samples

PLAIN = Preprocessing(mean=(0.5, 0.25, 0.125), std=(0.5, 0.25, 0.125))


def pictures(count: int = 6) -> ArrayImages:
    pixels = np.random.default_rng(0).integers(0, 256, (count, 4, 5, 3), np.uint8)
    return ArrayImages(pixels, np.arange(count) % 2, ["a", "b"], PLAIN)


def test_samples_come_back_normalized_in_their_order(tmp_path: Path) -> None:
    images, file = pictures(), tmp_path / "samples.npz"
    assert write_samples(file, images, np.array([4, 0, 5])) == 3
    wanted = normalize(np.stack([images.pixels(i) for i in (4, 0, 5)]), PLAIN)
    found = load_samples(file, PLAIN)
    assert found.dtype == np.float32
    assert found.flags.c_contiguous
    assert np.array_equal(found, wanted)
    assert np.array_equal(load_samples(file, PLAIN, 2), wanted[:2])
    assert np.array_equal(load_samples(file, PLAIN, 99), wanted)
    with np.load(file) as stored:
        assert stored["labels"].tolist() == [0, 0, 1]


def test_bad_images_are_left_out_unless_all_are(tmp_path: Path) -> None:
    (tmp_path / "data" / "a").mkdir(parents=True)
    for index in range(3):
        Image.fromarray(np.full((4, 4, 3), index, np.uint8)).save(tmp_path / "data" / "a" / f"{index}.png")
    images, file = ImageFolder(tmp_path / "data", PLAIN), tmp_path / "samples.npz"
    (tmp_path / "data" / "a" / "1.png").write_bytes(b"nonsense")
    assert write_samples(file, images, np.arange(3)) == 2
    with np.load(file) as stored:
        assert stored["pixels"][:, 0, 0, 0].tolist() == [0, 2]
    with pytest.raises(BadImage, match=r"1\.png can't be used"):
        write_samples(file, images, np.array([1]))


def test_no_images_and_images_of_unequal_size_are_errors(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no images"):
        write_samples(tmp_path / "samples.npz", pictures(), np.array([], np.int64))
    (tmp_path / "data" / "a").mkdir(parents=True)
    for name, size in (("0", (4, 4)), ("1", (7, 3))):
        Image.new("RGB", size).save(tmp_path / "data" / "a" / f"{name}.png")
    with pytest.raises(InputError, match=r"a/0\.png is 4x4 pixels, but a/1\.png is 7x3"):
        write_samples(tmp_path / "samples.npz", ImageFolder(tmp_path / "data", PLAIN), np.arange(2))
    assert not (tmp_path / "samples.npz").exists()


@pytest.mark.parametrize("kept", [0.0, 0.1, 0.5, 0.9])
def test_file_cut_short_is_damaged(tmp_path: Path, kept: float) -> None:
    file = tmp_path / "samples.npz"
    write_samples(file, pictures(), np.arange(6))
    content = file.read_bytes()
    file.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(InputError, match=r"samples\.npz is damaged"):
        load_samples(file, PLAIN)


def test_byte_changed_anywhere_is_noticed_or_harmless(tmp_path: Path) -> None:
    file = tmp_path / "samples.npz"
    write_samples(file, pictures(), np.arange(6))
    content = file.read_bytes()
    wanted = load_samples(file, PLAIN)
    for position in range(0, len(content), 3):
        changed = bytearray(content)
        changed[position] ^= 0x55
        file.write_bytes(changed)
        try:
            found = load_samples(file, PLAIN)
        except InputError:
            continue
        assert np.array_equal(found, wanted)


def test_arrays_of_objects_are_not_unpickled(tmp_path: Path) -> None:
    file = tmp_path / "samples.npz"
    np.savez(file, pixels=np.array([{"a": 1}], dtype=object))
    with pytest.raises(InputError, match="is damaged"):
        load_samples(file, PLAIN)
    np.savez(file, labels=np.zeros(3))
    with pytest.raises(InputError, match="is damaged"):
        load_samples(file, PLAIN)
