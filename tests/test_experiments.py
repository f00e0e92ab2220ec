"""The plan of experiments, and the script that works through it, with a program in place of faq-deploy."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

import pytest

import cli
from experiments import run
from experiments.plan import EXPERIMENTS, MODEL, Experiment, chosen, command
from experiments.record import RESULTS, read_record
from faq_deploy.new_run import make_recipe
from faq_deploy.parsed_options import training_options
from faq_deploy.recipe import Recipe, resolved

_STUB = """#!{python}
import json, pathlib, sys
words = sys.argv[1:]
folder = pathlib.Path(words[words.index("-o") + 1])
with open(folder.parent / "calls", "a") as calls:
    print(*words, file=calls)
if "bad" in folder.name:
    sys.exit("broken")
folder.mkdir(parents=True, exist_ok=True)
(folder / "recipe.toml").write_text('bits = 4')
step = {{"kind": "step", "loss": 1.0}}
epoch = {{"kind": "epoch", "epoch": 0, "lr": 0.02, "loss": 0.5, "train_top1": 70.0, "top1": 71.5, "best": True,
         "seconds": 50.0, "images_per_second": 400.0}}
(folder / "metrics.jsonl").write_text(json.dumps(step) + "\\n" + json.dumps(epoch) + "\\n")
(folder / "manifest.json").write_text(json.dumps({{"steps": {{"quantize": {{"versions": {{"torch": "2.14.1"}}}}}}}}))
print(json.dumps({{"float_top1": 80.0, "calibrated_top1": 60.0, "top1": 71.5, "epoch": 1}}))
"""


@pytest.fixture
def workshop(tmp_path: Path) -> run.Workshop:
    """With a program that writes what a run of one epoch leaves, and fails where a folder's name has `bad`."""
    program = tmp_path / "stub"
    program.write_text(_STUB.format(python=sys.executable), "utf-8")
    program.chmod(0o755)
    (tmp_path / "runs").mkdir()
    return run.Workshop(str(program), tmp_path, "DATA", tmp_path / "runs", tmp_path / "results", 1, 2, again=False)


def calls(workshop: run.Workshop) -> list[str]:
    """The command lines so far."""
    return (workshop.runs / "calls").read_text("utf-8").splitlines()


def recipe_of(experiment: Experiment, seed: int) -> Recipe:
    """What the command line reads from the arguments of an experiment."""
    verb, model, *words = command(experiment, seed)
    context = cli.main.commands[verb].make_context(verb, [model, *words])
    options = dict(context.params)
    options.pop("as_json")
    return resolved(make_recipe(training_options(options.pop("model"), options)), model)


TASK = run.Task(Experiment("x", "4bit", "?", ("--recipe", "faq-4bit")), 1)
BAD = run.Task(Experiment("bad", "4bit", "?", ()), 0)


def test_a_run_becomes_a_record(workshop: run.Workshop) -> None:
    assert workshop.run_all([TASK]) == 0
    found = read_record(workshop.results / "x-1.json")
    weights = f"{workshop.runs}/float-0/float.pth"
    assert calls(workshop) == [
        f"quantize {MODEL} --weights {weights} --data DATA --recipe faq-4bit --seed 1 -o {workshop.runs}/x-1 "
        "--force --json"
    ]
    assert " ".join(found.command) == (
        f"quantize {MODEL} --weights runs/experiments/float-0/float.pth --data cifar10 --recipe faq-4bit --seed 1 "
        "-o runs/experiments/x-1"
    )
    assert (found.float_top1, found.calibrated_top1, found.last_top1, found.best_epoch) == (80.0, 60.0, 71.5, 1)
    assert (found.recipe, found.torch, found.threads, found.beside) == ("bits = 4", "2.14.1", 1, 0)
    assert [e.images_per_second for e in found.epochs] == [400.0]
    assert found.wall_seconds is not None


def test_what_is_finished_is_not_run_again(workshop: run.Workshop) -> None:
    workshop.run_all([TASK])
    assert workshop.run_all([TASK]) == 0
    assert len(calls(workshop)) == 1
    workshop.again = True
    workshop.run_all([TASK])
    assert len(calls(workshop)) == 2


def test_a_changed_plan_is_run_again(workshop: run.Workshop) -> None:
    workshop.run_all([TASK])
    workshop.run_all([run.Task(Experiment("x", "4bit", "?", ("--recipe", "faq-8bit")), 1)])
    assert [("faq-8bit" in line) for line in calls(workshop)] == [False, True]


def test_an_interrupted_run_goes_on(workshop: run.Workshop) -> None:
    (workshop.runs / "x-1").mkdir()
    (workshop.runs / "x-1" / "checkpoint.pt").touch()
    workshop.run_all([TASK])
    assert calls(workshop) == [f"quantize --resume --data DATA -o {workshop.runs}/x-1 --json"]
    assert read_record(workshop.results / "x-1.json").wall_seconds is None


def test_a_failure_names_its_log_and_the_others_go_on(
    workshop: run.Workshop, capsys: pytest.CaptureFixture[str]
) -> None:
    assert workshop.run_all([BAD, TASK]) == 1
    assert f"bad-0: exit code 1.\nNote: see {workshop.runs / 'bad-0.log'}." in capsys.readouterr().err
    assert (workshop.runs / "bad-0.log").read_text("utf-8") == "broken\n"
    assert [path.name for path in workshop.results.glob("*.json")] == ["x-1.json"]


def test_names_and_groups_choose_experiments() -> None:
    eight = ["8bit-fold-1e-4", "8bit-paper-1e-4", "8bit-paper-0.005", "8bit-fold", "8bit-paper"]
    assert [e.name for e in chosen(("8bit", "float", "8bit-fold"))] == [*eight, "float"]
    with pytest.raises(KeyError, match="9bit; there are"):
        chosen(("9bit",))


def test_the_grid_has_all_eight_readings() -> None:
    recipes = [recipe_of(e, 0) for e in EXPERIMENTS if e.group == "grid"]
    cells = {(r.calibration.round_up, r.quantizer.sigma_reading, r.quantizer.batch_norm) for r in recipes}
    assert len(cells) == len(recipes) == 8
    assert {(r.target, r.bits, r.quantizer.granularity) for r in recipes} == {("paper", 4, "tensor")}


def test_every_command_is_one_that_the_command_line_takes() -> None:
    decays = Counter(recipe_of(e, seed).training.weight_decay for e in EXPERIMENTS for seed in e.seeds)
    assert decays == {5e-4: sum(len(e.seeds) for e in EXPERIMENTS) - 1, 2.5e-4: 1}
    claims = {e.name: recipe_of(e, 2) for e in EXPERIMENTS if e.group in ("8bit", "4bit") and 2 in e.seeds}
    assert {name: (r.bits, r.target, r.training.seed) for name, r in claims.items()} == {
        "8bit-fold": (8, "tensorrt", 2),
        "8bit-paper-0.005": (8, "paper", 2),
        "8bit-paper": (8, "paper", 2),
        "4bit-fold": (4, "tensorrt", 2),
        "4bit-paper": (4, "paper", 2),
    }


def test_json_has_no_place_of_this_machine() -> None:
    texts = [path.read_text("utf-8") for path in sorted(RESULTS.glob("*.json"))]
    assert [json.loads(text)["name"] for text in texts if "/tmp" in text or "/work" in text or "/home" in text] == []
