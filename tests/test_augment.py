"""Training batches: the same for any number of workers, resumable at any step, never a last batch of one."""

from __future__ import annotations

import functools
import gc
import multiprocessing
import os
import signal
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import dataloader
from torchvision import transforms

from engines.errors import CannotRunHere, InputError
from engines.image_batches import BadImages, batches
from engines.images import ArrayImages, ImageFolder
from engines.preprocess import PixelArray, Preprocessing
from faq_deploy.augment import TrainingData, batch_sizes, epoch_order, require_shares, training_batches
from faq_deploy.data import Augment

MODES: tuple[Augment, ...] = get_args(Augment)
SPEC = Preprocessing(resize=14, crop=12)
PIXELS = np.random.default_rng(0).integers(1, 256, (23, 20, 16, 3), dtype=np.uint8)
IMAGES = ArrayImages(PIXELS, np.arange(23) % 3, ["a", "b", "c"], SPEC)

Batches = list[tuple[bytes, list[int]]]


def run(data: TrainingData, order: np.ndarray, batch_size: int = 4, start_step: int = 0, workers: int = 0) -> Batches:
    loaded = training_batches(data, order, batch_size, start_step=start_step, workers=workers)
    return [(images.numpy().tobytes(), labels.tolist()) for images, labels in loaded]


@pytest.mark.parametrize("augment", MODES)
def test_workers_and_resuming_change_nothing(augment: Augment) -> None:
    data, order = TrainingData(IMAGES, augment, seed=7, epoch=3), epoch_order(23, 7, 3)
    whole = run(data, order)
    assert len(whole) == len(batch_sizes(23, 4)) == 6
    torch.manual_seed(123)  # what the program drew before is of no influence
    assert run(data, order, start_step=2, workers=2) == whole[2:]
    assert run(data, order, start_step=5) == whole[5:]
    assert run(data, order, start_step=6, workers=2) == []


@pytest.mark.parametrize("workers", [0, 2])
def test_loading_leaves_the_global_generator_alone(workers: int) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    run(TrainingData(IMAGES, "cifar", seed=0), epoch_order(23, 0, 0), workers=workers)
    assert torch.equal(torch.rand(3), expected)


def test_without_augmentation_training_sees_the_bytes_of_validation() -> None:
    order = np.arange(23)
    trained = training_batches(TrainingData(IMAGES, "none", seed=0), order, 8)
    for (images, labels), batch in zip(trained, batches(IMAGES, batch_size=8), strict=True):
        assert images.dtype == torch.float32
        assert labels.dtype == torch.int64
        assert images.numpy().tobytes() == batch.images.tobytes()
        assert labels.tolist() == batch.labels.tolist()


def test_training_pixels_equal_torchvisions(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    Image.fromarray(PIXELS[0]).save(tmp_path / "a" / "0.jpg")
    steps = transforms.Compose(
        [
            *(transforms.Resize(14), transforms.CenterCrop(12)),
            *(transforms.ToTensor(), transforms.Normalize(SPEC.mean, SPEC.std)),
        ]
    )
    expected = steps(Image.open(tmp_path / "a" / "0.jpg").convert("RGB"))
    data = TrainingData(ImageFolder(tmp_path, SPEC), "none", seed=0)
    (images, _labels), *_ = training_batches(data, np.array([0]), 1)
    assert images[0].numpy().tobytes() == expected.contiguous().numpy().tobytes()


@pytest.mark.parametrize("augment", ["shift", "cifar", "imagenet"])
def test_augmentation_follows_seed_epoch_and_index(augment: Augment) -> None:
    def views(seed: int, epoch: int) -> list[bytes]:
        data = TrainingData(IMAGES, augment, seed).at_epoch(epoch)
        return [data[index][0].tobytes() for index in range(23)]

    assert views(0, 0) == views(0, 0)
    assert views(0, 0) != views(1, 0)
    assert views(0, 0) != views(0, 1)
    same = ArrayImages(np.repeat(PIXELS[:1], 23, axis=0), np.zeros(23, np.int64), ["a"], SPEC)
    alike = TrainingData(same, augment, 0)
    assert len({alike[index][0].tobytes() for index in range(23)}) > 5


def shifted(pixels: PixelArray, reach: int) -> dict[bytes, tuple[int, int]]:
    padded = np.pad(pixels, ((reach, reach), (reach, reach), (0, 0)))
    height, width, _ = pixels.shape
    steps = range(2 * reach + 1)
    return {padded[y : y + height, x : x + width].tobytes(): (y - reach, x - reach) for y in steps for x in steps}


def test_shift_moves_by_at_most_one_pixel_over_black() -> None:
    data = TrainingData(IMAGES, "shift", seed=0)
    moves = {shifted(IMAGES.pixels(i), 1)[data.at_epoch(e)[i][0].tobytes()] for i in range(23) for e in range(5)}
    assert moves == {(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1)}


def test_cifar_moves_by_at_most_four_pixels_and_flips_half_of_the_time() -> None:
    data, flips, moves = TrainingData(IMAGES, "cifar", seed=0), 0, set()
    for index in range(23):
        plain, mirrored = shifted(IMAGES.pixels(index), 4), shifted(IMAGES.pixels(index)[:, ::-1], 4)
        for epoch in range(20):
            seen = data.at_epoch(epoch)[index][0].tobytes()
            flips += seen in mirrored
            moves.add(mirrored[seen] if seen in mirrored else plain[seen])
    assert {y for y, _ in moves} == {x for _, x in moves} == set(range(-4, 5))
    assert 180 < flips < 280  # of 460


def test_imagenet_takes_parts_of_the_whole_picture() -> None:
    wide = np.zeros((1, 60, 240, 3), np.uint8)
    wide[:, :, :40] = 255  # the center crop never sees this
    images = ArrayImages(wide, np.array([0]), ["a"], Preprocessing(resize=60, crop=(60, 50)))
    assert not images.pixels(0).any()
    seen = [TrainingData(images, "imagenet", seed=0, epoch=epoch)[0][0] for epoch in range(40)]
    assert {view.shape for view in seen} == {(60, 50, 3)}
    assert any(view.max() == 255 for view in seen)


def test_grey_images_keep_one_channel_in_every_mode() -> None:
    spec = Preprocessing(color="L", mean=(0.5,), std=(0.5,), crop=8)
    images = ArrayImages(PIXELS[:, :8, :8, :1], np.zeros(23, np.int64), ["a"], spec)
    assert {TrainingData(images, mode, seed=0)[1][0].shape for mode in MODES} == {(8, 8, 1)}


def test_imagenet_augmentation_needs_a_crop() -> None:
    images = ArrayImages(PIXELS, np.zeros(23, np.int64), ["a"], Preprocessing())
    with pytest.raises(InputError, match="imagenet needs the size"):
        TrainingData(images, "imagenet", seed=0)


@given(count=st.integers(1, 400), seed=st.integers(0, 3), epoch=st.integers(0, 3))
def test_epoch_order_is_a_seeded_permutation(count: int, seed: int, epoch: int) -> None:
    order = epoch_order(count, seed, epoch)
    assert sorted(order.tolist()) == list(range(count))
    np.testing.assert_array_equal(order, epoch_order(count, seed, epoch))


def test_epochs_differ_in_order() -> None:
    assert len({tuple(epoch_order(50, seed, epoch).tolist()) for seed in (0, 1) for epoch in range(5)}) == 10


@given(count=st.integers(1, 200), batch_size=st.integers(1, 64))
def test_every_image_is_seen_once_and_no_last_batch_of_one(count: int, batch_size: int) -> None:
    spec = Preprocessing(scale=1.0, mean=(0, 0, 0), std=(1, 1, 1))
    pixels = np.arange(count, dtype=np.uint8).reshape(count, 1, 1, 1).repeat(3, axis=3)
    data = TrainingData(ArrayImages(pixels, np.zeros(count, np.int64), ["a"], spec), "none", seed=0)
    loaded = [images[:, 0, 0, 0].tolist() for images, _ in training_batches(data, np.arange(count), batch_size)]
    assert [value for batch in loaded for value in batch] == list(range(count))
    assert len(loaded) == len(batch_sizes(count, batch_size))
    sizes = [len(batch) for batch in loaded]
    assert all(size == batch_size for size in sizes[:-1])
    assert batch_size == 1 or sizes[-1] > 1 or count == 1
    assert sizes[-1] <= batch_size + 1


@pytest.mark.parametrize(
    ("count", "batch_size", "steps"), [(65, 64, 1), (33, 16, 2), (64, 64, 1), (66, 64, 2), (1, 8, 1)]
)
def test_a_last_batch_of_one_is_merged(count: int, batch_size: int, steps: int) -> None:
    assert len(batch_sizes(count, batch_size)) == steps


def broken_folder(root: Path, broken: set[int]) -> ImageFolder:
    (root / "a").mkdir()
    for index in range(8):
        path = root / "a" / f"{index}.png"
        Image.new("RGB", (8, 8), (index, 0, 0)).save(path)
        if index in broken:
            path.write_bytes(path.read_bytes()[:40])
    return ImageFolder(root, Preprocessing(scale=1.0, mean=(0, 0, 0), std=(1, 1, 1)))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_image_stops_training_by_name(tmp_path: Path, workers: int) -> None:
    data = TrainingData(broken_folder(tmp_path, {5}), "none", seed=0)
    loaded = training_batches(data, np.arange(8), 4, workers=workers)
    next(loaded)
    with pytest.raises(InputError, match=r"a/5\.png can't be used: it is not an image") as caught:
        next(loaded)
    assert "--on-bad-image skip" in caught.value.remedy


@pytest.mark.parametrize("workers", [0, 2])
def test_the_next_image_takes_a_skipped_ones_place(tmp_path: Path, workers: int) -> None:
    data, bad = TrainingData(broken_folder(tmp_path, {2, 3, 7}), "none", seed=0), BadImages()
    order = np.array([0, 2, 3, 4, 5, 6, 1, 7])
    loaded = training_batches(data, order, 4, workers=workers, on_bad="skip", bad=bad)
    assert [images[:, 0, 0, 0].tolist() for images, _ in loaded] == [[0, 4, 4, 4], [5, 6, 1, 0]]
    assert set(bad.reasons) == {"a/2.png", "a/3.png", "a/7.png"}


def test_a_folder_of_bad_images_alone_is_an_error(tmp_path: Path) -> None:
    data = TrainingData(broken_folder(tmp_path, set(range(8))), "none", seed=0)
    with pytest.raises(InputError, match="has no image that can be used"):
        next(training_batches(data, np.arange(8), 4, on_bad="skip", bad=BadImages()))


def test_skipping_without_a_counter_is_refused() -> None:
    with pytest.raises(ValueError, match="needs a BadImages"):
        next(training_batches(TrainingData(IMAGES, "none", seed=0), np.arange(23), 4, on_bad="skip"))


def test_images_of_unequal_size_are_both_named(tmp_path: Path) -> None:
    images = broken_folder(tmp_path, set())
    Image.new("RGB", (9, 7)).save(tmp_path / "a" / "4.png")
    with pytest.raises(InputError, match=r"a/0\.png is 8x8 pixels, but a/4\.png is 9x7"):
        next(training_batches(TrainingData(images, "none", seed=0), np.arange(8), 8))


class DyingImages(ArrayImages):
    """Image 9 kills the process that loads it, as the kernel does when memory runs out."""

    def pixels(self, index: int) -> PixelArray:
        if index == 9 and os.getpid() != self.parent:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().pixels(index)

    parent = os.getpid()


def test_a_killed_worker_is_reported_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    # the loader looks after its workers every 5 seconds; once would make this a slow test
    iterator = dataloader._MultiProcessingDataLoaderIter
    monkeypatch.setattr(iterator, "_try_get_data", functools.partialmethod(iterator._try_get_data, timeout=0.1))
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.1)
    monkeypatch.setattr(torch.utils.data._utils.signal_handling, "_SIGCHLD_handler_set", False)  # as in a new process
    images = DyingImages(PIXELS, np.zeros(23, np.int64), ["a"], SPEC)
    before = signal.getsignal(signal.SIGCHLD)
    with pytest.raises(CannotRunHere, match="data loading process died") as caught:
        list(training_batches(TrainingData(images, "none", seed=0), np.arange(23), 4, workers=2))
    assert "--workers 0" in caught.value.remedy
    assert signal.getsignal(signal.SIGCHLD) == before  # else the death could raise anywhere in the program
    del caught
    gc.collect()  # the other worker ends here, not in the next test


def test_loading_needs_no_shared_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def bus_error(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)  # a full /dev/shm kills the worker that writes to it

    for name in ("_new_shared", "_share_fd_cpu_", "_share_filename_cpu_"):
        monkeypatch.setattr(torch.UntypedStorage, name, bus_error)
    data, order = TrainingData(IMAGES, "cifar", seed=0), np.arange(23)
    assert run(data, order, workers=1) == run(data, order)


class InterruptedImages(ArrayImages):
    """Image 9 sends the process that loads it what Ctrl-C sends to the whole group."""

    def pixels(self, index: int) -> PixelArray:
        if index == 9:
            os.kill(os.getpid(), signal.SIGINT)
        return super().pixels(index)


def test_ctrl_c_is_left_to_the_trainer() -> None:
    images = InterruptedImages(PIXELS, np.zeros(23, np.int64), ["a"], SPEC)
    loaded = training_batches(TrainingData(images, "none", seed=0), np.arange(23), 4, workers=1)
    assert sum(len(labels) for _, labels in loaded) == 23


def test_workers_end_with_their_reader() -> None:
    before = set(multiprocessing.active_children())
    loaded = training_batches(TrainingData(IMAGES, "none", seed=0), np.arange(23), 4, workers=2)
    next(loaded)
    assert len(set(multiprocessing.active_children()) - before) == 2
    del loaded
    assert set(multiprocessing.active_children()) <= before


@pytest.mark.parametrize("augment", MODES)
@pytest.mark.parametrize(("ranks", "workers"), [(2, 0), (3, 0), (3, 1)])
def test_the_parts_of_all_ranks_are_the_batches_of_one_process(augment: Augment, ranks: int, workers: int) -> None:
    data, order = TrainingData(IMAGES, augment, seed=7, epoch=3), epoch_order(23, 7, 3)
    whole = list(training_batches(data, order, 8))
    parts = [
        list(training_batches(data, order, 8, rank=rank, ranks=ranks, workers=workers if rank else 0))
        for rank in range(ranks)
    ]
    for step, (images, labels) in enumerate(whole):
        assert torch.equal(torch.cat([part[step][0] for part in parts]), images)
        assert torch.equal(torch.cat([part[step][1] for part in parts]), labels)
        sizes = [len(part[step][1]) for part in parts]
        assert max(sizes) - min(sizes) <= 1
        assert min(sizes) > 0


@pytest.mark.parametrize(
    ("count", "batch_size", "ranks", "refused"),
    [
        (64, 16, 16, ""),
        (65, 16, 16, ""),  # the last image is merged
        (66, 16, 2, ""),
        (66, 16, 3, "The last batch of an epoch has 2 of the 66 images, too few for 3 processes"),
        (64, 2, 4, "A batch has 2 of the 64 images, too few for 4 processes"),
        (3, 16, 4, "A batch has 3 of the 3 images"),
        (5, 1, 1, ""),
    ],
)
def test_batches_with_fewer_images_than_ranks_are_refused(
    count: int, batch_size: int, ranks: int, refused: str
) -> None:
    if not refused:
        require_shares(count, batch_size, ranks)
        assert ranks <= batch_size
        return
    with pytest.raises(InputError, match=refused) as caught:
        require_shares(count, batch_size, ranks)
    assert caught.value.remedy == "pass another --batch-size, or fewer --devices."


def test_an_error_inside_a_worker_is_not_taken_for_its_death() -> None:
    class FailingImages(ArrayImages):
        def pixels(self, index: int) -> PixelArray:
            raise RuntimeError("a bug")

    images = FailingImages(PIXELS, np.zeros(23, np.int64), ["a"], SPEC)
    with pytest.raises(RuntimeError, match="a bug"):
        next(training_batches(TrainingData(images, "none", seed=0), np.arange(23), 4, workers=1))
