"""`bundle`: what is in the file, that it is the same every time, and what is refused before anything is written."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from engines.bundle import write_bundle
from engines.bundle_archive import extract
from engines.bundle_manifest import FORMAT, CertificateSummary
from engines.errors import InputError
from engines.onnx_metadata import holds_float_weights, metadata_of
from engines.opened_bundle import opened
from engines.ort import OrtRunner
from engines.preprocess import Preprocessing
from engines.qdq_graph import load_model, read_graph
from engines.run_folder import RunFolder
from tests.bundles import CLASSES, METADATA, run_with_samples
from tests.engine_nets import VERSION, classifier


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return run_with_samples(tmp_path / "r18")


def written(run: RunFolder, output: Path, *, force: bool = False) -> Path:
    return write_bundle(run, output, version=VERSION, force=force).path


def test_bundle_holds_what_a_box_needs(run: RunFolder, tmp_path: Path) -> None:
    made = write_bundle(run, tmp_path / "r18.tgz", version=VERSION)
    folder = tmp_path / "out"
    folder.mkdir()
    manifest = extract(made.path, folder)
    assert (made.bytes, made.manifest.files) == (made.path.stat().st_size, manifest.files)
    (wheel,) = [name for name in manifest.files if name.endswith("-py3-none-any.whl")]
    assert set(manifest.files) == {
        *("model.onnx", "build.json", "preprocessing.json", "classes.json", "expected.npz", "README.txt"),
        *("LICENSE-NOTE.txt", wheel, *(f"samples/{index:02d}.png" for index in range(5))),
    }
    assert (folder / "model.onnx").read_bytes() == (run / "model.onnx").read_bytes()
    assert json.loads((folder / "classes.json").read_text()) == CLASSES
    assert json.loads((folder / "preprocessing.json").read_text()) == METADATA["preprocessing"]
    recipe = json.loads((folder / "build.json").read_text())
    assert (recipe["batch"], set(recipe["runtimes"])) == ("1:8:32", {"tensorrt", "tensorrt-rtx", "onnxruntime"})
    readme = (folder / "README.txt").read_text()
    commands = [line.strip() for line in readme.splitlines() if line.startswith("    ")]
    assert commands[:3] == [f"tar xzf bundle.tgz {wheel}", f"pip install ./{wheel}", "faq-deploy verify bundle.tgz"]
    assert "Apache License 2.0" in (folder / "LICENSE-NOTE.txt").read_text()


def test_manifest_says_where_it_comes_from_and_what_is_proven(run: RunFolder, tmp_path: Path) -> None:
    manifest = write_bundle(run, tmp_path / "b.tgz", version=VERSION).manifest
    assert (manifest.format, manifest.faq_deploy, manifest.run, manifest.model) == (
        FORMAT,
        VERSION,
        "r18",
        "net.py:build",
    )
    assert (manifest.target, manifest.bits, manifest.images, manifest.float_parts) == ("tensorrt", 8, 5, False)
    assert manifest.onnx_sha256 == hashlib.sha256((run / "model.onnx").read_bytes()).hexdigest()
    assert manifest.certificate == CertificateSummary(sums=2, proven=1, largest=2.0, layer="head")
    assert manifest.versions.keys() == {"faq-deploy", "onnx", "onnxruntime", "numpy", "Pillow"}


def test_same_run_gives_the_same_bytes_under_any_name(run: RunFolder, tmp_path: Path) -> None:
    a, b = written(run, tmp_path / "a.tgz"), written(run, tmp_path / "b.tgz")
    assert a.read_bytes() == b.read_bytes()


def test_samples_are_what_the_run_kept(run: RunFolder, tmp_path: Path) -> None:
    with np.load(run / "samples.npz") as kept, opened(written(run, tmp_path / "b.tgz")) as bundle:
        assert np.array_equal(bundle.samples.pixels, kept["pixels"])
        assert bundle.samples.labels.tolist() == kept["labels"].tolist()
        images = bundle.images()
        assert np.array_equal(OrtRunner(run / "model.onnx", oracle=True)(images), bundle.samples.expected.logits)
        assert (bundle.classes, bundle.modules) == (tuple(CLASSES), METADATA["modules"])
        assert bundle.preprocessing == Preprocessing(crop=16, mean=(0.5,) * 3, std=(0.25,) * 3)


def test_weights_in_another_file_are_taken_in(run: RunFolder, tmp_path: Path) -> None:
    model = onnx.load(run / "model.onnx")
    onnx.save(model, run / "model.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    run.record("export", version=VERSION, inputs=["quantized.pt"], outputs=["model.onnx"])
    inside = onnx.load(run / "model.onnx", load_external_data=False)
    assert any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in inside.graph.initializer)
    with opened(written(run, tmp_path / "b.tgz")) as bundle:
        assert [path.name for path in bundle.folder.iterdir() if path.suffix == ".bin"] == []
        images = bundle.images()
        assert np.array_equal(OrtRunner(bundle.model, oracle=True)(images), bundle.samples.expected.logits)


def test_run_is_left_as_it_was(run: RunFolder, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in run.path.rglob("*")}
    written(run, tmp_path / "b.tgz")
    assert {path: path.read_bytes() for path in run.path.rglob("*")} == before


def test_file_that_is_there_is_replaced_only_if_asked(run: RunFolder, tmp_path: Path) -> None:
    output = tmp_path / "b.tgz"
    output.write_bytes(b"mine")
    with pytest.raises(InputError, match="is there already"):
        written(run, output)
    assert output.read_bytes() == b"mine"
    assert written(run, output, force=True).read_bytes()[:2] == b"\x1f\x8b"
    with pytest.raises(InputError, match="is a folder"):
        written(run, tmp_path, force=True)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("model.onnx", "was changed after `faq-deploy export` wrote it"),
        ("quantized.pt", "was changed after"),
        ("samples.npz", "was changed after"),
    ],
)
def test_stale_or_changed_run_is_refused(run: RunFolder, tmp_path: Path, damage: str, said: str) -> None:
    with (run / damage).open("ab") as stream:
        stream.write(b"x")
    with pytest.raises(InputError, match=said):
        written(run, tmp_path / "b.tgz")
    assert not (tmp_path / "b.tgz").exists()


def test_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no run"):
        written(RunFolder(tmp_path / "none"), tmp_path / "b.tgz")


def test_file_that_does_not_say_how_images_are_prepared_is_refused(tmp_path: Path) -> None:
    run = run_with_samples(tmp_path / "r", metadata={"target": "tensorrt"})
    with pytest.raises(InputError, match="does not say how its images are prepared"):
        written(run, tmp_path / "b.tgz")


def test_float_layers_are_seen_in_the_file(tmp_path: Path) -> None:
    quantized = read_graph(load_model(classifier(tmp_path / "a.onnx")))
    floating = read_graph(load_model(classifier(tmp_path / "b.onnx", gemm=True)))
    assert (holds_float_weights(quantized), holds_float_weights(floating)) == (False, True)


def test_metadata_of_others_are_no_facts(tmp_path: Path) -> None:
    model = onnx.load(classifier(tmp_path / "a.onnx", metadata={"bits": 4}))
    for key, value in (("author", "x"), ("faq_deploy.broken", "{")):
        entry = model.metadata_props.add()
        entry.key, entry.value = key, value
    assert metadata_of(model) == {"bits": 4}
