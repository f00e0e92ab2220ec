"""What a training in progress leaves on disk."""

from __future__ import annotations

import json
import os
import pickle
import resource
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import torch

from engines.errors import InputError
from engines.run_folder import RunFolder
from faq_deploy.checkpoint import (
    CHECKPOINT,
    METRICS,
    MetricsLog,
    Tally,
    TrainingState,
    has_checkpoint,
    load_state,
    recipe_differences,
    remove_leftovers,
    save_state,
)
from faq_deploy.recipe import dump_toml, load_recipe, override


def some_state(size: int = 3) -> TrainingState:
    optimizer: dict[str, object] = {
        "state": {0: {"momentum_buffer": torch.ones(size)}},
        "param_groups": [{"lr": 0.1, "params": [0]}],
    }
    return TrainingState(
        recipe_toml="bits = 8\n",
        weight_decay=1e-4,
        steps_per_epoch=7,
        net={"weight": torch.arange(size) / 3, "exponent": torch.tensor([-4], dtype=torch.int32)},
        optimizer=optimizer,
        epoch=2,
        step_in_epoch=5,
        global_step=19,
        best={"weight": torch.zeros(size)},
        best_epoch=1,
        best_top1=71.25,
        last_top1=70.5,
        tally=Tally(images=40, loss=12.5, right=31.0, seconds=0.5),
        seconds=3.25,
        metrics_bytes=123,
    )


@contextmanager
def files_limited_to(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def files_of(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def test_a_state_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    run, state = RunFolder(tmp_path / "new"), some_state()
    assert not has_checkpoint(run)
    save_state(run, state)
    assert has_checkpoint(run)
    found = load_state(run)
    assert torch.equal(found.net["weight"], state.net["weight"]) and found.net["exponent"].dtype == torch.int32
    assert torch.equal(found.best["weight"], state.best["weight"])
    plain = {key: value for key, value in vars(state).items() if key not in ("net", "best", "optimizer")}
    assert {key: vars(found)[key] for key in plain} == plain
    assert str(found.optimizer) == str(state.optimizer)
    assert files_of(run.path) == [CHECKPOINT]


def test_a_missing_checkpoint_is_no_training_to_resume(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no training to resume"):
        load_state(RunFolder(tmp_path))


@pytest.mark.parametrize("kept", [0, 1, 100, 0.5, -1])
def test_a_checkpoint_cut_short_is_refused(tmp_path: Path, kept: float) -> None:
    run = RunFolder(tmp_path)
    save_state(run, some_state(1000))
    whole = (run / CHECKPOINT).read_bytes()
    length = int(kept * len(whole)) if isinstance(kept, float) else kept
    (run / CHECKPOINT).write_bytes(whole[:length])
    with pytest.raises(InputError, match=r"checkpoint\.pt is damaged"):
        load_state(run)


@pytest.mark.parametrize("record", [[1, 2], {"format": 1}, {"format": 1, "tally": 3}, {"format": 1, "tally": {"x": 1}}])
def test_a_file_of_something_else_is_refused(tmp_path: Path, record: object) -> None:
    torch.save(record, tmp_path / CHECKPOINT)
    with pytest.raises(InputError, match="is damaged"):
        load_state(RunFolder(tmp_path))


class Harmful:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("harm",)


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"format": 1, "net": Harmful()}, tmp_path / CHECKPOINT)
    with pytest.raises(InputError, match="is damaged"):
        load_state(RunFolder(tmp_path))
    (tmp_path / CHECKPOINT).write_bytes(pickle.dumps(Harmful(), protocol=2))
    with pytest.raises(InputError, match="is damaged"):
        load_state(RunFolder(tmp_path))
    assert files_of(tmp_path) == [CHECKPOINT]


def test_a_checkpoint_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    torch.save({"format": 2}, tmp_path / CHECKPOINT)
    with pytest.raises(InputError, match="newer faq-deploy"):
        load_state(RunFolder(tmp_path))


def test_a_full_disk_leaves_the_checkpoint_before_and_nothing_else(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    save_state(run, some_state())
    before = (run / CHECKPOINT).read_bytes()
    with files_limited_to(20_000), pytest.raises(InputError, match="could not be written"):
        save_state(run, some_state(100_000))
    assert (run / CHECKPOINT).read_bytes() == before
    assert files_of(tmp_path) == [CHECKPOINT]


def test_leftovers_of_a_killed_write_are_removed_and_nothing_else(tmp_path: Path) -> None:
    for name in (f".{CHECKPOINT}.abc.tmp", ".quantized.pt.abc.tmp", CHECKPOINT):
        (tmp_path / name).touch()
    remove_leftovers(RunFolder(tmp_path))
    assert files_of(tmp_path) == [".quantized.pt.abc.tmp", CHECKPOINT]


def test_metrics_after_the_checkpoint_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / METRICS
    with closing(MetricsLog(path, 0)) as log:
        log.add({"step": 0})
        kept = log.flush(to_disk=True)
        log.add({"step": 1})
        log.flush()
        log.add({"step": 2})
    assert path.read_text() == '{"step": 0}\n{"step": 1}\n'
    with closing(MetricsLog(path, kept)) as log:
        log.add({"step": 1, "loss": 0.1 + 0.2})
        assert log.flush() == path.stat().st_size
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"step": 0},
        {"step": 1, "loss": 0.1 + 0.2},
    ]


def test_metrics_shorter_than_the_checkpoint_says_are_refused(tmp_path: Path) -> None:
    (tmp_path / METRICS).write_text("{}\n")
    with pytest.raises(InputError, match="has 3 bytes"):
        MetricsLog(tmp_path / METRICS, 4)
    assert (tmp_path / METRICS).read_text() == "{}\n"


def test_a_full_disk_is_an_error_of_the_metrics_too(tmp_path: Path) -> None:
    with closing(MetricsLog(tmp_path / METRICS, 0)) as log, files_limited_to(10):
        log.add({"step": 1, "loss": 1.0})
        with pytest.raises(InputError, match="could not be written"):
            log.flush()


def test_closing_the_metrics_on_a_full_disk_names_the_file_too(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / METRICS, 0)
    log.add({"step": 1, "loss": 1.0})
    with files_limited_to(10):
        for call in (log.flush, log.close):
            with pytest.raises(InputError, match=f"{METRICS} could not be written"):
                call()


def test_recipe_differences_name_what_changes_the_weights() -> None:
    recipe = load_recipe("faq-4bit")
    free = override(recipe, {"training.epochs": 3, "name": "mine", "description": "other words"})
    assert recipe_differences(dump_toml(recipe), dump_toml(free)) == []
    other = override(recipe, ["training.lr=0.5", "bits=8", 'training.weight_decay_for={"x" = 1.0}'])
    assert recipe_differences(dump_toml(recipe), dump_toml(other)) == [
        "bits: 4 became 8",
        "training.lr: 0.0015 became 0.5",
        "training.weight_decay_for.*resnet18*: 5e-05 became absent",
        "training.weight_decay_for.x: absent became 1.0",
    ]
