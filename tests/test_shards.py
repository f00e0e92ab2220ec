"""WebDataset shards: any picture at any time, with its label, or one sentence that names the shard."""

from __future__ import annotations

import io
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engines.errors import InputError
from engines.image_batches import BadImages, batches
from engines.images import DataWarning, ImageFolder
from engines.preprocess import BadImage, Preprocessing
from faq_deploy import shard_index
from faq_deploy.augment import TrainingData, epoch_order, training_batches
from faq_deploy.data import open_data
from faq_deploy.shard_places import expanded
from faq_deploy.shards import ShardImages, ShardSpec, shard_spec
from tests.shard_files import picture, sample, write_shards, write_tar

PLAIN = Preprocessing()


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def images_of(pattern: str, *classes: str) -> ShardImages:
    return ShardImages(expanded(pattern), PLAIN, classes or None)


def refused(folder: Path, members: dict[str, bytes]) -> str:
    path = write_tar(folder / "x.tar", members)
    with pytest.raises(InputError) as caught:
        images_of(str(path))
    assert str(path) in caught.value.what
    return f"{caught.value.what} {caught.value.remedy}".replace(str(path), "x.tar")


def test_pictures_labels_and_names_come_in_the_order_of_the_shards(tmp_path: Path) -> None:
    images = images_of(write_shards(tmp_path, "train", [[0, 1], [2, 0, 1]]))
    assert images.labels.tolist() == [0, 1, 2, 0, 1]
    assert images.labels.dtype == np.int64
    assert images.classes == ("0", "1", "2")
    assert [images.identity(i) for i in range(5)] == [
        *("train-000.tar/000000.png", "train-000.tar/000001.png"),
        *("train-001.tar/000002.png", "train-001.tar/000003.png", "train-001.tar/000004.png"),
    ]
    for index in (4, 0, 2):
        with Image.open(io.BytesIO(picture(index))) as wanted:
            np.testing.assert_array_equal(images.pixels(index), np.asarray(wanted))
            assert images.raw(index).tobytes() == wanted.tobytes()


def test_shards_train_as_a_folder_of_the_same_images_does(tmp_path: Path) -> None:
    members: dict[str, bytes] = {}
    for number in range(12):
        members |= sample(number, number // 4)
        file = tmp_path / "folder" / str(number // 4) / f"{number:06d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(picture(number))
    shards = ShardImages([str(write_tar(tmp_path / "x.tar", members))], Preprocessing(crop=6))
    folder, order = ImageFolder(tmp_path / "folder", Preprocessing(crop=6)), epoch_order(12, 0, 0)
    wanted = list(training_batches(TrainingData(folder, "cifar", 0), order, 5))
    for workers, start in ((0, 0), (2, 1)):
        data = TrainingData(shards, "cifar", 0)
        found = list(training_batches(data, order, 5, start_step=start, workers=workers))
        assert len(found) == 3 - start
        for (images, labels), (same, true) in zip(found, wanted[start:], strict=True):
            assert images.numpy().tobytes() == same.numpy().tobytes()
            assert labels.tolist() == true.tolist()


def test_specs_name_training_and_validation_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    spec = shard_spec("t-{0..1}.tar,s3://bucket/v.tar")
    assert spec == ShardSpec(
        (f"{tmp_path}/t-0.tar", f"{tmp_path}/t-1.tar"),
        ("s3://bucket/v.tar",),
        f"{tmp_path}/t-{{0..1}}.tar,s3://bucket/v.tar",
    )
    assert spec is not None and shard_spec(spec.text) == spec
    assert shard_spec("photos") is None and shard_spec("digits") is None and shard_spec("photos,others") is None
    for text, what in (
        ("a.tar,b.tar,c.tar", "names 3 parts"),
        ("train.tar.gz", r"train\.tar\.gz is compressed"),
        ("s3://bucket/photos", "is not a tar archive"),
    ):
        with pytest.raises(InputError, match=what):
            shard_spec(text)


def test_folders_of_shards_are_split_by_name(tmp_path: Path) -> None:
    for name in ("train-0.tar", "train-1.tar", "val-0.tar", "notes.txt", "extra.tar"):
        (tmp_path / name).touch()
    spec = shard_spec(str(tmp_path))
    assert spec is not None
    assert [Path(place).name for place in spec.train] == ["train-0.tar", "train-1.tar"]
    assert [Path(place).name for place in spec.val] == ["val-0.tar"]
    assert spec.text == str(tmp_path)
    (tmp_path / "val-0.tar").unlink()
    spec = shard_spec(str(tmp_path))
    assert spec is not None and len(spec.train) == 3 and spec.val == ()
    (tmp_path / "class").mkdir()
    assert shard_spec(str(tmp_path)) is None  # images in class folders


def test_data_of_shards_is_split_like_any_other(tmp_path: Path) -> None:
    train, val = write_shards(tmp_path, "train", [[0, 1], [1, 0]]), write_shards(tmp_path, "val", [[1]])
    with pytest.warns(DataWarning, match="has no images of 1 class"):
        splits = open_data(f"{train},{val}", preprocessing=PLAIN)
    assert (len(splits.train), splits.val.labels.tolist(), splits.held_out) == (4, [1], False)
    assert splits.description == f"{train},{val}: 4 training and 1 validation images, 2 classes"
    held = open_data(train, preprocessing=PLAIN, train_fraction=0.5)
    assert (len(held.train), len(held.val), held.held_out) == (2, 2, True)
    for arguments, what in (
        ({"spec": train}, "names no validation shards"),
        ({"spec": f"{train},{val}", "train_fraction": 0.5}, "brings its own validation images"),
        ({"spec": train, "class_order": "numeric"}, "Shards number their classes"),
    ):
        with pytest.raises(InputError, match=what):
            open_data(preprocessing=PLAIN, **arguments)


def test_class_names_come_from_a_file_beside_the_shards(tmp_path: Path) -> None:
    pattern = write_shards(tmp_path, "train", [[0, 1, 2]])
    names = tmp_path / "classes.txt"
    names.write_text("cat\ndog\n owl \n\n")
    assert images_of(pattern).classes == ("cat", "dog", "owl")
    other = images_of(pattern, "owl", "cat", "dog")  # a run's order
    assert (other.classes, other.labels.tolist()) == (("owl", "cat", "dog"), [1, 2, 0])
    for text, what in (
        ("cat\ndog\n", r"train-000\.tar/000002\.png has the label 2, but there are 2 classes"),
        ("cat\n\nowl\n", r"classes\.txt beside train-000\.tar has an empty line"),
        ("cat\ndog\ncat\n", "names cat twice"),
    ):
        names.write_text(text)
        with pytest.raises(InputError, match=what):
            images_of(pattern)
    names.write_text("cat\ndog\nowl\n")
    with pytest.raises(InputError, match="names owl, which is not among the 2 known classes"):
        images_of(pattern, "cat", "dog")
    names.write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="is no UTF-8 text"):
        images_of(pattern)


def test_labels_without_names_are_a_networks_outputs(tmp_path: Path) -> None:
    pattern = write_shards(tmp_path, "val", [[1, 0]])
    assert images_of(pattern, "cat", "dog").classes == ("cat", "dog")
    with pytest.raises(InputError, match="has the label 1, but there are 1 classes"):
        images_of(pattern, "cat")


def test_samples_that_cannot_be_are_named(tmp_path: Path) -> None:
    assert refused(tmp_path, sample(1, None)) == (
        "000001.png in x.tar has no label. write 000001.cls, or a number named label into 000001.json."
    )
    assert "000001.cls in x.tar is no class number" in refused(tmp_path, sample(1, None) | {"000001.cls": b"cat"})
    assert "000001.cls in x.tar is no class number" in refused(tmp_path, sample(1, None) | {"000001.cls": b"-1"})
    assert "has no label" in refused(tmp_path, sample(1, None) | {"000001.json": b'{"label": true}'})
    assert "has no label" in refused(tmp_path, sample(1, None) | {"000001.json": b'{"label": '})
    assert "x.tar holds no images." in refused(tmp_path, {"a.txt": b"", "000001.cls": b"0"})
    assert "x.tar holds no images: it begins with zeros" in refused(tmp_path, {})
    two = sample(1, 0) | {"000001.other.jpg": picture(2, kind="JPEG")}
    assert "two pictures in one sample: 000001.png and 000001.other.jpg" in refused(tmp_path, two)
    big = sample(1, None) | {"000001.json": b" " * (1 << 21)}
    assert "has 2,097,152 bytes, too many for a label" in refused(tmp_path, big)


def test_a_class_file_is_believed_before_other_notes(tmp_path: Path) -> None:
    members = {"b/1.json": b'{"label": 5}', "b/1.PNG": picture(0), "b/1.cls": b" 2\n", "b/1.txt": b"a caption"}
    members |= {"__shard__.json": b"{}", "b/.hidden.cls": b"9", "a/1.cls": b"0", "a/1.png": picture(1)}
    with pytest.warns(DataWarning, match="has no images of 1 class"):
        images = images_of(str(write_tar(tmp_path / "x.tar", members)))
    assert [(images.identity(i), int(images.labels[i])) for i in range(2)] == [
        ("x.tar/b/1.PNG", 2),
        ("x.tar/a/1.png", 0),
    ]


def test_shards_of_one_name_are_told_apart(tmp_path: Path) -> None:
    for part in range(2):
        write_tar(tmp_path / f"part{part}" / "x.tar", sample(part, part))
    images = images_of(str(tmp_path / "part{0..1}" / "x.tar"))
    assert [images.identity(i) for i in range(2)] == ["part0/x.tar/000000.png", "part1/x.tar/000001.png"]


def test_missing_and_damaged_shards_are_named(tmp_path: Path) -> None:
    pattern = write_shards(tmp_path, "train", [[0], [1], [0], [1]])
    for number in (1, 3):
        (tmp_path / f"train-00{number}.tar").unlink()
    with pytest.raises(InputError, match=r"train-001\.tar does not exist, and 1 more of 4"):
        images_of(pattern)
    whole = write_tar(tmp_path / "x.tar", sample(0, 0) | sample(1, 0)).read_bytes()
    (tmp_path / "x.tar").write_bytes(whole[:2500])
    with pytest.raises(InputError, match=r"x\.tar ends too early"):
        images_of(str(tmp_path / "x.tar"))
    (tmp_path / "y.tar").mkdir()
    with pytest.raises(InputError, match="could not be read: Is a directory"):
        images_of(str(tmp_path / "y.tar"))


def test_damaged_pictures_are_errors_or_skipped(tmp_path: Path) -> None:
    broken = {"000001.png": picture(1)[:60], "000001.cls": b"0"}
    images = images_of(str(write_tar(tmp_path / "x.tar", sample(0, 0) | broken | sample(2, 0))))
    with pytest.raises(BadImage, match=r"x\.tar/000001\.png can't be used: it "):
        images.pixels(1)
    bad = BadImages()
    (batch,) = batches(images, on_bad="skip", bad=bad)
    assert batch.indices.tolist() == [0, 2]
    assert set(bad.reasons) == {"x.tar/000001.png"}


def test_an_index_is_made_once_and_again_for_a_changed_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pattern = write_shards(tmp_path, "train", [[0, 1]])
    made: list[str] = []
    whole = shard_index._indexed

    def noted(archive: object, place: str, length: int) -> shard_index.ShardIndex:
        made.append(Path(place).name)
        return whole(archive, place, length)  # type: ignore[arg-type]

    monkeypatch.setattr(shard_index, "_indexed", noted)
    first, again = images_of(pattern), images_of(pattern)
    assert made == ["train-000.tar"]
    np.testing.assert_array_equal(first.pixels(1), again.pixels(1))
    assert [first.identity(1), first.labels.tolist()] == [again.identity(1), again.labels.tolist()]
    write_tar(tmp_path / "train-000.tar", sample(0, 1) | sample(1, 1) | sample(2, 0))
    assert images_of(pattern).labels.tolist() == [1, 1, 0]
    assert len(made) == 2
    (kept,) = shard_index.index_folder().iterdir()
    kept.write_bytes(b"damaged")
    assert images_of(pattern).labels.tolist() == [1, 1, 0]
    assert len(made) == 3


def test_without_a_place_for_the_index_shards_are_read_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert images_of(write_shards(tmp_path, "train", [[0, 1]])).labels.tolist() == [0, 1]


def test_a_shard_that_changes_meanwhile_is_refused(tmp_path: Path) -> None:
    images = images_of(write_shards(tmp_path, "train", [[0, 1]]))
    path = tmp_path / "train-000.tar"
    os.utime(path, ns=(1, 1))
    with pytest.raises(InputError, match=r"train-000\.tar was changed since the run began") as caught:
        images.pixels(0)
    assert not isinstance(caught.value, BadImage)  # "skip" must not hide it
    path.unlink()
    with pytest.raises(InputError, match=r"train-000\.tar could not be read: No such file"):
        images.pixels(0)


def test_nothing_stays_open_and_pickled_sets_work(tmp_path: Path) -> None:
    images = images_of(write_shards(tmp_path, "train", [[0, 1]]))
    before = len(os.listdir("/proc/self/fd"))
    copy = pickle.loads(pickle.dumps(images))
    np.testing.assert_array_equal(copy.pixels(1), images.pixels(1))
    assert len(os.listdir("/proc/self/fd")) == before
