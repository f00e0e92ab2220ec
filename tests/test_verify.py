"""`verify`: 0 for the same integers; anything else is named: the weight, the layer, the channel, the machine."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from engines import invariance, verify
from engines.build_options import BuildOptions
from engines.errors import CannotRunHere, InputError
from engines.first_difference import Difference, layer_before
from engines.host import Host
from engines.opened_bundle import opened
from engines.ort import OrtRunner
from engines.profile import Profile
from engines.qdq_graph import load_model, read_graph
from engines.runner import FloatArray, Runner
from engines.verify import Verification, verify_bundle
from engines.verify_text import sentences
from tests.bundles import bundle_of, resigned
from tests.engine_nets import VERSION, classifier

OPTIONS = BuildOptions(profile=Profile(1, 2, 4))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bundle_of(tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="module")
def with_float(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A net whose classifier was left in float."""
    return bundle_of(tmp_path_factory.mktemp("float"), gemm=True)


def verified(bundle: Path) -> Verification:
    return verify_bundle(bundle, None, ["onnxruntime"], OPTIONS, version=VERSION)


def with_weight(bundle: Path, tmp_path: Path, name: str, place: tuple[int, ...]) -> Path:
    """The bundle with one code of its ONNX file changed, and a manifest that says that all is well."""
    with opened(bundle) as found:
        model = onnx.load(found.model)
    tensor = next(t for t in model.graph.initializer if t.name == name)
    values = numpy_helper.to_array(tensor).copy()
    values[place] = -127 if values[place] > 0 else 127
    tensor.CopyFrom(numpy_helper.from_array(values, name))
    return resigned(bundle, tmp_path / "evil.tgz", tmp_path / "unpacked", {"model.onnx": model.SerializeToString()})


def with_expected(bundle: Path, tmp_path: Path, change: Callable[[dict[str, np.ndarray]], None]) -> Path:
    """The bundle with other expectations, signed again."""
    with opened(bundle) as found, np.load(found.folder / "expected.npz") as stored:
        arrays = {name: stored[name].copy() for name in stored.files}
    change(arrays)
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)
    return resigned(bundle, tmp_path / "other.tgz", tmp_path / "unpacked", {"expected.npz": stream.getvalue()})


def test_same_integers_are_exit_code_0(bundle: Path) -> None:
    found = verified(bundle)
    codes = 5 * (3 * 16 * 16 + 8)
    assert found.exit_code == 0
    assert found.file == verify.FileCheck(True, 5, codes, None, None)
    (engine,) = found.engines
    assert (engine.name, engine.status, engine.images, engine.codes) == ("onnxruntime", "identical", 5, codes)
    assert engine.logits is not None
    assert (engine.logits.differing, engine.logits.flips, engine.first, engine.batch) == (0, 0, None, "")
    assert (found.gpu, found.kept, found.target, found.run) == (None, None, "tensorrt", "r18")


def test_it_says_that_no_gpu_was_used(bundle: Path) -> None:
    said = sentences(verified(bundle))
    assert f"The file, by the integer reference: {5 * 776:,} codes of 5 of 5 samples, all as expected." in said
    assert "onnxruntime: 5 samples ran, every logit as expected, to the last bit." in said
    assert "No GPU was used: this says what onnxruntime computes, and nothing about TensorRT." in said


def test_changed_weight_code_is_named_with_its_layer(bundle: Path, tmp_path: Path) -> None:
    found = verified(with_weight(bundle, tmp_path, "conv.weight_codes", (3, 1, 1, 1)))
    assert found.exit_code == 1
    assert found.file.weights == Difference("conv.weight_codes", "conv", "stem.conv")
    first = found.file.first
    assert first is not None
    assert (first.tensor, first.layer, first.module, first.image) == ("p.codes", "conv", "stem.conv", 0)
    assert (first.count, first.compared, first.channel) == (1, 8, 3)
    assert found.engines[0].first == first
    said = sentences(found)
    assert "The file: conv (module stem.conv): conv.weight_codes is not the one that was bundled." in said
    assert any("conv (module stem.conv): p.codes differs from image 0 on; 1 of its 8 codes" in line for line in said)


def test_changed_classifier_is_named_by_its_logits(bundle: Path, tmp_path: Path) -> None:
    found = verified(with_weight(bundle, tmp_path, "head.weight_codes", (4, 2, 0, 0)))
    assert (found.exit_code, found.file.weights) == (1, Difference("head.weight_codes", "head", "classifier"))
    first = found.file.first
    assert first is not None
    assert (first.tensor, first.layer, first.module) == ("logits", "head", "classifier")


def test_changed_weight_that_no_sample_shows_is_found_too(bundle: Path, tmp_path: Path) -> None:
    found = verified(with_weight(bundle, tmp_path, "head.weight", (0, 0)))
    assert (found.file.first, found.engines[0].status) == (None, "identical")
    assert found.file.weights == Difference("head.weight", "head.weight")
    assert found.exit_code == 1


def test_first_layer_is_the_first_in_the_graph_not_in_the_images(bundle: Path, tmp_path: Path) -> None:
    def change(arrays: dict[str, np.ndarray]) -> None:
        arrays["codes"][1, 1, 0] ^= 1  # image 1 in the second tensor
        arrays["codes"][4, 0, 0] ^= 1  # image 4 in the first one

    first = verified(with_expected(bundle, tmp_path, change)).file.first
    assert first is not None
    assert (first.tensor, first.image, first.count) == ("x.codes", 4, None)


def test_images_that_are_normalized_otherwise_are_exit_code_1(bundle: Path, tmp_path: Path) -> None:
    def change(arrays: dict[str, np.ndarray]) -> None:
        arrays["inputs"][2, 0] ^= 1

    found = verified(with_expected(bundle, tmp_path, change))
    assert (found.exit_code, found.file.inputs_equal, found.engines[0].status) == (1, False, "identical")
    assert sentences(found)[0].startswith("Preprocessing: ")


def test_reference_stops_when_its_time_is_up(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "_REFERENCE_SECONDS", 0.0)
    found = verified(bundle)
    assert (found.exit_code, found.file.images) == (0, 1)
    assert "The file, by the integer reference: 776 codes of 1 of 5 samples, all as expected." in sentences(found)


class _Off:
    """An engine whose logits of class 0 are off by a little."""

    name = "off"

    def __init__(self, path: Path, by: float) -> None:
        self._runner, self._by = OrtRunner(path), np.float32(by)

    def __call__(self, batch: FloatArray) -> FloatArray:
        logits = self._runner(batch)
        logits[:, 0] += self._by
        return logits

    def close(self) -> None:
        self._runner.close()


def engine_off_by(by: float) -> Callable[[Path, str | None], Runner]:
    return lambda folder, sha256: _Off(folder / "model.onnx", by)


def test_engine_that_is_off_by_a_bit_is_exit_code_1(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "open_engine", engine_off_by(2.0**-10))
    found = verified(bundle)
    (engine,) = found.engines
    assert (found.exit_code, found.file.first, engine.status) == (1, None, "differs")
    assert engine.logits is not None
    assert (engine.logits.differing, engine.logits.largest_difference) == (5, 2.0**-10)
    assert "onnxruntime: 5 samples ran, 5 logits differ (by up to 0.000976562), 0 predictions flip." in sentences(found)


def test_float_parts_are_reported_and_flips_are_judged(with_float: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "open_engine", engine_off_by(2.0**-10))
    found = verified(with_float)
    assert (found.float_parts, found.engines[0].status, found.exit_code) == (True, "reported", 0)
    assert any("reported and not judged" in line for line in sentences(found))
    monkeypatch.setattr(verify, "open_engine", engine_off_by(1e6))
    found = verified(with_float)
    assert (found.engines[0].status, found.exit_code) == ("differs", 1)


def test_image_that_depends_on_its_batch_is_exit_code_1(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[list[int]] = []

    def dependent(runner: Runner, images: FloatArray, wanted: list[int]) -> str:
        sizes.append(list(wanted))
        return "image 2 differs between batches of 1 and 4"

    monkeypatch.setattr(invariance, "batch_dependence", dependent)
    found = verified(bundle)
    assert (found.exit_code, found.engines[0].batch) == (1, "image 2 differs between batches of 1 and 4.")
    assert sizes == [[1, 2, 4]]


def test_gpu_that_is_not_there_is_exit_code_3(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "this_host", lambda: Host(None, {}))
    found = verify_bundle(bundle, None, ["tensorrt-rtx"], OPTIONS, version=VERSION)
    assert (found.exit_code, [e.status for e in found.engines], found.file.images) == (3, ["unavailable"], 5)
    assert "tensorrt-rtx can't run here: tensorrt-rtx needs an NVIDIA GPU." in sentences(found)


def test_engine_that_does_not_open_here_is_exit_code_3(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(*_: object) -> Runner:
        raise CannotRunHere("no driver.", "install one.")

    monkeypatch.setattr(verify, "open_engine", closed)
    found = verified(bundle)
    assert (found.exit_code, found.engines[0].status, found.engines[0].reason) == (3, "unavailable", "no driver.")


def test_difference_weighs_more_than_a_missing_gpu(bundle: Path) -> None:
    found = verified(bundle)
    missing = replace(found.engines[0], status="unavailable")
    differs = replace(found.engines[0], status="differs")
    assert replace(found, engines=(found.engines[0], missing)).exit_code == 3
    assert replace(found, engines=(differs, missing)).exit_code == 1


def test_engines_are_kept_where_asked(bundle: Path, tmp_path: Path) -> None:
    found = verify_bundle(bundle, tmp_path / "engines", ["onnxruntime"], OPTIONS, version=VERSION)
    assert (tmp_path / "engines" / "onnxruntime" / "manifest.json").is_file()
    assert found.kept == str(tmp_path / "engines")
    assert f"Engines are in {tmp_path / 'engines'}" in sentences(found)


@pytest.mark.parametrize("error", [KeyboardInterrupt, InputError("x", "y")])
def test_nothing_stays_in_the_temporary_folder(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException | type[BaseException]
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    verified(bundle)
    assert list(tmp_path.iterdir()) == []

    def stopped(*_: object, **__: object) -> None:
        assert list(tmp_path.iterdir()) != []
        raise error

    monkeypatch.setattr(verify, "build_onnx_file", stopped)
    with pytest.raises((KeyboardInterrupt, InputError)):
        verified(bundle)
    assert list(tmp_path.iterdir()) == []


def test_layer_of_a_tensor_is_the_nearest_one_with_weights(tmp_path: Path) -> None:
    graph = read_graph(load_model(classifier(tmp_path / "m.onnx")))
    assert (layer_before(graph, "p.codes"), layer_before(graph, "logits")) == ("conv", "head")
    assert layer_before(graph, "x.codes") == "x.codes"
