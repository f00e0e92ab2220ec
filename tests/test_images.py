"""Image sets: class indices, file order, and damaged files refused by name."""

from __future__ import annotations

import io
import os
import pickle
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from engines.errors import InputError
from engines.image_files import class_folders, read_image
from engines.images import ArrayImages, DataWarning, ImageFolder, ImageSet, ImageSubset
from engines.preprocess import BadImage, Preprocessing

PLAIN = Preprocessing()


def write_image(path: Path, color: tuple[int, int, int] = (9, 9, 9), size: tuple[int, int] = (8, 8)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path)
    return path


def tree(root: Path, classes: dict[str, int]) -> Path:
    for name, count in classes.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            write_image(root / name / f"{index}.png", color=(index, len(name), 0))
    return root


def jpeg(size: tuple[int, int] = (64, 64)) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG")
    return stream.getvalue()


def test_classes_are_sorted_lexically_and_files_by_name(tmp_path: Path) -> None:
    root = tree(tmp_path, {"b": 2, "a": 1})
    write_image(root / "b" / "deeper" / "x.JPEG")
    write_image(root / "b" / ".hidden" / "y.png")
    write_image(root / ".hidden" / "z.png")
    (root / "b" / "._0.png").write_bytes(b"resource fork")
    (root / "b" / "notes.txt").write_text("no image")
    images = ImageFolder(root, PLAIN)
    assert images.classes == ("a", "b")
    assert [images.identity(index) for index in range(len(images))] == [
        *("a/0.png", "b/0.png", "b/1.png", "b/deeper/x.JPEG")
    ]
    assert images.labels.tolist() == [0, 1, 1, 1]
    assert images.labels.dtype == np.int64
    assert images.pixels(2)[0, 0].tolist() == [1, 1, 0]


@pytest.mark.parametrize("empty", [False, True], ids=["absent", "empty"])
def test_a_class_without_images_warns_and_shifts_no_index(tmp_path: Path, empty: bool) -> None:
    classes = ("0", "180", "270", "90")
    val = tree(tmp_path, {"0": 1, "270": 1, "90": 1} | ({"180": 0} if empty else {}))
    with pytest.warns(DataWarning, match=r"no images of 1 class\(es\): 180\."):
        images = ImageFolder(val, PLAIN, classes)
    assert images.classes == classes
    assert images.labels.tolist() == [0, 2, 3]


def test_an_unknown_class_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="zebra, which is not among the 2 known"):
        ImageFolder(tree(tmp_path, {"a": 1, "zebra": 1, "b": 1}), PLAIN, ["a", "b"])


def test_given_classes_set_the_order(tmp_path: Path) -> None:
    images = ImageFolder(tree(tmp_path, {"a": 1, "b": 1}), PLAIN, ["b", "a"])
    assert [(images.identity(i), int(images.labels[i])) for i in range(2)] == [("b/0.png", 0), ("a/0.png", 1)]


def test_class_names_do_not_reach_out_of_the_folder(tmp_path: Path) -> None:
    tree(tmp_path, {"outside": 1})
    root = tree(tmp_path / "data", {"a": 1})
    with pytest.warns(DataWarning, match="outside"):
        assert len(ImageFolder(root, PLAIN, ["a", "../outside"])) == 1


def test_missing_and_empty_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        ImageFolder(tmp_path / "missing", PLAIN)
    with pytest.raises(InputError, match="is a file, not a folder"):
        ImageFolder(write_image(tmp_path / "data.png"), PLAIN)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no class folders"):
        ImageFolder(tmp_path / "empty", PLAIN)
    with pytest.raises(InputError, match="holds no images"):
        ImageFolder(tree(tmp_path / "hollow", {"a": 0}), PLAIN)


def test_numeric_class_order_is_by_value(tmp_path: Path) -> None:
    root = tree(tmp_path, {str(number): 0 for number in (10, 9, -90, 2, 0)})
    assert class_folders(root) == ("-90", "0", "10", "2", "9")
    assert class_folders(root, "numeric") == ("-90", "0", "2", "9", "10")
    (root / "ten").mkdir()
    with pytest.raises(InputError, match="ten isn't named by a number"):
        class_folders(root, "numeric")


def test_the_order_does_not_depend_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tree(tmp_path, {"a": 3, "b": 2})
    expected = [ImageFolder(root, PLAIN).identity(index) for index in range(5)]
    walk = os.walk

    def backwards(top: Path, followlinks: bool) -> list[tuple[str, list[str], list[str]]]:
        return [
            (here, folders, sorted(files, reverse=True)) for here, folders, files in walk(top, followlinks=followlinks)
        ]

    monkeypatch.setattr(os, "walk", backwards)
    assert [ImageFolder(root, PLAIN).identity(index) for index in range(5)] == expected


@pytest.mark.parametrize(
    "content",
    [b"", b"<!DOCTYPE html>", jpeg()[:1000], jpeg()[:20], b"\x89PNG\r\n\x1a\n" + bytes(40), b"BM" + bytes(60), b"RIFF"],
    ids=["nothing", "HTML", "truncated", "only a header", "broken PNG", "broken BMP", "broken WebP"],
)
def test_damaged_files_are_refused_by_name(tmp_path: Path, content: bytes) -> None:
    root = tree(tmp_path, {"a": 1})
    (root / "a" / "broken.jpg").write_bytes(content)
    images = ImageFolder(root, PLAIN)
    for read in (images.pixels, images.raw):
        with pytest.raises(BadImage, match=r"a/broken\.jpg can't be used: it "):
            read(1)


def test_a_truncated_file_says_so(tmp_path: Path) -> None:
    path = tmp_path / "half.jpg"
    path.write_bytes(jpeg()[:1000])
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False
    with pytest.raises(BadImage, match=r"could not be decoded .*truncated"):
        read_image(path)


def test_a_file_that_cannot_be_read_is_not_a_bad_image(tmp_path: Path) -> None:
    images = ImageFolder(tree(tmp_path, {"a": 1}), PLAIN)
    (tmp_path / "a" / "0.png").unlink()
    with pytest.raises(InputError, match=r"0\.png could not be read: No such file") as caught:
        images.pixels(0)
    assert not isinstance(caught.value, BadImage)  # "skip" must not hide it


@pytest.mark.parametrize("limit", [99, 20])
def test_decompression_bombs_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    write_image(tmp_path / "a" / "bomb.png", size=(10, 10))
    images = ImageFolder(tmp_path, PLAIN)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)  # Pillow warns over the limit and raises over its double
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with pytest.raises(BadImage, match=r"bomb\.png can't be used: it .*decompression bomb"):
            images.pixels(0)


def test_a_mode_without_a_range_is_refused_with_the_file_name(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    Image.new("F", (4, 4)).save(tmp_path / "a" / "depth.tiff")
    with pytest.raises(BadImage, match=r"depth\.tiff can't be used: its pixels are of mode F"):
        ImageFolder(tmp_path, PLAIN).pixels(0)


def test_arrays_and_files_give_the_same_pixels(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 20, 30, 3), dtype=np.uint8)
    (tmp_path / "a").mkdir()
    for index, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / "a" / f"{index}.png")
    spec = Preprocessing(resize=16, crop=12)
    in_memory: ImageSet = ArrayImages(pixels, np.zeros(3, np.int64), ["a"], spec)
    on_disk: ImageSet = ImageFolder(tmp_path, spec)
    for index in range(3):
        np.testing.assert_array_equal(in_memory.pixels(index), on_disk.pixels(index))
        assert in_memory.raw(index).tobytes() == on_disk.raw(index).tobytes()


def test_grey_arrays_have_one_channel() -> None:
    spec = Preprocessing(color="L", mean=(0,), std=(1,))
    pixels = np.arange(64, dtype=np.uint8).reshape(1, 8, 8, 1)
    np.testing.assert_array_equal(ArrayImages(pixels, np.array([0]), ["a"], spec).pixels(0), pixels[0])


@pytest.mark.parametrize(
    ("shape", "labels"), [((2, 4, 4, 4), [0, 0]), ((2, 4, 4, 3), [0]), ((2, 4, 4, 3), [0, 2]), ((2, 4, 4, 3), [-1, 0])]
)
def test_arrays_that_do_not_fit_are_refused(shape: tuple[int, ...], labels: list[int]) -> None:
    with pytest.raises(InputError):
        ArrayImages(np.zeros(shape, np.uint8), np.array(labels), ["a", "b"], PLAIN)


def test_a_subset_keeps_identities_and_labels(tmp_path: Path) -> None:
    base = ImageFolder(tree(tmp_path, {"a": 2, "b": 2}), PLAIN)
    part = ImageSubset(base, np.array([3, 0]), "part")
    assert [part.identity(0), part.identity(1)] == ["b/1.png", "a/0.png"]
    assert part.labels.tolist() == [1, 0]
    np.testing.assert_array_equal(part.pixels(0), base.pixels(3))
    assert pickle.loads(pickle.dumps(part)).labels.tolist() == [1, 0]  # worker processes may be spawned


def test_image_modules_import_without_torch() -> None:
    code = (
        "import sys; sys.modules.update(torch=None, torchvision=None, faq_deploy=None)\n"
        "import engines.preprocess, engines.images, engines.image_batches"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, cwd=Path(__file__).parents[1])
    assert done.returncode == 0
