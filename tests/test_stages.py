"""Stages count codes and answers image by image, in memory that stays small."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from engines.parity import logit_bits
from faq_deploy import agreement
from faq_deploy.agreement import CodeCount, images_at_once, torch_codes
from faq_deploy.stages import Tally, compare_codes
from faq_deploy.stored_net import StoredNet
from tests.nets import Small, with_statistics
from tests.quantized import images, make_recipe, quantized_net

Codes = dict[str, npt.NDArray[np.int64]]


@pytest.fixture(scope="module")
def stored() -> StoredNet:
    return quantized_net(with_statistics(Small()), make_recipe())


class Recorder:
    """PyTorch's own codes, one of them moved in image `wrong`; remembers how many images came at a time."""

    name = "recorder"

    def __init__(self, stored: StoredNet, wrong: int | None = None) -> None:
        self.stored, self.wrong, self.sizes = stored, wrong, list[int]()
        self.code_names: list[str] = []

    def __call__(self, batch: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        return torch_codes(self.stored.net, batch)[1]

    def codes(self, batch: npt.NDArray[np.float32]) -> Codes:
        codes, _ = torch_codes(self.stored.net, batch)
        place = None if self.wrong is None else self.wrong - sum(self.sizes)
        if place is not None and 0 <= place < len(batch):
            codes["relu.codes"][place].flat[0] += 1
        self.sizes.append(len(batch))
        return codes

    def close(self) -> None:
        """Nothing to let go of."""


def tally(runner: Recorder) -> Tally:
    return Tally("some engine", "engine", runner)


def test_codes_are_compared_in_pieces_that_fit_the_memory(stored: StoredNet, monkeypatch: pytest.MonkeyPatch) -> None:
    data = images(7).numpy()
    one = sum(codes.nbytes for codes in torch_codes(stored.net, data[:1])[0].values())
    for room, sizes in ((one - 1, [1] * 7), (3 * one, [3, 3, 1]), (100 * one, [7])):
        monkeypatch.setattr(agreement, "_MEMORY", room)
        assert images_at_once(stored.net, data[:1]) == max(1, min(8, room // one))
        runner = Recorder(stored, wrong=5)
        stage = tally(runner)
        compare_codes(stored, data, [(stage, 7)])
        assert runner.sizes == sizes
        assert stage.codes == CodeCount(7 * one // 8, 1, "relu")  # int64


def test_each_stage_compares_only_the_images_that_it_ran(stored: StoredNet, monkeypatch: pytest.MonkeyPatch) -> None:
    data = images(5).numpy()
    one = sum(codes.size for codes in torch_codes(stored.net, data[:1])[0].values())
    monkeypatch.setattr(agreement, "_MEMORY", 2 * 8 * one)
    runners = [Recorder(stored, wrong=3), Recorder(stored), Recorder(stored)]
    shares = list(zip(map(tally, runners), (4, 1, 0), strict=True))
    compare_codes(stored, data, shares)
    assert [runner.sizes for runner in runners] == [[2, 2], [1], []]
    assert [(stage.codes.compared, stage.codes.differing) for stage, _ in shares] == [(4 * one, 1), (one, 0), (0, 0)]


def test_no_image_and_no_stage_is_nothing_to_compare(stored: StoredNet) -> None:
    stage = tally(Recorder(stored))
    compare_codes(stored, images(3).numpy(), [(stage, 0)])
    compare_codes(stored, images(3).numpy(), [])
    assert stage.codes == CodeCount()


def test_a_stage_without_codes_reports_none(stored: StoredNet) -> None:
    stage = tally(Recorder(stored))
    data = images(4).numpy()
    wanted = stage.run(data, np.arange(4), None)
    stage.run(data, np.arange(4), wanted)
    row = stage.stage()
    assert (row.images, row.flips, row.differing_codes, row.codes_compared) == (8, 0, None, None)
    compare_codes(stored, data, [(stage, 2)])
    row = stage.stage()
    assert (row.differing_codes, row.codes_compared) == (0, stage.codes.compared)


def test_the_first_tensor_that_differs_is_kept() -> None:
    count = CodeCount()
    a, b = np.arange(6).reshape(1, 6), np.arange(4).reshape(1, 4)
    count.add({"a.codes": a, "b.codes": b}, {"a.codes": a.reshape(1, 6, 1, 1), "b.codes": b})
    assert count == CodeCount(10, 0, None)
    count.add({"a.codes": a, "b.codes": b}, {"a.codes": a, "b.codes": b + 1})
    count.add({"a.codes": a, "b.codes": b}, {"a.codes": a * 2, "b.codes": b})
    assert count == CodeCount(30, 9, "b")


def test_batches_are_tried_once_and_what_depends_on_them_is_counted(stored: StoredNet) -> None:
    class Drifts(Recorder):
        def __call__(self, batch: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
            logits = super().__call__(batch).copy()
            if len(batch) == 3:
                logits[1, :2] += 1
            return logits

    data = images(6).numpy()
    labels = np.zeros(6, np.int64)
    for runner, sizes, wanted in (
        (Drifts(stored), (2, 3), 2),
        (Drifts(stored), (2, 4), 0),
        (Recorder(stored), (2, 3), 0),
        (Recorder(stored), (), None),
    ):
        engine = Tally("some engine", "engine", runner, batches=sizes)
        engine.run(data, labels, None)
        engine.try_batches(data)
        engine.try_batches(data[:0])
        assert engine.stage().batch_dependent_logits == wanted
    told = Tally("some engine", "engine", Drifts(stored), batches=(3,))
    told.run(data, labels, None)
    told.try_batches(data, judged=False)
    assert told.stage().batch_dependent_logits is None
    assert str(told.batch_dependence).startswith("image 1 gets other logits in a batch of 3")


class OnePass(Recorder):
    """A runner whose codes come with its logits, as the integer reference's; counts the images of each kind of call."""

    def __init__(self, stored: StoredNet) -> None:
        super().__init__(stored)
        self.called: list[int] = []

    def __call__(self, batch: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        self.called.append(len(batch))
        return super().__call__(batch)

    def codes(self, batch: npt.NDArray[np.float32]) -> Codes:
        logits = torch_codes(self.stored.net, batch)[1]
        return super().codes(batch) | {"logits": logit_bits(logits)}


@pytest.mark.parametrize(("coded", "limit", "called"), [(0, None, [7]), (3, None, [4]), (7, None, []), (3, 5, [2])])
def test_images_whose_codes_are_compared_are_not_run_again(
    stored: StoredNet, coded: int, limit: int | None, called: list[int]
) -> None:
    data, labels = images(7).numpy(), np.zeros(7, np.int64)
    runner = OnePass(stored)
    stage = Tally("reference", "reference", runner, limit=limit, one_pass=True)
    assert stage.share(7) == (limit or 7)
    compare_codes(stored, data, [(stage, coded)])
    logits = torch_codes(stored.net, data)[1]
    found = stage.run(data, labels, logits)
    assert np.array_equal(found, logits[: limit or 7])
    assert runner.called == called
    assert (stage.images, stage.flips, stage.largest, stage.codes.differing) == (limit or 7, 0, 0.0, 0)
    assert stage.answered().tolist() == logits[: limit or 7].argmax(1).tolist()
    assert stage.seconds > 0
