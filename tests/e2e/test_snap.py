"""`snap` through the command line: what it prints, writes and returns."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from tests.e2e.conftest import Call
from tests.onnx_nets import saved
from tests.peer_models import PEER_FILES, peer_model

SIZE = ("--mean", "0.5", "--std", "0.25")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten noise pictures of 8x8 pixels in each of five class folders."""
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for label in range(5):
        (folder / str(label)).mkdir()
        for index in range(10):
            pixels = rng.integers(0, 256, (8, 8, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / str(label) / f"{index}.png")
    return folder


def test_snap_says_what_moved_what_stayed_and_what_it_costs(call: Call, photos: Path, tmp_path: Path) -> None:
    output = tmp_path / "po2.onnx"
    result = call("snap", PEER_FILES / "brevitas.onnx", "-o", output, "--data", photos, *SIZE)
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert (
        lines[0] == "moved to powers of two: 5 activations, 3 weights, 2 biases; 0 quantized tensors lay there already"
    )
    assert lines[1] == "weights: rounded a second time, since the file holds codes alone"
    assert "left as it is, /head/Gemm: its input or its weight lies on no one grid" in result.output
    assert f"images: {photos}, no resize, center crop 8x8, RGB, mean 0.5,0.5,0.5, std 0.25,0.25,0.25" in lines
    assert "the exact McNemar test gives p = " in result.output
    assert lines[-1] == f"{output}, for target tensorrt: 2 warnings."
    onnx.checker.check_model(onnx.load(output), full_check=True)


def test_json_holds_every_tensor_and_the_counts_add_up(call: Call, photos: Path, tmp_path: Path) -> None:
    source, output = saved(peer_model("unsigned", tmp_path), tmp_path), tmp_path / "po2.onnx"
    result = call("snap", source, "-o", output, "--data", photos, *SIZE, "--json")
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert (facts["exit_code"], facts["target"], facts["snapped_file"]) == (0, "tensorrt", str(output))
    assert (len(facts["activations"]), len(facts["weights"]), len(facts["biases"])) == (10, 5, 3)
    assert sorted(facts["written_out"].values()) == ["Relu", "Relu"]
    assert {finding["level"] for finding in facts["findings"]} <= {"warning", "info"}
    accuracy = facts["accuracy"]
    pairs = accuracy["pairs"]
    assert accuracy["images"] == pairs["images"] == 50
    assert accuracy["before"] - accuracy["after"] == pytest.approx(100 * (pairs["lost"] - pairs["gained"]) / 50)
    assert pairs["flips"] >= pairs["lost"] + pairs["gained"]
    low, high = accuracy["before_interval"]
    assert low < accuracy["before"] < high


def test_a_drop_over_the_limit_fails_and_the_file_is_there(call: Call, photos: Path, tmp_path: Path) -> None:
    output = tmp_path / "po2.onnx"
    given = ("snap", PEER_FILES / "modelopt.onnx", "-o", output, "--data", photos, *SIZE)
    assert call(*given, "--max-drop", "100").exit_code == 0
    result = call(*given, "--max-drop", "-100.5")
    assert result.exit_code == 1
    assert "The limit is -100.5 points." in result.output
    assert output.is_file()


def test_wrong_data_is_refused_before_anything_is_written(call: Call, photos: Path, tmp_path: Path) -> None:
    output = tmp_path / "po2.onnx"
    result = call("snap", PEER_FILES / "modelopt.onnx", "-o", output, "--data", tmp_path / "nowhere")
    assert result.exit_code == 2
    assert "does not exist" in result.output
    assert not output.exists()
    result = call("snap", PEER_FILES / "modelopt.onnx", "-o", output, "--max-drop", "1")
    assert (result.exit_code, output.exists()) == (2, False)
    assert "--max-drop needs --data." in result.output


def test_folder_with_another_number_of_classes_is_refused(call: Call, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "few" / "0").mkdir(parents=True)
    (tmp_path / "few" / "0" / "0.png").write_bytes((photos / "0" / "0.png").read_bytes())
    result = call("snap", PEER_FILES / "modelopt.onnx", "-o", tmp_path / "o.onnx", "--data", tmp_path / "few", *SIZE)
    assert result.exit_code == 2
    assert "The file has 5 classes, but" in result.output
