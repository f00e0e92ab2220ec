"""Folders and images that cannot be used are named; those that can be read somehow are read right."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.e2e.conftest import Call
from tests.e2e.photos import COLOURS, SIZE, colour_folder, quantize_photos, write_nets
from tests.e2e.refusals import contents, refusal

pytestmark = [pytest.mark.xdist_group("digits"), pytest.mark.filterwarnings("always::UserWarning")]


@pytest.fixture
def nets(tmp_path: Path) -> Path:
    return write_nets(tmp_path)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return colour_folder(tmp_path / "photos")


def truncated_jpeg(path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(path, "JPEG")
    path.write_bytes(path.read_bytes()[:2000])


def top1(run: Path, stage: str = "PyTorch float") -> float:
    stages = json.loads((run / "report.json").read_text())["stages"]
    return float(next(s["top1"] for s in stages if s["name"] == stage))


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda root: None, "does not exist"),
        (lambda root: root.mkdir(), "holds no class folders"),
        (lambda root: root.write_text("x"), "is a file, not a folder"),
        (lambda root: [(root / s / "a").mkdir(parents=True) for s in ("train", "val")], "train holds no images"),
        (lambda root: (root / "a").mkdir(parents=True), "holds no images"),
    ],
)
def test_data_folder_without_images_is_named(call: Call, nets: Path, tmp_path: Path, make: object, what: str) -> None:
    root = tmp_path / "data"
    make(root)  # type: ignore[operator]
    message = refusal(quantize_photos(call, f"{nets}:net", root, tmp_path / "run"))
    assert str(root) in message
    assert what in message
    assert not (tmp_path / "run").exists()


def test_single_folder_needs_a_training_fraction(call: Call, nets: Path, photos: Path, tmp_path: Path) -> None:
    single, run = photos / "train", tmp_path / "run"
    assert "--train-fraction 0.8" in refusal(quantize_photos(call, f"{nets}:net", single, run))
    assert quantize_photos(call, f"{nets}:net", single, run, "--train-fraction", 0.5).exit_code == 0
    for file in single.glob("[bc]/*"):
        file.unlink()
    for file in list(single.glob("a/*"))[1:]:
        file.unlink()
    message = refusal(quantize_photos(call, f"{nets}:net", single, tmp_path / "one", "--train-fraction", 0.5))
    assert "splits the images into 1 for training and 0 for validation" in message


def test_training_in_float_refuses_what_quantizing_refuses(
    call: Call, nets: Path, photos: Path, tmp_path: Path
) -> None:
    plain = ("--resize", 0, "--crop", SIZE, "--recipe", "digits-float", "--epochs", 1, "-o", tmp_path / "run")
    for factory, what in (("grey", "--color L"), ("image", "not logits"), ("broken", "has no attribute 'missing'")):
        assert what in refusal(call("train", f"{nets}:{factory}", "--data", photos, *plain))
    result = call("train", f"{nets}:net", "--num-classes", 4, "--data", photos, *plain)
    assert "has 4 classes but the data has 3" in refusal(result)
    assert not (tmp_path / "run").exists()
    assert call("train", f"{nets}:net", "--data", photos, *plain).exit_code == 0


def test_one_image_each_is_enough(call: Call, nets: Path, tmp_path: Path) -> None:
    data = colour_folder(tmp_path / "one", ("a",), each=1)
    for options in ((), ("--target", "paper", "--set", "quantizer.batch_norm=paper")):
        run = tmp_path / f"run{len(options)}"
        result = quantize_photos(call, f"{nets}:net", data, run, "--num-classes", 1, "--epochs", 1, *options)
        assert result.exit_code == 0, result.output
        assert "only 1 training image to calibrate on" in result.stderr


@pytest.mark.parametrize("split", ["train", "val"])
def test_truncated_jpeg_is_named_or_skipped_and_counted(
    call: Call, nets: Path, photos: Path, tmp_path: Path, split: str
) -> None:
    bad, run = photos / split / "b" / "bad.jpg", tmp_path / "run"
    truncated_jpeg(bad)
    message = refusal(quantize_photos(call, f"{nets}:nearest", photos, run))
    assert str(bad) in message
    assert "--on-bad-image skip" in message
    assert not run.exists()
    result = quantize_photos(call, f"{nets}:nearest", photos, run, "--on-bad-image", "skip", "--epochs", 1)
    assert result.exit_code == 0, result.output
    assert "warning: 1 bad image was skipped: b/bad.jpg." in result.stderr
    assert call("export", run).exit_code == 0
    if split == "train":
        assert call("eval", run, "--allow-skip").exit_code == 0  # it reads validation images only
        return
    assert str(bad) in refusal(call("eval", run, "--allow-skip"))
    assert not (run / "report.json").exists()
    result = call("eval", run, "--allow-skip", "--on-bad-image", "skip")
    assert result.exit_code == 0, result.output
    assert "warning: 1 bad image was skipped: b/bad.jpg." in result.stderr
    assert json.loads((run / "report.json").read_text())["images"] == 12


def test_nothing_but_bad_images_is_an_error_even_when_they_are_skipped(
    call: Call, nets: Path, photos: Path, tmp_path: Path
) -> None:
    run, skip = tmp_path / "run", ("--on-bad-image", "skip")
    assert quantize_photos(call, f"{nets}:net", photos, run).exit_code == 0
    assert call("export", run).exit_code == 0
    for split in ("val", "train"):
        for file in photos.glob(f"{split}/*/*"):
            file.write_bytes(b"nonsense")
        result = quantize_photos(call, f"{nets}:net", photos, tmp_path / "other", *skip)
        assert f"No image of {photos / split} can be read." in refusal(result)
        assert not (tmp_path / "other").exists()
    assert f"No image of {photos / 'val'} can be read." in refusal(call("eval", run, "--allow-skip", *skip))


def test_images_of_unequal_size_are_named(call: Call, nets: Path, photos: Path, tmp_path: Path) -> None:
    for split in ("val", "train"):
        Image.new("RGB", (20, 30)).save(photos / split / "c" / "large.png")
        message = refusal(quantize_photos(call, f"{nets}:net", photos, tmp_path / "run", "--crop", 0))
        assert "20x30" in message
        assert "16x16" in message
        assert "c/large.png" in message
        assert "--crop" in message
        assert not (tmp_path / "run").exists()
    assert quantize_photos(call, f"{nets}:net", photos, tmp_path / "run").exit_code == 0


def test_pictures_of_any_mode_give_a_colour_net_the_colours_they_show(call: Call, nets: Path, tmp_path: Path) -> None:
    data = colour_folder(tmp_path / "data", [f"{i:02}" for i in range(12)], each=1)
    black, white = np.full((SIZE, SIZE), 32, np.uint8), np.full((SIZE, SIZE), 224, np.uint8)
    darkest, brightest = data / "val" / "00", data / "val" / "11"  # (32, 32, 32) and (224, 224, 224)
    for folder, grey in ((darkest, black), (brightest, white)):
        Image.fromarray(grey).save(folder / "grey.png")
        Image.fromarray(grey).save(folder / "grey.jpg")
        Image.fromarray(grey.astype(np.uint16) * 257).save(folder / "deep.png")
        Image.fromarray(grey.astype(np.uint16) * 257).save(folder / "deep.tif")
    for index, colour in enumerate(COLOURS):
        picture = Image.fromarray(np.full((SIZE, SIZE, 3), colour, np.uint8))
        folder = data / "val" / f"{index:02}"
        picture.convert("P", palette=Image.Palette.ADAPTIVE).save(folder / "palette.png")
        picture.convert("RGBA").save(folder / "alpha.png")
        picture.convert("CMYK").save(folder / "cmyk.jpg", quality=100)
    run = tmp_path / "run"
    result = quantize_photos(call, f"{nets}:nearest", data, run, "--num-classes", 12, "--class-order", "lexical")
    assert result.exit_code == 0, result.output
    assert call("export", run).exit_code == 0
    assert call("eval", run, "--allow-skip").exit_code == 0
    assert json.loads((run / "report.json").read_text())["images"] == 12 * 4 + 8
    assert top1(run) == top1(run, "PyTorch quantized") == 100.0


def test_c08_numbered_class_folders_are_taken_in_the_order_asked_for_and_never_silently(
    call: Call, nets: Path, tmp_path: Path
) -> None:
    data = colour_folder(tmp_path / "data", [str(i) for i in range(12)])
    scores = {}
    for order in (None, "lexical", "numeric"):
        run = tmp_path / f"run-{order}"
        chosen = ("--class-order", order) if order else ()
        result = quantize_photos(call, f"{nets}:nearest", data, run, "--num-classes", 12, *chosen, "--json")
        assert result.exit_code == 0, result.output
        assert ("taken in lexical order: class 2 is 10" in result.stderr) == (order is None)
        assert ("pass --class-order numeric" in result.stderr) == (order is None)
        scores[order] = json.loads(result.stdout)["float_top1"]
    assert scores["numeric"] == 100.0
    assert scores[None] == scores["lexical"] == pytest.approx(100 * 2 / 12)  # 0 and 1 stand where they should
    run = tmp_path / "run-numeric"
    assert call("export", run).exit_code == 0
    assert call("eval", run, "--allow-skip").exit_code == 0
    assert top1(run) == 100.0  # the order is the run's own


@pytest.mark.parametrize("empty", [False, True])
def test_class_without_validation_images_does_not_shift_the_others(
    call: Call, nets: Path, photos: Path, tmp_path: Path, empty: bool
) -> None:
    shutil.rmtree(photos / "val" / "b")
    if empty:
        (photos / "val" / "b").mkdir()
    result = quantize_photos(call, f"{nets}:nearest", photos, tmp_path / "run", "--json")
    assert result.exit_code == 0, result.output
    assert "val has no images of 1 class(es): b." in result.stderr
    assert json.loads(result.stdout)["float_top1"] == 100.0


def test_unknown_validation_class_is_named(call: Call, nets: Path, photos: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert quantize_photos(call, f"{nets}:nearest", photos, run).exit_code == 0
    assert call("export", run).exit_code == 0
    shutil.copytree(photos / "val" / "b", photos / "val" / "zebra")
    before = contents(run)
    for result in (
        quantize_photos(call, f"{nets}:nearest", photos, tmp_path / "new"),
        call("eval", run, "--allow-skip"),
    ):
        message = refusal(result)
        assert "the class zebra, which is not among the 3 known classes" in message
        assert str(photos / "val" / "zebra") in message
    assert not (tmp_path / "new").exists()
    assert contents(run) == before


def test_eval_takes_a_bare_folder_of_validation_images(call: Call, nets: Path, photos: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert quantize_photos(call, f"{nets}:nearest", photos, run).exit_code == 0
    assert call("export", run).exit_code == 0
    shutil.rmtree(photos / "train")
    for options in ((), ("--data", photos / "val")):
        result = call("eval", run, "--allow-skip", *options)
        assert result.exit_code == 0, result.output
        assert top1(run) == 100.0
    assert "does not exist" in refusal(call("eval", run, "--allow-skip", "--data", photos / "train"))
