"""Names of a file that are not the model's come with the first few of them, the likely cause and a remedy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

import cli
from faq_deploy.models import load_model
from faq_deploy.weight_names import misfit

OWN = """\
from torch import nn


def net(num_classes=3):
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 6 * 6, num_classes))
"""
CASES: list[tuple[Callable[[dict[str, Tensor]], dict[str, Tensor]], str, str]] = [
    (
        lambda state: {f"backbone.{key}": value for key, value in state.items()},
        "in the file 'backbone.' stands before the model's names",
        "k.removeprefix('backbone.')",
    ),
    (lambda state: dict(list(state.items())[:-2]), "was not saved", "train the rest with `faq-deploy train`"),
    (lambda state: {"other.weight": torch.zeros(2, 2)}, "no name is the same in both", "name the model"),
    (
        lambda state: state | {"signature": torch.zeros(6)},
        "it is the state of a prepared model, not of a float one",
        "the weights of the float model",
    ),
]


@pytest.mark.parametrize(("change", "cause", "remedy"), CASES)
@pytest.mark.parametrize("model", ["builtin:digits-resnet", "torchvision:squeezenet1_1", "own.py:net"])
def test_command_line_names_the_file_the_cause_and_the_remedy(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    model: str,
    change: Callable[[dict[str, Tensor]], dict[str, Tensor]],
    cause: str,
    remedy: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own.py").write_text(OWN)
    torch.save(change(load_model(model, "random").module.state_dict()), "mine.pth")
    done = CliRunner().invoke(cli.main, ["inspect", model, "--weights", "mine.pth", "--input-size", "8"])
    what, note = done.stderr.splitlines()
    assert done.exit_code == 2
    assert what.startswith("Error: mine.pth does not fit the model: ")
    assert cause in what
    assert what.endswith("[weights-fit]")
    assert note.startswith("Note: ")
    assert remedy in note


def test_a_model_that_wraps_what_was_saved_is_told() -> None:
    inner = nn.Sequential(nn.Conv2d(1, 1, 1)).state_dict()
    wanted = [f"net.{key}" for key in inner]
    found = misfit(wanted, inner, missing=wanted, unknown=list(inner))
    assert found.what.endswith("in the model 'net.' stands before the file's names")
    assert "{'net.' + k: v for k, v in state.items()}" in found.remedy
