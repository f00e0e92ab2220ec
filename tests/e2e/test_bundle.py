"""A run becomes a bundle, and what the box says of it: through the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from PIL import Image

from engines.host import this_host
from engines.opened_bundle import opened
from tests.bundles import resigned
from tests.e2e.conftest import Call, Program
from tests.e2e.refusals import contents, refusal

pytestmark = pytest.mark.xdist_group("digits")


@pytest.fixture(scope="module")
def bundle(call: Call, exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundle") / "digits.tgz"
    result = call("bundle", exported, "-o", path)
    assert result.exit_code == 0, result.output
    assert "32 samples with expected codes" in result.stdout
    assert "faq-deploy verify digits.tgz" in result.stdout
    return path


@pytest.fixture(scope="module")
def photos(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The samples as a labelled folder, one folder a class."""
    root = tmp_path_factory.mktemp("photos")
    with opened(bundle) as found:
        for index, (pixels, label) in enumerate(zip(found.samples.pixels, found.samples.labels, strict=True)):
            folder = root / found.classes[int(label)]
            folder.mkdir(exist_ok=True)
            Image.fromarray(pixels[:, :, 0]).save(folder / f"{index}.png")
    return root


def changed_weight(bundle: Path, folder: Path, layer: str) -> Path:
    """The bundle with one weight code of a layer changed, and the manifest signed again."""
    with opened(bundle) as found:
        model = onnx.load(found.model)
        names = {name for node in found.graph.nodes if node.name == layer for name in node.input}
        codes = {node.input[0] for node in found.graph.nodes if names.intersection(node.output)}
    tensor = next(t for t in model.graph.initializer if t.name in codes and t.data_type == onnx.TensorProto.INT8)
    values = numpy_helper.to_array(tensor).copy()
    place = np.unravel_index(int(np.abs(values.astype(int)).argmax()), values.shape)
    values[place] = -values[place]
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    return resigned(bundle, folder / "evil.tgz", folder / "unpacked", {"model.onnx": model.SerializeToString()})


def weighted_layers(bundle: Path) -> list[str]:
    with opened(bundle) as found:
        return [node.name for node in found.graph.nodes if node.op_type in {"Conv", "Gemm"}]


def test_bundle_verifies_with_exit_code_0(call: Call, bundle: Path) -> None:
    result = call("verify", bundle, "--runtime", "onnxruntime")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == "digits: this machine computes the same integers."
    assert "codes of 32 of 32 samples, all as expected." in result.stdout
    assert "No GPU was used" in result.stdout


def test_verify_is_told_to_a_program_as_json(program: Program, bundle: Path) -> None:
    done = program("verify", bundle, "--runtime", "onnxruntime", "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert (said["exit_code"], said["gpu"], said["file"]["first"], said["file"]["images"]) == (0, None, None, 32)
    (engine,) = said["engines"]
    assert (engine["status"], engine["logits"]["differing"], engine["first"]) == ("identical", 0, None)
    assert engine["codes"] == said["file"]["codes"] > 100_000


def test_bundling_again_gives_the_same_bytes(call: Call, exported: Path, bundle: Path, tmp_path: Path) -> None:
    result = call("bundle", exported, "-o", tmp_path / "again.tgz", "--json")
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    assert (tmp_path / "again.tgz").read_bytes() == bundle.read_bytes()
    assert said["bytes"] == bundle.stat().st_size
    assert said["manifest"]["certificate"]["sums"] >= len(weighted_layers(bundle))


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_flipped_byte_is_exit_code_2(call: Call, bundle: Path, tmp_path: Path, share: float) -> None:
    data = bytearray(bundle.read_bytes())
    data[int(share * len(data))] ^= 0x40
    bad = tmp_path / "bad.tgz"
    bad.write_bytes(data)
    before = contents(tmp_path)
    assert str(bad) in refusal(call("verify", bad))
    assert str(bad) in refusal(call("eval", "--bundle", bad))
    assert contents(tmp_path) == before


@pytest.mark.parametrize("number", [0, 3, -1])
def test_changed_weight_is_exit_code_1_and_names_the_layer(
    call: Call, bundle: Path, tmp_path: Path, number: int
) -> None:
    layer = weighted_layers(bundle)[number]
    evil = changed_weight(bundle, tmp_path, layer)
    result = call("verify", evil, "--runtime", "onnxruntime", "--json")
    assert result.exit_code == 1, result.output
    said = json.loads(result.stdout)
    assert said["file"]["weights"]["layer"] == layer
    with opened(bundle) as found:
        assert said["file"]["weights"]["module"] == found.modules[layer] != ""
    assert said["file"]["first"]["layer"] == layer
    assert said["engines"][0]["first"]["layer"] == layer
    text = call("verify", evil, "--runtime", "onnxruntime").stdout
    assert f"The file: {layer}" in text
    assert text.splitlines()[-1] == "digits: this machine does not compute what the bundle expects."


@pytest.mark.skipif(
    "tensorrt" in this_host().versions, reason="TensorRT is installed here, so that it can be asked for"
)
def test_runtime_that_is_not_here_is_exit_code_3(call: Call, bundle: Path) -> None:
    result = call("verify", bundle, "--runtime", "tensorrt")
    assert result.exit_code == 3, result.output
    assert "tensorrt can't run here" in result.stdout
    assert "codes of 32 of 32 samples, all as expected." in result.stdout


def test_engine_is_kept_where_asked(call: Call, bundle: Path, tmp_path: Path) -> None:
    result = call("verify", bundle, "--runtime", "onnxruntime", "-o", tmp_path / "engines")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "engines" / "onnxruntime" / "model.onnx").is_file()
    (tmp_path / "file").touch()
    assert "is a file" in refusal(call("verify", bundle, "-o", tmp_path / "file"))


def test_eval_judges_the_engine_on_a_folder(call: Call, bundle: Path, photos: Path) -> None:
    result = call("eval", "--bundle", bundle, "--data", photos, "--engine", "onnxruntime", "--json")
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    (engine,) = said["engines"]
    assert (said["images"], said["data"], engine["parity"]["flips"], engine["parity"]["differing"]) == (
        *(32, str(photos), 0, 0),
    )
    assert engine["top1"] == said["top1"] > 80
    reference = said["reference"]
    assert (reference["logits"]["images"], reference["logits"]["differing"], reference["differing"]) == (32, 0, 0)
    assert reference["codes"] > 100_000


def test_eval_runs_the_reference_on_as_many_images_as_it_is_told(call: Call, bundle: Path) -> None:
    counts = ("--reference-images", 5, "--code-images", 0)
    result = call("eval", "--bundle", bundle, "--engine", "onnxruntime", *counts)
    assert result.exit_code == 0, result.output
    said = "integer reference: 5 images, 0 flips, 0 logits differ (by up to 0), 0 of 0 codes differ"
    assert said in result.stdout.splitlines()


def test_eval_takes_the_validation_folder_of_a_split(call: Call, bundle: Path, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "val").symlink_to(photos)
    result = call("eval", "--bundle", bundle, "--data", tmp_path, "--engine", "onnxruntime")
    assert result.exit_code == 0, result.output
    assert f"32 images of {tmp_path / 'val'}" in result.stdout


def test_eval_without_data_takes_the_samples_and_says_so(call: Call, bundle: Path) -> None:
    result = call("eval", "--bundle", bundle, "--engine", "onnxruntime")
    assert result.exit_code == 0, result.output
    assert "pass --data DIR for an accuracy that says something" in result.stdout
    assert result.stdout.splitlines()[-1] == "All gates passed."


def test_eval_breaks_a_gate_with_exit_code_1(call: Call, bundle: Path) -> None:
    result = call("eval", "--bundle", bundle, "--engine", "onnxruntime", "--max-drop", -1)
    assert result.exit_code == 1, result.output
    assert "onnxruntime loses 0.00 points of top-1 against the oracle, and the limit is -1." in result.stdout


@pytest.mark.skipif(
    "tensorrt" in this_host().versions, reason="TensorRT is installed here, so that it can be asked for"
)
def test_eval_of_an_engine_that_is_not_here_is_exit_code_3(call: Call, bundle: Path) -> None:
    result = call("eval", "--bundle", bundle, "--engine", "tensorrt")
    assert result.exit_code == 3, result.output
    assert "tensorrt: skipped: " in result.stdout
    assert call("eval", "--bundle", bundle, "--engine", "tensorrt", "--allow-skip").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--engine", "r18"), "has no engine r18"),
        (("--max-float-drop", "1"), "needs the float net"),
        (("--max-fall", "1"), "needs what quantize measured"),
        (("--junit", "junit.xml"), "--junit goes with a run"),
        (("--data", "nowhere"), "The data folder nowhere does not exist"),
    ],
)
def test_eval_refuses_what_a_bundle_can_not_give(
    call: Call, bundle: Path, arguments: tuple[str, ...], said: str
) -> None:
    assert said in refusal(call("eval", "--bundle", bundle, *arguments))


def test_eval_takes_a_run_or_a_bundle(call: Call, exported: Path, bundle: Path) -> None:
    assert "can't be judged at once" in refusal(call("eval", exported, "--bundle", bundle))


def test_triton_repository_comes_by_the_same_verb(call: Call, exported: Path, tmp_path: Path) -> None:
    result = call("bundle", exported, "--triton", "-o", tmp_path / "models", "--json")
    assert result.exit_code == 0, result.output
    model = Path(json.loads(result.stdout)["model"])
    assert (model.parent, model.name) == (tmp_path / "models", exported.name)
    assert (model / "1" / "model.onnx").read_bytes() == (exported / "model.onnx").read_bytes()
    assert (model / "labels.txt").read_text().split() == [str(digit) for digit in range(10)]
    assert f"Wrote {model}" in call("bundle", exported, "--triton", "-o", tmp_path / "models", "--force").stdout


def test_bundle_refuses_what_it_can_not_do(call: Call, exported: Path, bundle: Path, tmp_path: Path) -> None:
    before = bundle.read_bytes()
    assert "is there already" in refusal(call("bundle", exported, "-o", bundle))
    assert bundle.read_bytes() == before
    assert "--engine goes with --triton" in refusal(
        call("bundle", exported, "-o", tmp_path / "b.tgz", "--engine", "onnxruntime")
    )
    assert "holds no run" in refusal(call("bundle", tmp_path / "none", "-o", tmp_path / "b.tgz"))
    assert list(tmp_path.iterdir()) == []


def test_run_before_export_is_told_to_export(call: Call, make_run: Callable[..., Path], tmp_path: Path) -> None:
    run = make_run("--epochs", 0)
    said = refusal(call("bundle", run, "-o", tmp_path / "b.tgz"))
    assert f"faq-deploy export {run}" in said
