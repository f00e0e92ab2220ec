"""docs/results.md: what the committed results give, and the sums behind it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import pytest

from benchmarks.peers.record import Record as Peer
from engines.errors import InputError
from experiments import paper
from experiments.plan import EXPERIMENTS
from experiments.record import Epoch, Record, read_record, write_record
from experiments.results_page import PAGE, committed_page, page
from experiments.summary import Summary, best, calibrated, difference, last, points, summary
from faq_deploy.recipe import load_recipe, override

_EPOCH = Epoch(top1=80.0, train_top1=79.0, loss=0.5, lr=0.02, seconds=50.0, images_per_second=400.0)


def record(name: str, seed: int = 0, top1: float = 80.0, floating: float | None = 80.0) -> Record:
    """A training of one epoch, calibrated at 60 %."""
    return Record(
        name=name,
        seed=seed,
        command=("quantize", "builtin:resnet14-cifar"),
        recipe="",
        commit="abc1234",
        torch="2.14.1",
        hardware="a CPU, 2 cores, no GPU",
        threads=1,
        beside=1,
        wall_seconds=60.0,
        float_top1=floating,
        calibrated_top1=None if floating is None else 60.0,
        last_top1=top1,
        best_top1=top1 + 0.1,
        best_epoch=1,
        epochs=[dataclasses.replace(_EPOCH, top1=top1)],
    )


def rows(text: str, start: str) -> list[str]:
    """Table rows that begin with this cell."""
    return [line for line in text.splitlines() if line.startswith(f"| {start} |")]


def test_the_committed_page_is_what_the_committed_results_give() -> None:
    assert PAGE.read_text("utf-8") == committed_page()


def test_mean_and_sample_deviation() -> None:
    found = summary([84.0, 84.3, 84.6])
    assert (found.low, found.high, found.count) == (84.0, 84.6, 3)
    assert str(found) == "84.30 ± 0.30"


def test_one_seed_has_no_deviation() -> None:
    assert summary([81.25]) == Summary(81.25, None, 81.25, 81.25, 1)
    assert str(summary([81.25])) == "81.25"


def test_figures_of_several_seeds() -> None:
    three = [record("x", seed, top1) for seed, top1 in enumerate((79.0, 80.0, 82.5))]
    assert (last(three).mean, round(best(three).mean, 9)) == (80.5, 80.6)
    assert difference(three, 80.0) == 0.5
    assert calibrated(three) == Summary(60.0, 0.0, 60.0, 60.0, 3)
    assert calibrated([record("x", floating=None)]) is None


@pytest.mark.parametrize(("value", "text"), [(0.25, "+0.25"), (-1.0, "-1.00"), (0.004, "0.00"), (None, "")])
def test_points_have_a_sign(value: float | None, text: str) -> None:
    assert points(value) == text


def main_claim(top1: Sequence[float]) -> str:
    """The row of 4bit-fold, where the float net has 80.1 % and the trained-on one 80.5 %."""
    results = {
        "float": [record("float", 0, 80.0, None)],
        "4bit-fold": [record("4bit-fold", seed, value, 80.1) for seed, value in enumerate(top1)],
        "float-4bit-schedule": [record("float-4bit-schedule", 0, 80.5, None)],
    }
    (row,) = [line for line in rows(page(results, [], []), "`4bit-fold`") if "0, 1, 2" in line]
    return row


def test_a_claim_that_holds_by_a_hair_is_met() -> None:
    expected = (
        "| `4bit-fold` | 1 | 0, 1, 2 | 80.10 | 60.00 ± 0.00 | **79.80 ± 0.10** | 79.70 to 79.90 | 79.90 ± 0.10 "
        "| -0.30 | -0.70 | 400 | at least -0.3: met |"
    )
    assert main_claim((79.7, 79.8, 79.9)) == expected


def test_a_claim_that_fails_by_a_hair_is_not_met() -> None:
    assert main_claim((79.7, 79.8, 79.87)).endswith("| at least -0.3: NOT MET |")


def test_what_was_not_run_says_so() -> None:
    text = page({}, [], [])
    assert "The float net: not run." in text
    missing = [e.name for e in EXPERIMENTS if e.group in ("8bit", "4bit", "control", "grid", "lr")]
    assert [name for name in missing if "| not run |" not in rows(text, f"`{name}`")[0]] == []
    ours = sum(bool(change.experiment) for change in paper.CHANGES)
    assert sum("| not run |" in line for change in paper.CHANGES for line in rows(text, change.row)) == ours > 10


def test_a_changed_experiment_is_compared_with_the_mean_of_the_unchanged() -> None:
    results = {
        "4bit-fold": [record("4bit-fold", seed, 80.0 + seed) for seed in range(3)],
        "4bit-scratch-step": [record("4bit-scratch-step", 0, 60.5, None)],
    }
    name = "from random weights, steps from 0.1 (Table 2, 4.3)"
    assert rows(page(results, [], []), name) == [
        f"| {name} | 69.24 | -0.58 | `4bit-scratch-step` | `4bit-fold` | 60.50 | -20.50 | 0 |"
    ]


def test_every_change_names_an_experiment_of_the_plan() -> None:
    known = {e.name for e in EXPERIMENTS}
    assert [c for c in paper.CHANGES if not {c.experiment, c.base} - {""} <= known] == []
    assert {e.name for e in EXPERIMENTS if e.group == "table2"} <= {c.experiment for c in paper.CHANGES}


def test_a_recipe_of_a_row_gives_its_command() -> None:
    values = {"paper.row": "Table 1, X", "paper.model": "torchvision:resnet18", "paper.top1": 70.02}
    values["paper.weights"] = "IMAGENET1K_V1"
    recipe = override(load_recipe("faq-8bit"), values)
    text = page({}, [recipe], [])
    command = (
        "faq-deploy quantize torchvision:resnet18 --weights IMAGENET1K_V1 --data DIR --recipe faq-8bit -o runs/faq-8bit"
    )
    assert rows(text, "Table 1, X") == [f"| Table 1, X | `faq-8bit` |  | 70.02 | not run | `{command}` |"]


def test_compared_methods_are_quoted_as_printed() -> None:
    text = page({}, [], [])
    assert "| ResNet-18 | Joint Training (Jung et al., 2018) | 4,4 | 69.30 |  |" in text
    assert "| Inception-v3 | IOA (Jacob et al., 2017) | 8,8 | 74.20 | 92.20 |" in text
    assert (len(paper.BASELINES), len(paper.COMPARED)) == (7, 12)


def test_a_peer_stands_beside_ours() -> None:
    peer = Peer(
        "a-4bit", "QAT", "lib", "1.0", 4, 4, "po2", "channel", "float", "train", 6, 0.02, "exponential", 80.0, {},
        {"0": 79.0, "1": 79.5}, {}, 400.0, 1, "a CPU", "2.14.1", "abc1234", "python peers.py a", "no bias",
    )  # fmt: skip
    text = page({"4bit-fold": [record("4bit-fold", 0, 79.9)]}, [], [peer])
    assert "| 4,4 | faq-deploy | `4bit-fold` | po2, per channel | 1 | 1 | 60.00 | **79.90** | -0.10 |  |" in text
    assert "| 4,4 | lib 1.0 | QAT | po2, per channel | 6 | 2 |  | **79.25 ± 0.35** | -0.75 | no bias |" in text
    assert "\npython peers.py a\n" in text


def test_a_result_comes_back_from_its_file(tmp_path: Path) -> None:
    written = record("x", 2)
    path = write_record(written, tmp_path)
    assert path.name == "x-2.json"
    found = read_record(path)
    assert dataclasses.replace(found, command=tuple(found.command)) == written


def test_a_file_that_is_no_result_is_named(tmp_path: Path) -> None:
    path = write_record(record("x"), tmp_path)
    path.write_text(path.read_text("utf-8").replace('"seed"', '"sead"'), "utf-8")
    with pytest.raises(InputError, match=r"x-0\.json is no result of an experiment"):
        read_record(path)
