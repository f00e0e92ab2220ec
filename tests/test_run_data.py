"""How the command line's choices become the preprocessing and the images of a run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engines.errors import InputError
from engines.preprocess import Preprocessing
from engines.run_folder import RunFolder
from faq_deploy.run_data import (
    DataFacts,
    DataOptions,
    data_facts,
    data_of_run,
    preprocessing_for,
    preprocessing_in_words,
    reopen_data,
    reopen_validation,
    trained_preprocessing,
    training_images_warning,
)
from tests.shard_files import write_shards

IMAGENET = Preprocessing(resize=256, crop=224)
PLAIN = Preprocessing(mean=(0.5,) * 3, std=(0.5,) * 3)


def folder(root: Path, *classes: str, images: int = 2) -> Path:
    for name in classes:
        (root / name).mkdir(parents=True)
        for index in range(images):
            Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(root / name / f"{index}.png")
    return root


def test_nothing_said_is_the_weights_own_or_imagenets() -> None:
    assert preprocessing_for(DataOptions(), None) == IMAGENET
    assert preprocessing_for(DataOptions(), PLAIN) == PLAIN


def test_what_is_said_replaces_that_alone() -> None:
    given = DataOptions(resize=0, crop=0, mean=(0.1, 0.2, 0.3), interpolation="bicubic", orientation="upright")
    wanted = Preprocessing(mean=(0.1, 0.2, 0.3), interpolation="bicubic", orientation="upright")
    assert preprocessing_for(given, IMAGENET) == wanted
    assert preprocessing_for(DataOptions(resize=40, crop=32), PLAIN).crop_size == (32, 32)


def test_one_number_stands_for_all_channels() -> None:
    found = preprocessing_for(DataOptions(mean=(0.5,), std=(0.25,)), IMAGENET)
    assert (found.mean, found.std) == ((0.5,) * 3, (0.25,) * 3)


def test_change_of_colour_carries_mean_and_std_over() -> None:
    grey = Preprocessing(color="L", mean=(0.25,), std=(0.5,))
    colour = preprocessing_for(DataOptions(color="RGB"), grey)
    assert (colour.mean, colour.std) == ((0.25,) * 3, (0.5,) * 3)
    base = Preprocessing(mean=(0.25, 0.5, 0.75), std=(0.125, 0.25, 0.375))
    back = preprocessing_for(DataOptions(color="L"), base)
    assert (back.mean, back.std) == ((0.5,), (0.25,))
    assert preprocessing_for(DataOptions(color="L", mean=(0.1,)), base).mean == (0.1,)


@pytest.mark.parametrize(
    ("options", "what"),
    [
        (DataOptions(mean=(1.0, 2.0)), "--mean has 2 values, but --color RGB has 3 channels"),
        (DataOptions(color="L", std=(1.0, 2.0, 3.0)), "--std has 3 values, but --color L has 1 channel"),
        (DataOptions(mean=(float("inf"), 0, 0)), "--mean inf,0,0 cannot be: inf is not a finite number"),
        (DataOptions(std=(1.0, -1.0, 1.0)), "--std 1,-1,1 cannot be: -1 is not a positive, finite number"),
        (DataOptions(std=(1e-60,)), "1e-60 is not a positive"),  # 0 in float32
    ],
)
def test_mean_or_std_that_cannot_be_is_named(options: DataOptions, what: str) -> None:
    with pytest.raises(InputError) as caught:
        preprocessing_for(options, IMAGENET)
    assert what in caught.value.what


def test_places_are_kept_absolute_and_names_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert data_facts(DataOptions("photos", 0.5), 3) == DataFacts(
        data=str(tmp_path / "photos"), train_fraction=0.5, class_order=None, seed=3
    )
    assert data_facts(DataOptions("digits"), 0).data == "digits"
    assert data_facts(DataOptions("cifar10:there"), 0).data == f"cifar10:{tmp_path / 'there'}"
    for nothing in (None, ""):
        with pytest.raises(InputError, match="No images were named"):
            data_facts(DataOptions(nothing), 0)


def test_facts_survive_the_manifest(tmp_path: Path) -> None:
    facts = DataFacts(data="digits", train_fraction=0.5, class_order="numeric", seed=7)
    run = RunFolder(tmp_path)
    run.record("calibrate", version="1", facts={"data": facts.model_dump()})
    assert data_of_run(run) == facts
    for damaged in ({}, {"data": "digits"}, {"data": facts.model_dump() | {"seed": "x"}}):
        run.record("calibrate", version="1", facts=damaged)
        with pytest.raises(InputError, match="doesn't say which images"):
            data_of_run(run)


def test_split_of_a_run_is_the_same_when_opened_again_from_another_place(tmp_path: Path) -> None:
    first = folder(tmp_path / "here", "a", "b", images=6)
    second = folder(tmp_path / "there", "a", "b", images=6)
    facts = DataFacts(data=str(first), train_fraction=0.5, class_order=None, seed=1)
    here = reopen_data(facts, PLAIN, ("a", "b"))
    there = reopen_data(facts, PLAIN, ("a", "b"), str(second))
    assert [here.val.identity(i) for i in range(6)] == [there.val.identity(i) for i in range(6)]
    assert "there" in there.description
    validation, description = reopen_validation(facts, PLAIN, ("a", "b"), str(second))
    assert [validation.identity(i) for i in range(6)] == [there.val.identity(i) for i in range(6)]
    assert description == there.description


def test_validation_needs_no_training_images(tmp_path: Path) -> None:
    folder(tmp_path / "data" / "train", "a", "b")
    folder(tmp_path / "data" / "val", "b", images=3)
    bare = folder(tmp_path / "bare", "b", images=5)
    facts = DataFacts(data=str(tmp_path / "data"), train_fraction=None, class_order=None, seed=0)
    with pytest.warns(UserWarning, match="has no images of 1 class"):
        images, description = reopen_validation(facts, PLAIN, ("a", "b"))
    assert (len(images), images.labels.tolist()) == (3, [1, 1, 1])
    assert "3 validation images, 2 classes" in description
    with pytest.warns(UserWarning, match="has no images of 1 class"):
        images, _ = reopen_validation(facts, PLAIN, ("a", "b"), str(bare))
    assert images.labels.tolist() == [1] * 5


def test_folder_named_digits_is_not_the_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder(tmp_path / "digits", "0", "1")
    facts = DataFacts(data="digits", train_fraction=None, class_order=None, seed=0)
    grey = Preprocessing(color="L", mean=(0.5,), std=(0.5,))
    images, _ = reopen_validation(facts, grey, tuple(str(i) for i in range(10)))
    assert len(images) == 449


def test_preprocessing_in_words_names_every_step_that_is_taken() -> None:
    assert preprocessing_in_words(IMAGENET) == (
        "resize 256 (bilinear), center crop 224x224, RGB, mean 0.485,0.456,0.406, std 0.229,0.224,0.225"
    )
    grey = Preprocessing(mean=(0.5,), std=(1.0,), color="L", scale=1.0, orientation="upright")
    assert preprocessing_in_words(grey) == (
        "no resize, no crop, grey, mean 0.5, std 1, pixels divided by 1, turned upright"
    )


def test_weights_remember_their_preprocessing_only_as_long_as_they_are_what_the_training_left(tmp_path: Path) -> None:
    file, run = tmp_path / "float.pth", RunFolder(tmp_path)
    file.write_bytes(b"weights")
    assert trained_preprocessing(str(file)) is None
    run.record("train", version="0.1.0", outputs=["float.pth"])  # by a version that did not write it down
    assert trained_preprocessing(str(file)) is None
    facts = {"preprocessing": PLAIN.model_dump(mode="json")}
    run.record("train", version="0.1.0", outputs=["float.pth"], facts=facts)
    assert trained_preprocessing(str(file)) == PLAIN
    (tmp_path / "other.pth").write_bytes(b"weights")
    for name in ("other.pth", "absent.pth", ""):
        assert trained_preprocessing(str(tmp_path / name)) is None
    assert trained_preprocessing("random") is None and trained_preprocessing(None) is None
    file.write_bytes(b"others")
    assert trained_preprocessing(str(file)) is None
    (tmp_path / "manifest.json").write_text("{}")
    assert trained_preprocessing(str(file)) is None


def test_only_the_training_part_of_a_split_folder_is_warned_of(tmp_path: Path) -> None:
    root = tmp_path / "data"
    for split in ("train", "val"):
        folder(root / split, "a", "b")
    facts = DataFacts(data=str(root), train_fraction=None, class_order=None, seed=0)
    for place, warned in ((root / "train", True), (root / "val", False), (root, False)):
        images, _ = reopen_validation(facts, PLAIN, ("a", "b"), str(place))
        assert (training_images_warning(facts, images) is not None) == warned


def test_a_run_on_shards_opens_them_again_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    write_shards(tmp_path, "train", [[0, 1, 0], [1, 0, 1]])
    write_shards(tmp_path, "val", [[1, 0]])
    train, val = "train-{000..001}.tar", "val-{000..000}.tar"
    facts = data_facts(DataOptions(f"{train},{val}"), 0)
    assert facts.data == f"{tmp_path}/{train},{tmp_path}/{val}"
    monkeypatch.chdir("/")
    splits = reopen_data(facts, PLAIN, ("a", "b"))
    assert (splits.train.labels.tolist(), splits.val.labels.tolist()) == ([0, 1, 0, 1, 0, 1], [1, 0])
    assert splits.train.classes == ("a", "b")
    (tmp_path / "train-001.tar").unlink()
    images, description = reopen_validation(facts, PLAIN, ("a", "b"))  # the training shards may be absent
    assert images.labels.tolist() == [1, 0]
    assert description == f"{facts.data}: 2 validation images, 2 classes"
    assert training_images_warning(facts, images) is None
    other, _ = reopen_validation(facts, PLAIN, ("a", "b"), str(tmp_path / "train-000.tar"))
    assert other.labels.tolist() == [0, 1, 0]


def test_evaluating_on_the_training_shards_is_warned_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    train, val = write_shards(tmp_path, "train", [[0, 1]]), write_shards(tmp_path, "val", [[1, 0]])
    facts = data_facts(DataOptions(f"{train},{val}"), 0)
    for place, warned in ((train, True), (val, False)):
        for spec in (PLAIN, Preprocessing(crop=8)):  # with the cache and without
            images, _ = reopen_validation(facts, spec, ("a", "b"), place)
            assert (training_images_warning(facts, images) is not None) == warned


def test_held_out_part_of_shards_is_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    pattern = write_shards(tmp_path, "train", [[0, 1, 0], [1, 0, 1]])
    facts = data_facts(DataOptions(pattern, 0.5), 3)
    images, _ = reopen_validation(facts, PLAIN, ("0", "1"))
    splits = reopen_data(facts, PLAIN, ("0", "1"))
    assert [images.identity(i) for i in range(3)] == [splits.val.identity(i) for i in range(3)]
    assert len(splits.train) == 3
