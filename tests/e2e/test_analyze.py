"""`faq-deploy analyze` on a digits run: what it prints is what it writes, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import Call
from tests.e2e.refusals import contents, refusal

pytestmark = pytest.mark.xdist_group("digits")

INNER = [f"layer{block}_0_conv{number}" for block in (1, 2, 3) for number in (1, 2)]


def found(call: Call, run: Path, what: str, *options: object) -> dict[str, Any]:
    """The result of one analysis, which is also in its file, beside a picture; nothing else changed."""
    before = contents(run)
    result = call("analyze", what, run, "--json", *options)
    assert result.exit_code == 0, result.output
    after = contents(run)
    assert {name for name in after if after[name] != before.get(name)} == {
        f"analysis/{what}.json",
        f"analysis/{what}.svg",
        "manifest.json",
    }
    facts: dict[str, Any] = json.loads(result.stdout)
    assert json.loads(after[f"analysis/{what}.json"]) == facts
    return facts


def test_noise_grows_as_the_weights_get_narrower(call: Call, run_copy: Path) -> None:
    options = ("--bits", 3, "--bits", 8, "--batches", 2, "--steps", 12, "--batch-size", 32)
    facts = found(call, run_copy, "noise", *options)
    wide, narrow = (facts["gradient_cosine"][bits] for bits in ("8", "3"))
    assert all(wide[layer] > narrow[layer] for layer in INNER)
    steps = facts["step_cosine"]
    assert list(steps) == ["8", "3"]
    # so few steps of so small a net do not tell widths apart: their order is another CPU's
    assert all(steps[bits].keys() == wide.keys() for bits in steps)
    assert all(0 < abs(steps[bits][layer]) < 0.5 for bits in steps for layer in INNER)
    assert set(INNER) < set(facts["inner_layers"])
    assert facts["rules"] == {"8": "mse", "3": "mse"}
    assert (facts["batch_size"], facts["steps"]) == (32, 12)


def test_similarity_of_a_fine_tuned_run(call: Call, run_copy: Path) -> None:
    facts = found(call, run_copy, "similarity")
    layers = facts["layers"]
    assert {"conv1", *INNER, "linear"} <= set(layers)
    assert all(0.99 < cosine <= 1.0 for cosine in layers.values())
    assert facts["network"] == facts["epochs"]["1"]
    assert facts["quantized_network"] < facts["network"]


def test_exponents_and_codes_of_a_run(call: Call, run_copy: Path) -> None:
    facts = found(call, run_copy, "exponents", "--images", 20)
    channels = 3 * 16 + 3 * 24 + 3 * 48 + 10
    assert sum(facts["weight_exponents"].values()) == channels == 274
    assert len(facts["weights"]) == 10
    assert facts["images"] == 20
    assert list(facts["flips"]) == list(facts["steps"]) == ["1"]


def test_tables_for_people(call: Call, run_copy: Path) -> None:
    noise = call("analyze", "noise", run_copy, "--bits", 4, "--batches", 1, "--steps", 0, "--batch-size", 16)
    assert "gradient, quantized against float weights, cosine (mean of 1 batch):" in noise.stdout
    assert "conv1 *" in noise.stdout
    assert "step called for" not in noise.stdout
    assert noise.stderr.splitlines()[-1] == "comparing gradients on 1 batch ..."
    similarity = call("analyze", "similarity", run_copy)
    assert "all neurons" in similarity.stdout
    exponents = call("analyze", "exponents", run_copy, "--images", 1)
    assert "activations of 1 validation image " in exponents.stdout


def test_run_that_was_only_calibrated(call: Call, float_weights: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = ("quantize", "builtin:digits-resnet", "--weights", float_weights, "--data", "digits", "--epochs", 0)
    assert call(*command, "-o", run).exit_code == 0
    text = refusal(call("analyze", "similarity", run))
    assert f"{run} was calibrated and not fine-tuned" in text
    assert f"`faq-deploy quantize --resume --epochs N -o {run}`" in text
    assert call("analyze", "exponents", run, "--images", 4).exit_code == 0
    noise = call("analyze", "noise", run, "--bits", 4, "--batches", 1, "--steps", 2, "--batch-size", 16)
    assert noise.exit_code == 0


@pytest.mark.parametrize("what", ["noise", "similarity", "exponents"])
def test_folder_without_a_run_is_refused(call: Call, tmp_path: Path, what: str) -> None:
    assert f"{tmp_path} holds no run" in refusal(call("analyze", what, tmp_path))
    assert contents(tmp_path) == {}


@pytest.mark.parametrize(("what", "file"), [("noise", "float.pt"), ("similarity", "quantized.pt")])
def test_changed_file_is_refused(call: Call, run_copy: Path, what: str, file: str) -> None:
    (run_copy / file).write_bytes(b"something else")
    assert f"{run_copy / file} was changed after `faq-deploy quantize` wrote it" in refusal(
        call("analyze", what, run_copy)
    )
    assert not (run_copy / "analysis").exists()


def test_width_that_cannot_be_is_refused(call: Call, run_copy: Path) -> None:
    assert "9 is not in the range 2<=x<=8" in refusal(call("analyze", "noise", run_copy, "--bits", 9))


def test_lost_metrics_are_warned_of(call: Call, run_copy: Path) -> None:
    (run_copy / "metrics.jsonl").unlink()
    result = call("analyze", "similarity", run_copy)
    assert result.exit_code == 0
    assert (
        "metrics.jsonl is missing although the manifest lists it. There is nothing to say of the epochs."
        in result.stderr
    )
