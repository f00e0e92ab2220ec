"""Options that choose among layers and outputs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from faq_deploy.stored_net import load_net
from tests.e2e.conftest import Call
from tests.e2e.photos import quantize_photos
from tests.e2e.refusals import refusal

pytestmark = [pytest.mark.xdist_group("digits"), pytest.mark.filterwarnings("always::UserWarning")]


def test_model_with_several_outputs_keeps_one_and_says_which(
    call: Call, nets: Path, photos: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    result = quantize_photos(call, f"{nets}:two", photos, run)
    assert result.exit_code == 0, result.output
    assert "returns 0, 1: 0 is quantized, the rest is left out (--model-output)" in result.output
    assert call("export", run).exit_code == 0
    error, note = refusal(
        quantize_photos(call, f"{nets}:two", photos, tmp_path / "other", "--model-output", "1")
    ).splitlines()
    assert "gives an output of shape 3x16x16 per image, not logits" in error
    assert "--model-output" in note


def test_layer_kept_in_float_is_said_at_export(call: Call, nets: Path, photos: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert quantize_photos(call, f"{nets}:net", photos, run, "--skip", "lin*").exit_code == 0
    result = call("export", run)
    assert result.exit_code == 0, result.output
    assert "parts of the net stay in float" in result.output
    assert load_net(run / "quantized.pt").net.is_float("linear")


def test_bits_by_pattern_reach_the_run(call: Call, nets: Path, photos: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert quantize_photos(call, f"{nets}:net", photos, run, "--bits", "8", "--bits", "conv=5").exit_code == 0
    net = load_net(run / "quantized.pt").net
    assert {name: layer.grid.bits for name, layer in net.weighted().items()} == {"conv": 5, "linear": 8}
    result = call("export", run, "--json")
    agreements = json.loads(result.stdout)["agreement"]
    assert [a["differing"] for a in agreements] == [0, 0]


@pytest.mark.parametrize(
    ("options", "what"),
    [
        (("--bits", "6"), "--bits 6 is not a precision"),
        (("--bits", "conv="), "--bits conv= is not a precision"),
        (("--bits", "conv=9"), "should be less than or equal to 8"),
        (("--bits", "convv=5"), "--bits convv: nothing in the model has that name"),
        (("--leaf", "head"), "--leaf head: nothing in the model has that name"),
        (("--model-output", "logits"), "the model has no output 'logits'"),
    ],
)
def test_choice_that_fits_nothing_is_refused(
    call: Call, nets: Path, photos: Path, tmp_path: Path, options: tuple[str, ...], what: str
) -> None:
    error, _ = refusal(quantize_photos(call, f"{nets}:net", photos, tmp_path / "run", *options)).splitlines()
    assert what in error
    assert not (tmp_path / "run").exists()
