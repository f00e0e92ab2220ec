"""Runs whose recipe corrects weights and biases after calibration."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from engines.run_folder import RunFolder
from faq_deploy.stored_net import load_net
from tests.e2e.conftest import Call

_COMPENSATED = ("--set", "calibration.weight_rounding=compensated")
_FACTS = ("float_top1", "calibrated_top1")


@pytest.fixture(scope="module")
def runs(call: Call, float_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The digits net in 4 bits, untrained: rounded to nearest, and compensated."""
    folder = tmp_path_factory.mktemp("corrected")
    for name, options in (("nearest", ()), ("compensated", _COMPENSATED)):
        result = call(
            *("quantize", "builtin:digits-resnet", "--weights", float_weights, "--data", "digits", "--bits", 4),
            *("--epochs", 0, "-o", folder / name, *options),
        )
        assert result.exit_code == 0, result.output
    return folder / "nearest", folder / "compensated"


def test_the_float_net_of_a_corrected_run_is_the_float_net(runs: tuple[Path, Path]) -> None:
    nearest, compensated = (load_net(run / "float.pt").net.state_dict() for run in runs)
    assert all(torch.equal(value, compensated[key]) for key, value in nearest.items() if "exponent" not in key)
    tops = [RunFolder(run).manifest().steps["quantize"].facts["float_top1"] for run in runs]
    assert tops[0] == tops[1]


def test_what_was_corrected_is_what_gets_exported(runs: tuple[Path, Path], call: Call) -> None:
    _, run = runs
    corrected, kept = (load_net(run / name).net for name in ("corrected.pt", "quantized.pt"))
    for name, layer in kept.weighted().items():
        assert torch.equal(layer.weight_codes(), corrected.weighted()[name].weight_codes())
        assert torch.equal(layer.constants()[0], layer.folded()[0])  # the weights lie on the grid
    result = call("export", run)
    assert result.exit_code == 0, result.output


def test_training_begins_with_the_corrected_weights_and_a_new_run_forgets_them(
    runs: tuple[Path, Path], call: Call, float_weights: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(runs[1], tmp_path / "run"))
    before = RunFolder(run).manifest().steps["quantize"].facts
    result = call("quantize", "--resume", "-o", run)
    assert result.exit_code == 0, result.output
    assert {key: RunFolder(run).manifest().steps["quantize"].facts[key] for key in _FACTS} == {
        key: before[key] for key in _FACTS
    }
    result = call("quantize", "--resume", "-o", run, "--epochs", 1)
    assert result.exit_code == 0, result.output
    again = call(
        *("quantize", "builtin:digits-resnet", "--weights", float_weights, "--data", "digits"),
        *("--epochs", 0, "-o", run, "--force"),
    )
    assert again.exit_code == 0, again.output
    assert not (run / "corrected.pt").exists()
