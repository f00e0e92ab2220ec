"""`faq-deploy inspect`, as a user calls it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.e2e.conftest import Call
from tests.e2e.refusals import refusal


def test_inspect_prints_every_layer_and_the_share_in_int8(call: Call) -> None:
    result = call("inspect", "builtin:digits-resnet")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    (stem,) = (line for line in lines if line.startswith("conv1"))
    assert stem.split()[:7] == ["conv1", "conv", "16x1x3x3", "8", "s8", "u7", "9,216"]
    assert any("100.00 % in INT8" in line for line in lines)
    assert "adds in INT8: 3 of 3; concats in INT8: 0 of 0" in lines
    assert result.stderr == ""


def test_inspect_gives_the_same_as_json_and_writes_nothing(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = call("inspect", "builtin:digits-resnet", "--bits", 4, "--skip", "layer1.0.conv1", "--json")
    found = json.loads(result.stdout)
    bits = {row["name"]: row["weight_bits"] for row in found["layers"]}
    assert (bits["conv1"], bits["layer1_0_conv1"], bits["layer1_0_conv2"], bits["linear"]) == (8, None, 4, 8)
    assert found["macs"]["all"] - found["macs"]["int8"] == 147_456
    assert list(tmp_path.iterdir()) == []


def test_inspect_takes_the_size_of_the_images(call: Call) -> None:
    result = call("inspect", "builtin:resnet18-cifar-w16", "--input-size", "64x32", "--json")
    assert json.loads(result.stdout)["input_shape"] == [3, 64, 32]


@pytest.mark.parametrize("size", ["0", "8x", "large", "-8"])
def test_a_size_that_is_none_is_refused(call: Call, size: str) -> None:
    assert f"--input-size {size} is not a size" in refusal(
        call("inspect", "builtin:digits-resnet", "--input-size", size)
    )


def test_a_part_that_cannot_be_quantized_is_refused_with_its_line(call: Call, tmp_path: Path) -> None:
    lines = [
        "import torch",
        "class Net(torch.nn.Module):",
        "    def __init__(self):",
        "        super().__init__()",
        "        self.conv = torch.nn.Conv2d(3, 4, 3)",
        "    def forward(self, x):",
        "        return torch.sort(self.conv(x)).values.mean((2, 3))",
    ]
    (tmp_path / "net.py").write_text("\n".join(lines))
    text = refusal(call("inspect", f"{tmp_path}/net.py:Net", "--input-size", "8"))
    assert "sort is not supported" in text
    assert "net.py:7" in text
