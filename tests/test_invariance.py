"""An image's logits must not depend on the batch that it comes in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from engines.errors import InputError
from engines.invariance import BatchDependence, batch_dependence, batch_sentence
from engines.ort import OrtRunner
from engines.runner import FloatArray
from tests.onnx_nets import images, residual_net, saved


class Sums:
    """Logits that depend on the batch where a test wants them to."""

    name = "sums"

    def __init__(self, wrong_size: int = 0, wrong_position: int = -1) -> None:
        self.wrong_size, self.wrong_position = wrong_size, wrong_position
        self.sizes: list[int] = []

    def __call__(self, batch: FloatArray) -> FloatArray:
        self.sizes.append(len(batch))
        logits = np.stack([batch.sum((1, 2, 3)), batch[:, 0, 0, 0]], axis=1)
        if len(batch) == self.wrong_size:
            logits[self.wrong_position, 1] += 0.5
        return logits

    def close(self) -> None:
        self.sizes.clear()


def pixels(count: int) -> FloatArray:
    return np.arange(count * 4, dtype=np.float32).reshape(count, 1, 2, 2)


def test_every_size_and_two_positions_are_tried() -> None:
    runner = Sums()
    assert batch_dependence(runner, pixels(3), [8, 2, 8, 1]) is None
    assert runner.sizes == [1, 1, 1, 8, 8, 2, 2, 1]


def test_the_image_and_the_batch_are_named() -> None:
    found = batch_dependence(Sums(8, 5), pixels(3), [2, 8])
    assert found == BatchDependence(image=2, size=8, position=5, values=1, largest=0.5)
    assert str(found) == (
        "image 2 gets other logits in a batch of 8 (at position 5) than alone: 1 differ, by up to 0.5"
    )


def test_a_zero_of_another_sign_is_a_difference() -> None:
    class Signed(Sums):
        def __call__(self, batch: FloatArray) -> FloatArray:
            return np.full((len(batch), 2), -0.0 if len(batch) > 1 else 0.0, np.float32)

    assert batch_dependence(Signed(), pixels(1), [2]) == BatchDependence(0, 2, 0, 2, 0.0)


def test_the_sentence_says_what_was_found_or_nothing() -> None:
    runner = Sums(8, 5)
    assert batch_sentence(runner, pixels(3), (2, 4)) == ""
    assert runner.sizes == [1, 1, 1, 2, 2, 4, 4]
    assert batch_sentence(runner, pixels(3), (2, 8)).startswith("image 2 gets other logits in a batch of 8 ")


def test_no_image_is_refused() -> None:
    with pytest.raises(InputError, match="no image to run"):
        batch_dependence(Sums(), pixels(0), [2])


@pytest.mark.parametrize("target", ["tensorrt", "onnxruntime"])
def test_onnxruntime_does_not_depend_on_the_batch(target: str, tmp_path: Path) -> None:
    runner = OrtRunner(saved(residual_net(target, 1), tmp_path))  # type: ignore[arg-type]
    assert batch_dependence(runner, images(2, 5, 33), [8, 32]) is None
