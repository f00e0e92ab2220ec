"""Which mistake of preprocessing restores top-1: a runner that knows one right preparation finds it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from engines.images import ArrayImages, ImageSet
from engines.preprocess import Preprocessing, normalize
from engines.runner import FloatArray
from engines.swaps import is_gain, restoring_swap, spread, swaps
from faq_deploy.data import open_data
from tests.e2e.test_blame import COLOURS, write_colours

SPEC = Preprocessing(mean=(0.9, 0.48, 0.1), std=(0.25, 0.5, 0.3), resize=None, crop=16)


class Nearest:
    """A runner that answers with the colour that is nearest, where images were prepared by one specification."""

    def __init__(self, spec: Preprocessing, *, bgr: bool = False) -> None:
        self.name = "nearest"
        plain = np.array(list(COLOURS.values()), np.uint8)[:, np.newaxis, np.newaxis, :]
        colours = normalize(plain[..., ::-1] if bgr else plain, spec)
        self.colours = colours[..., 0, 0]

    def __call__(self, batch: FloatArray) -> FloatArray:
        means = batch.mean((2, 3))
        logits: FloatArray = -np.linalg.norm(means[:, np.newaxis] - self.colours[np.newaxis], axis=2)
        return logits.astype(np.float32)

    def close(self) -> None:
        """Nothing to let go of."""


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> ImageSet:
    folder = write_colours(tmp_path_factory.mktemp("colours") / "data", per_class=(1, 10))
    return open_data(str(folder), preprocessing=SPEC).val


def test_a_right_preparation_has_no_swap(colours: ImageSet) -> None:
    assert restoring_swap(colours, Nearest(SPEC)) is None


@pytest.mark.parametrize(
    ("wanted", "bgr", "says"),
    [
        (SPEC, True, "the images are BGR where the net wants RGB"),
        (SPEC.model_copy(update={"mean": SPEC.std, "std": SPEC.mean}), False, "mean and std are swapped"),
        (SPEC.model_copy(update={"scale": 255.0 if SPEC.scale == 1.0 else 1.0}), False, "pixels are divided by"),
    ],
)
def test_the_swap_that_restores_top1_is_found(colours: ImageSet, wanted: Preprocessing, bgr: bool, says: str) -> None:
    trial = restoring_swap(colours, Nearest(wanted, bgr=bgr))
    assert trial is not None
    assert trial.swap.says.startswith(says)
    assert trial.images == 80 and trial.after > trial.before + 20


def test_no_swap_is_tried_twice() -> None:
    found = [(swap.says, swap.spec) for swap in swaps(SPEC)]
    assert len({says for says, _ in found}) == len(found)
    assert all(spec != SPEC or says.startswith(("the images are BGR", "the pixels are inv")) for says, spec in found)


def test_a_swap_that_gains_nothing_is_tried_on_a_quarter_of_the_images() -> None:
    class Counting(Nearest):
        seen = 0

        def __call__(self, batch: FloatArray) -> FloatArray:
            self.seen += len(batch)
            return super().__call__(batch)

    rng, spec = np.random.default_rng(0), SPEC.model_copy(update={"crop": None})
    runner = Counting(spec)
    labels = np.arange(300) % len(COLOURS)
    pixels = np.array(list(COLOURS.values()))[labels][:, np.newaxis, np.newaxis] + rng.integers(-20, 21, (300, 4, 4, 3))
    images = ArrayImages(pixels.clip(0, 255).astype(np.uint8), labels, list(COLOURS), spec)
    assert restoring_swap(images, runner) is None
    assert runner.seen == 256 + 64 * len(list(swaps(spec)))


def bools(right: int, count: int) -> npt.NDArray[np.bool_]:
    return np.arange(count) < right


@pytest.mark.parametrize(
    ("before", "after", "count", "gains"),
    [(50, 90, 100, True), (50, 54, 100, False), (0, 3, 4, False), (500, 540, 1000, False), (0, 20, 20, True)],
)
def test_a_gain_is_five_points_and_more_than_luck(before: int, after: int, count: int, gains: bool) -> None:
    assert is_gain(bools(before, count), bools(after, count)) is gains


def test_images_come_from_all_over_the_set() -> None:
    assert spread(10, 4).tolist() == [0, 3, 6, 9]
    assert spread(3, 256).tolist() == [0, 1, 2]
    assert len(spread(100_000)) == 256


def test_pictures_are_prepared_again_for_another_size() -> None:
    """A swap of the resize works on the files, not on the pixels."""
    says = [swap.says for swap in swaps(SPEC.model_copy(update={"resize": 20})) if swap.decodes]
    sizes = ["a resize to 16", "a resize to 18", "no resize before the crop", "bicubic interpolation"]
    assert says == [f"the net wants {size}" for size in sizes]
