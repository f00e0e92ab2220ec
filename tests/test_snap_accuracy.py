"""What snapping costs, counted image by image; preprocessing follows the file where nothing else is said."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from engines.errors import CannotRunHere, InputError
from engines.images import ArrayImages
from engines.preprocess import Preprocessing
from faq_deploy.run_data import DataOptions
from faq_deploy.snap_accuracy import images_for, measure
from tests.onnx_nets import saved

CLASSES = ("dark", "middle", "bright")


def by_brightness(folder: Path, first: float, second: float, batch: int | str = "N") -> Path:
    """A net that answers with the class whose threshold the one pixel has passed: 0, `first`, `second`."""
    weight = np.array([[0, 1, 2]], np.float32)
    bias = np.array([0, -first, -first - second], np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["input"], ["flat"]),
            helper.make_node("Gemm", ["flat", "weight", "bias"], ["logits"]),
        ],
        "brightness",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [batch, 1, 1, 1])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, 3])],
        [numpy_helper.from_array(weight, "weight"), numpy_helper.from_array(bias, "bias")],
    )
    folder.mkdir()
    return saved(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), folder)


def pictures() -> ArrayImages:
    """Six pixels from 0 to 5, two of each class."""
    pixels = np.arange(6, dtype=np.uint8).reshape(6, 1, 1, 1)
    labels = np.array([0, 0, 1, 1, 2, 2], np.int64)
    return ArrayImages(pixels, labels, CLASSES, Preprocessing(color="L", mean=(0.0,), std=(1.0,), scale=1.0))


@pytest.mark.parametrize("batch", ["N", 1, 4])
def test_lost_gained_and_flips_are_counted_whatever_batch_the_file_fixes(batch: int | str, tmp_path: Path) -> None:
    right = by_brightness(tmp_path / "right", 1.5, 3.5, batch)
    other = by_brightness(tmp_path / "other", 2.5, 4.5, batch)  # calls 2 dark and 4 middle
    found = measure(right, other, pictures(), batch_size=4)
    assert (found.images, found.before) == (6, 100.0)
    assert found.after == pytest.approx(400 / 6)
    assert (found.pairs.lost, found.pairs.gained, found.pairs.flips) == (2, 0, 2)
    assert found.p_value == 0.5  # two of two coins
    assert found.before_interval.low == pytest.approx(60.97, abs=0.01)
    back = measure(other, right, pictures())
    assert (back.pairs.lost, back.pairs.gained) == (0, 2)
    assert back.pairs.drop == pytest.approx(-200 / 6)


def test_same_file_twice_loses_nothing(tmp_path: Path) -> None:
    path = by_brightness(tmp_path / "net", 1.5, 3.5)
    found = measure(path, path, pictures())
    assert (found.pairs.flips, found.pairs.drop, found.p_value) == (0, 0.0, 1.0)


def test_another_number_of_classes_is_refused(tmp_path: Path) -> None:
    path = by_brightness(tmp_path / "net", 1.5, 3.5)
    images = pictures()
    images.classes = ("one", "two", "three", "four")
    with pytest.raises(InputError, match="The file has 3 classes, but images has 4"):
        measure(path, path, images)


@pytest.mark.parametrize(
    ("shape", "wanted"),
    [
        (["N", 3, 224, 224], Preprocessing(resize=256, crop=224)),
        (["N", 3, 32, 48], Preprocessing(resize=None, crop=(32, 48))),
        (["N", 1, 28, 28], Preprocessing(resize=None, crop=28, color="L", mean=(0.449,), std=(0.226,))),
        (["N", 3, "H", "W"], Preprocessing(resize=256, crop=224)),
    ],
)
def test_size_and_colour_follow_the_input_of_the_file(
    shape: list[int | str], wanted: Preprocessing, tmp_path: Path
) -> None:
    (tmp_path / "photos" / "cat").mkdir(parents=True)
    (tmp_path / "photos" / "cat" / "1.png").touch()
    value = helper.make_tensor_value_info("input", TensorProto.FLOAT, shape)
    result = helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)
    graph = helper.make_graph([helper.make_node("Relu", ["input"], ["logits"])], "net", [value], [result])
    path = saved(helper.make_model(graph), tmp_path)
    images = images_for(path, DataOptions(data=str(tmp_path / "photos")))
    assert (images.preprocessing, images.classes) == (wanted, ("cat",))
    assert images_for(path, DataOptions(data=str(tmp_path / "photos"), crop=20)).preprocessing.crop_size == (20, 20)


def test_file_that_reads_no_images_is_refused_with_data(tmp_path: Path) -> None:
    value = helper.make_tensor_value_info("tokens", TensorProto.FLOAT, ["N", 128])
    result = helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)
    graph = helper.make_graph([helper.make_node("Relu", ["tokens"], ["logits"])], "net", [value], [result])
    path = saved(helper.make_model(graph), tmp_path)
    with pytest.raises(InputError, match=r"reads a tensor of shape \('any', 128\), not images"):
        images_for(path, DataOptions(data=str(tmp_path)))
    assert onnx.load(path).graph.name == "net"


def test_missing_scipy_is_said_before_anything_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = by_brightness(tmp_path / "net", 1.5, 3.5)
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(CannotRunHere, match="--data needs scipy"):
        images_for(path, DataOptions(data=str(tmp_path)))
