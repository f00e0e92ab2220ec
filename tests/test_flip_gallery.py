"""Which flips are shown first, and their thumbnails."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
from PIL import Image

from engines.images import ArrayImages, ImageFolder
from engines.preprocess import Preprocessing
from faq_deploy.flip_gallery import MOST_FLIPS, flip_gallery, flipped, thumbnail
from faq_deploy.predictions import Predictions

GREY = Preprocessing(resize=None, crop=None, color="L", mean=(0.5,), std=(0.5,))


def predictions(labels: list[int], floating: list[int], quantized: list[int], engine: list[int]) -> Predictions:
    answers = {"PyTorch float": floating, "PyTorch quantized": quantized, "engine e": engine}
    names = [f"{index}.png" for index in range(len(labels))]
    arrays = {name: np.array(found) for name, found in answers.items()}
    return Predictions(names, ("a", "b", "c"), np.array(labels), arrays)


def test_what_leaves_the_quantized_net_comes_first_then_lost_gained_and_wrong_both_times() -> None:
    #                  same, wrong, gained, lost, engine flips (which ran five images only)
    found = predictions([0, 0, 0, 0, 0], [0, 1, 1, 0, 0], [0, 2, 0, 1, 0], [0, 2, 0, 1, 2])
    assert flipped(found) == [4, 3, 2, 1]
    assert flipped(predictions([0, 0], [0, 0], [0, 0], [0])) == []


def test_each_flip_has_its_name_label_answers_and_picture() -> None:
    pixels = np.arange(5 * 8 * 8, dtype=np.uint8).reshape(5, 8, 8, 1)
    images = ArrayImages(pixels, np.zeros(5, np.int64), ("a", "b", "c"), GREY)
    found = predictions([0, 0], [0, 0], [0, 1], [0])
    (flip,) = flip_gallery(images, np.array([1, 3]), found)  # image 0 and 2 were bad
    assert (flip.image, flip.label) == ("1.png", "a")
    assert flip.answers == {"PyTorch float": "a", "PyTorch quantized": "b"}  # the engine did not run it
    picture = Image.open(io.BytesIO(base64.b64decode(flip.thumbnail)))
    assert (picture.format, picture.size) == ("JPEG", (96, 96))
    assert abs(int(np.asarray(picture.convert("L"))[-1, -1]) - int(pixels[3, -1, -1, 0])) < 9


def test_a_gallery_is_short() -> None:
    count = 3 * MOST_FLIPS
    images = ArrayImages(np.zeros((count, 8, 8, 1), np.uint8), np.zeros(count, np.int64), ("a", "b", "c"), GREY)
    found = predictions([0] * count, [0] * count, [1] * count, [1] * count)
    assert len(flip_gallery(images, np.arange(count), found)) == MOST_FLIPS


def test_a_picture_that_is_gone_leaves_no_thumbnail(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    Image.new("RGB", (400, 200), (200, 10, 10)).save(tmp_path / "a" / "wide.png")
    images = ImageFolder(tmp_path, Preprocessing(resize=None, crop=None))
    assert Image.open(io.BytesIO(base64.b64decode(thumbnail(images, 0)))).size == (96, 48)
    (tmp_path / "a" / "wide.png").unlink()
    assert thumbnail(images, 0) == ""
