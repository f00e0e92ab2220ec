"""Two processes on the CPU are one process with the whole batch: same statistics, weights, exponents, checkpoints."""

from __future__ import annotations

import re
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from engines.errors import CannotRunHere
from faq_deploy.ranks import Ranks, one_process
from faq_deploy.torch_eval import top1_percent
from tests.rank_jobs import CPU, KINDS, NORMS, launch_jobs, normalized, photos, random_net, train

pytestmark = pytest.mark.xdist_group("ranks")

Results = tuple[dict[str, Any], dict[str, Any]]


@pytest.fixture(scope="module")
def alone() -> Ranks:
    return one_process(CPU)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, alone: Ranks) -> Path:
    """Where two processes did all jobs; the checkpoint of one process, that they went on from, is in `kept`."""
    folder = tmp_path_factory.mktemp("ranks")
    train(folder / "from 1", "plain", alone)
    assert launch_jobs(folder, "all") == 0
    return folder


@pytest.fixture(scope="module")
def both(folder: Path) -> Results:
    first, second = (torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2))
    return first, second


def assert_close(found: dict[str, Tensor], wanted: dict[str, Tensor], tolerance: float) -> None:
    """Float tensors within a tolerance, integers (exponents) the same."""
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        if value.is_floating_point():
            assert torch.allclose(found[name], value, rtol=tolerance, atol=tolerance), name
        else:
            assert torch.equal(found[name], value), name


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


def test_ranks_reduce_gather_and_agree(both: Results) -> None:
    for rank, found in enumerate(results["messages"] for results in both):
        assert found["rank"] == rank
        assert found["total"] == [2.0, 1.0]
        assert found["maximum"] == [1, 0]
        assert found["mean"] == ([[0.5, 0.5], [0.5, 0.5]], [2.0, 2.0, 2.0])
        assert found["agree"] == (True, False)
        assert found["gathered"] == ["from 0", "from 1"]
        assert found["first"] == ("done" if rank == 0 else None)
        assert found["all"] == rank


def test_a_failure_of_the_first_rank_stops_all_and_is_told_once(both: Results) -> None:
    assert [results["messages"]["failure"] for results in both] == [
        (2, "The folder is full.", False),
        (2, "The folder is full.", True),
    ]


def test_one_process_gives_back_what_it_gets(alone: Ranks) -> None:
    value = torch.tensor([1.0, 2.0])
    assert alone.total(value) is value
    assert alone.maximum(value) is value
    alone.mean_([value])
    assert value.tolist() == [1.0, 2.0]
    assert (alone.agree(True), alone.agree(False)) == (True, False)
    assert (alone.gathered(5), alone.first_does(lambda: 6), alone.first_then_all(lambda: 7)) == ([5], 6, 7)
    assert (alone.rank, alone.count, alone.is_first, alone.device) == (0, 1, True, CPU)


@pytest.mark.parametrize("kind", NORMS)
def test_synchronized_batch_norm_is_that_of_the_whole_batch(both: Results, kind: str) -> None:
    whole = normalized(kind, slice(0, 8), synchronized=False)
    first, second = (results[kind] for results in both)
    for name in ("y", "of_x"):
        torch.testing.assert_close(torch.cat([first[name], second[name]]), whole[name], rtol=1e-5, atol=1e-5)
    for name in ("of_weight", "of_bias"):  # each process has its own images' share
        torch.testing.assert_close(first[name] + second[name], whole[name], rtol=1e-5, atol=1e-4)
    for name in ("running_mean", "running_var"):
        torch.testing.assert_close(first[name], whole[name], rtol=1e-6, atol=1e-6)
        assert torch.equal(first[name], second[name])


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_train_to_the_weights_and_exponents_of_one(
    both: Results, alone: Ranks, tmp_path: Path, kind: str
) -> None:
    one = train(tmp_path, kind, alone).state_dict()
    first, second = (results[f"trained {kind}"] for results in both)
    assert_same(first, second)
    assert_close(first, one, 2e-5)


def test_top1_is_that_of_one_process(both: Results) -> None:
    alone = top1_percent(random_net(), photos(), batch_size=8)
    assert [results["top1"] for results in both] == [alone, alone]
    assert 0 < alone < 100


def test_processes_hold_the_same_weights_where_statistics_are_their_own(both: Results, alone: Ranks) -> None:
    first, second = (results["apart"] for results in both)
    assert_same(first, second)
    synchronized = both[0]["trained fold"]
    assert not all(torch.equal(first[name], value) for name, value in synchronized.items())


def test_a_checkpoint_of_one_process_goes_on_with_two_and_the_other_way(
    both: Results, folder: Path, alone: Ranks, tmp_path: Path
) -> None:
    whole = train(tmp_path / "whole", "plain", alone, epochs=2).state_dict()
    assert_close(both[0]["from 1"], whole, 2e-5)
    shutil.copytree(folder / "from 2", tmp_path / "parts")
    assert_close(train(tmp_path / "parts", "plain", alone, epochs=2, resume=True).state_dict(), whole, 2e-5)


def test_a_killed_process_takes_the_other_down_with_a_sentence(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    began = time.monotonic()
    with pytest.raises(CannotRunHere, match=re.escape("Process 1 of 2 was killed (SIGKILL), so the others were")):
        launch_jobs(tmp_path, "dying")
    assert time.monotonic() - began < 200  # most of it is the start of two processes on a busy machine
    assert capfd.readouterr().err.splitlines() in ([], ["told"])  # no traceback; it may have been stopped before
