"""Data by name: specs, splits, class order, and seeded draws."""

from __future__ import annotations

import hashlib
import pickle
import sys
import warnings
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision.datasets import CIFAR10

from engines.errors import CannotRunHere, InputError
from engines.images import DataWarning, ImageSet
from engines.preprocess import Preprocessing
from faq_deploy.data import calibration_indices, default_preprocessing, hold_out, open_data
from faq_deploy.pixel_cache import CachedImages

PLAIN = Preprocessing()
SHARED = Path(__file__).parents[2] / "shared" / "data"
labels_of_classes = st.lists(st.integers(0, 5), min_size=2, max_size=80).map(lambda labels: np.array(labels, np.int64))


def tree(root: Path, classes: dict[str, int]) -> Path:
    for name, count in classes.items():
        (root / name).mkdir(parents=True)
        for index in range(count):
            Image.new("RGB", (8, 8), (index, 0, 0)).save(root / name / f"{index}.png")
    return root


def identities(images: ImageSet) -> list[str]:
    return [images.identity(index) for index in range(len(images))]


def digits_preprocessing() -> Preprocessing:
    spec = default_preprocessing("digits")
    assert spec is not None
    return spec


def test_digits_are_sixteen_grey_levels_split_by_class() -> None:
    splits = open_data("digits", preprocessing=digits_preprocessing())
    assert (len(splits.train), len(splits.val), splits.held_out, splits.augment) == (1348, 449, True, "shift")
    assert splits.train.classes == splits.val.classes == tuple("0123456789")
    assert set(Counter(splits.val.labels.tolist()).values()) <= {43, 44, 45, 46}
    assert splits.val.pixels(0).shape == (8, 8, 1)
    levels = {value for index in range(100) for value in splits.val.pixels(index).ravel().tolist()}
    assert levels == {*range(0, 256, 16), 255}
    assert splits.description == ("scikit-learn's digits: 1,348 training and 449 held-out images (seed 0), 10 classes")


def test_digits_have_their_own_mean_and_std() -> None:
    spec = digits_preprocessing()
    splits = open_data("digits", preprocessing=spec)
    pixels = np.stack([part.pixels(i) for part in (splits.train, splits.val) for i in range(len(part))]) / 255
    assert spec.mean == (round(float(pixels.mean()), 4),)
    assert spec.std == (round(float(pixels.std()), 4),)
    assert spec.input_shape == (1, 8, 8)


def test_the_digits_split_follows_seed_and_fraction() -> None:
    def val(seed: int, fraction: float | None = None) -> list[str]:
        return identities(
            open_data("digits", preprocessing=digits_preprocessing(), seed=seed, train_fraction=fraction).val
        )

    assert val(0) == val(0)
    assert val(0) != val(1)
    assert len(val(0, 0.5)) == 898
    with pytest.raises(InputError, match="is not between 0 and 1"):
        val(0, 0.0)


def test_digits_without_scikit_learn_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(CannotRunHere) as caught:
        open_data("digits", preprocessing=digits_preprocessing())
    assert caught.value.remedy == "pip install 'faq-deploy[demo]'"


@pytest.fixture
def cifar10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two training files and a test file in CIFAR-10's format; torchvision is told their MD5 sums."""
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()

    def write(name: str, content: object) -> str:
        (folder / name).write_bytes(pickle.dumps(content))
        return hashlib.md5((folder / name).read_bytes()).hexdigest()

    def batch(seed: int, count: int) -> dict[str, object]:
        pixels = np.random.default_rng(seed).integers(0, 256, (count, 3072), dtype=np.uint8)
        return {"data": pixels, "labels": [seed % 2] * count}

    monkeypatch.setattr(
        CIFAR10, "train_list", [["data_1", write("data_1", batch(1, 3))], ["data_2", write("data_2", batch(2, 2))]]
    )
    monkeypatch.setattr(CIFAR10, "test_list", [["test", write("test", batch(3, 4))]])
    meta = write("meta", {"label_names": ["cat", "dog"]})
    monkeypatch.setattr(CIFAR10, "meta", {"filename": "meta", "key": "label_names", "md5": meta})
    return tmp_path


def test_cifar10_comes_with_its_own_split(cifar10: Path) -> None:
    spec = default_preprocessing(f"cifar10:{cifar10}")
    assert spec is not None
    splits = open_data(f"cifar10:{cifar10}", preprocessing=spec)
    assert splits.train.labels.tolist() == [1, 1, 1, 0, 0]
    assert splits.val.labels.tolist() == [1, 1, 1, 1]
    assert (splits.train.classes, splits.held_out, splits.augment) == (("cat", "dog"), False, "cifar")
    stored = pickle.loads((cifar10 / "cifar-10-batches-py" / "test").read_bytes())["data"][2]
    np.testing.assert_array_equal(splits.val.pixels(2), stored.reshape(3, 32, 32).transpose(1, 2, 0))
    with pytest.raises(InputError, match="brings its own validation images"):
        open_data(f"cifar10:{cifar10}", preprocessing=spec, train_fraction=0.5)
    with pytest.raises(InputError, match="has the classes cat, dog, not those of the network"):
        open_data(f"cifar10:{cifar10}", preprocessing=spec, classes=["dog", "cat"])


def test_changed_cifar10_files_are_refused_before_they_are_unpickled(cifar10: Path) -> None:
    with (cifar10 / "cifar-10-batches-py" / "data_2").open("ab") as file:
        file.write(b"x")
    with pytest.raises(InputError, match="does not hold CIFAR-10, or its files are damaged"):
        open_data(f"cifar10:{cifar10}", preprocessing=PLAIN)


def test_folders_have_no_preprocessing_of_their_own() -> None:
    assert default_preprocessing("some/folder") is None


@pytest.mark.parametrize("name", ["val", "valid", "validation", "test"])
def test_a_folder_with_its_own_split(tmp_path: Path, name: str) -> None:
    tree(tmp_path / "train", {"a": 3, "b": 2})
    tree(tmp_path / name, {"a": 1, "b": 1})
    splits = open_data(str(tmp_path), preprocessing=PLAIN)
    assert (identities(splits.val), splits.held_out) == (["a/0.png", "b/0.png"], False)
    assert splits.description == f"{tmp_path}: 5 training and 2 validation images, 2 classes"
    with pytest.raises(InputError, match="brings its own validation images"):
        open_data(str(tmp_path), preprocessing=PLAIN, train_fraction=0.5)


def test_validation_takes_its_indices_from_training(tmp_path: Path) -> None:
    tree(tmp_path / "train", {"0": 1, "180": 1, "270": 1, "90": 1})
    tree(tmp_path / "val", {"0": 1, "270": 1, "90": 1})
    with pytest.warns(DataWarning, match="no images of .* 180"):
        splits = open_data(str(tmp_path), preprocessing=PLAIN, class_order="lexical")
    assert splits.val.labels.tolist() == [0, 2, 3]
    tree(tmp_path / "val" / "zebra", {})
    (tmp_path / "val" / "zebra").mkdir()
    with pytest.raises(InputError, match="zebra"):
        open_data(str(tmp_path), preprocessing=PLAIN, class_order="lexical")


def test_one_folder_needs_a_train_fraction(tmp_path: Path) -> None:
    tree(tmp_path, {"a": 8, "b": 4})
    with pytest.raises(InputError, match="does not hold train/ and a validation folder") as caught:
        open_data(str(tmp_path), preprocessing=PLAIN)
    assert "--train-fraction" in caught.value.remedy
    splits = open_data(str(tmp_path), preprocessing=PLAIN, train_fraction=0.75)
    assert (splits.train.labels.tolist(), splits.val.labels.tolist()) == ([0] * 6 + [1] * 3, [0, 0, 1])
    assert splits.held_out
    assert sorted(identities(splits.train) + identities(splits.val)) == sorted(
        [f"a/{index}.png" for index in range(8)] + [f"b/{index}.png" for index in range(4)]
    )


def test_a_lone_train_folder_is_held_out_from(tmp_path: Path) -> None:
    tree(tmp_path / "train", {"a": 2, "b": 2})
    assert open_data(str(tmp_path), preprocessing=PLAIN, train_fraction=0.5).train.classes == ("a", "b")


def test_classes_may_be_called_train_or_valid(tmp_path: Path) -> None:
    vehicles = tree(tmp_path / "vehicles", {"bus": 2, "train": 2})
    parts = tree(tmp_path / "parts", {"invalid": 2, "valid": 2})
    assert open_data(str(vehicles), preprocessing=PLAIN, train_fraction=0.5).train.classes == ("bus", "train")
    assert open_data(str(parts), preprocessing=PLAIN, train_fraction=0.5).train.classes == ("invalid", "valid")


def test_missing_data_says_what_data_can_be(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist") as caught:
        open_data(str(tmp_path / "missing"), preprocessing=PLAIN)
    assert caught.value.remedy == (
        "--data takes a folder of images, shards such as train-{000..127}.tar, digits, or cifar10:DIR."
    )
    (tmp_path / "data.zip").write_bytes(b"")
    with pytest.raises(InputError, match="is a file, not a folder"):
        open_data(str(tmp_path / "data.zip"), preprocessing=PLAIN)


def test_numbered_class_folders_warn_until_an_order_is_chosen(tmp_path: Path) -> None:
    tree(tmp_path, {str(number): 2 for number in range(12)})
    with pytest.warns(DataWarning, match=r"class 2 is 10\. If your network's output 2 means 2, pass --class-order num"):
        assert open_data(str(tmp_path), preprocessing=PLAIN, train_fraction=0.5).train.classes[2] == "10"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for order, third in (("lexical", "10"), ("numeric", "2")):
            splits = open_data(
                str(tmp_path),
                preprocessing=PLAIN,
                train_fraction=0.5,
                class_order="numeric" if order == "numeric" else "lexical",
            )
            assert splits.train.classes[2] == third
        given = [str(number) for number in reversed(range(12))]
        assert open_data(str(tmp_path), preprocessing=PLAIN, train_fraction=0.5, classes=given).val.classes[0] == "11"


@pytest.mark.parametrize(("crop", "augment"), [(224, "imagenet"), (64, "cifar"), (None, "cifar")])
def test_the_automatic_augmentation_of_folders_follows_the_crop(tmp_path: Path, crop: int | None, augment: str) -> None:
    tree(tmp_path, {"a": 2, "b": 2})
    spec = Preprocessing(crop=crop)
    assert open_data(str(tmp_path), preprocessing=spec, train_fraction=0.5).augment == augment


def test_folders_of_small_images_are_decoded_once(tmp_path: Path) -> None:
    tree(tmp_path / "train", {"a": 2, "b": 2})
    tree(tmp_path / "val", {"a": 1, "b": 1})
    splits = open_data(str(tmp_path), preprocessing=Preprocessing(crop=8))
    wanted = splits.train.pixels(1).copy()
    (tmp_path / "train" / "a" / "1.png").unlink()
    np.testing.assert_array_equal(splits.train.pixels(1), wanted)
    assert isinstance(splits.val, CachedImages)
    assert not isinstance(open_data(str(tmp_path), preprocessing=PLAIN).val, CachedImages)  # of any size


@given(labels=labels_of_classes, fraction=st.floats(0.05, 0.95), seed=st.integers(0, 9))
def test_hold_out_is_a_stratified_partition(labels: np.ndarray, fraction: float, seed: int) -> None:
    total = min(round(len(labels) * (1 - fraction)), sum(max(1, n - 1) for n in Counter(labels.tolist()).values()))
    if not 0 < total < len(labels):
        with pytest.raises(InputError, match="splits"):
            hold_out(labels, fraction, seed)
        return
    train, val = hold_out(labels, fraction, seed)
    assert sorted([*train.tolist(), *val.tolist()]) == list(range(len(labels)))
    assert len(val) == total
    counts, drawn = Counter(labels.tolist()), Counter(labels[val].tolist())
    available = {label: max(1, count - 1) for label, count in counts.items()}
    for label, count in counts.items():
        assert abs(drawn[label] - total * available[label] / sum(available.values())) < 1
        assert count == 1 or drawn[label] < count  # a class never loses all its training images


def test_a_thousand_single_images_can_be_split() -> None:
    train, val = hold_out(np.arange(1000), 0.84, 0)
    assert (len(train), len(val)) == (840, 160)


@given(labels=labels_of_classes, count=st.integers(0, 100), seed=st.integers(0, 9))
def test_calibration_images_are_distinct_and_from_all_classes(labels: np.ndarray, count: int, seed: int) -> None:
    drawn = calibration_indices(labels, count, seed)
    assert len(set(drawn.tolist())) == len(drawn) == min(count, len(labels))
    classes = set(labels.tolist())
    if count >= len(classes):
        assert set(labels[drawn].tolist()) == classes
    np.testing.assert_array_equal(drawn, calibration_indices(labels, count, seed))


def test_calibration_images_are_in_proportion_and_mixed() -> None:
    labels = np.repeat(np.arange(4), [100, 100, 100, 100])
    drawn = labels[calibration_indices(labels, 40, seed=0)]
    assert Counter(drawn.tolist()) == {0: 10, 1: 10, 2: 10, 3: 10}
    assert all(len(set(batch.tolist())) > 1 for batch in drawn.reshape(5, 8))  # each batch sees several classes
    assert calibration_indices(labels, 40, 0).tolist() != calibration_indices(labels, 40, 1).tolist()


def test_calibration_images_do_not_depend_on_the_order_on_disk(tmp_path: Path) -> None:
    forwards = tree(tmp_path / "one", {"a": 6, "b": 6})
    backwards = tmp_path / "two"
    for file in sorted(forwards.rglob("*.png"), reverse=True):
        copy = backwards / file.relative_to(forwards)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(file.read_bytes())

    def drawn(root: Path) -> list[str]:
        train = open_data(str(root), preprocessing=PLAIN, train_fraction=0.75).train
        return [train.identity(index) for index in calibration_indices(train.labels, 5, seed=0).tolist()]

    assert drawn(forwards) == drawn(backwards)


@pytest.mark.skipif(not (SHARED / "cifar10.zip").is_file(), reason="no ../shared/data/cifar10.zip beside the checkout")
def test_a_real_folder_of_cifar10_images_opens(tmp_path: Path) -> None:
    with zipfile.ZipFile(SHARED / "cifar10.zip") as archive:
        few = [name for name in archive.namelist() if name.endswith(("0000.jpg", "0001.jpg"))]
        archive.extractall(tmp_path, few)
    splits = open_data(str(tmp_path / "cifar10"), preprocessing=Preprocessing(crop=32))
    assert (len(splits.train), len(splits.val), len(splits.train.classes)) == (20, 20, 10)
    assert splits.val.classes[:2] == ("airplane", "automobile")
    np.testing.assert_array_equal(
        splits.val.pixels(0), np.asarray(Image.open(tmp_path / "cifar10" / "test" / "airplane" / "0000.jpg"))
    )
