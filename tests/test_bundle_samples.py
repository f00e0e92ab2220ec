"""The samples of a bundle: pictures come back to the byte, hashes mean what the module says, damage is named."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from engines import bundle_samples
from engines.bundle_samples import (
    EXPECTED,
    code_hash,
    constant_hashes,
    input_hashes,
    load_samples,
    pixels_of_run,
    write_samples,
)
from engines.errors import InputError
from engines.ort import OrtRunner
from engines.preprocess import Preprocessing, normalize
from engines.qdq_graph import QdqGraph, load_model, read_graph
from tests.engine_nets import classifier

SPEC = Preprocessing(crop=16, mean=(0.5, 0.4, 0.3), std=(0.25, 0.2, 0.3))
PIXELS = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
LABELS = np.array([2, 0, 9])


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return classifier(tmp_path / "model.onnx")


def graph_of(model: Path) -> QdqGraph:
    return read_graph(load_model(model))


@pytest.fixture
def folder(model: Path, tmp_path: Path) -> Path:
    """Three samples, written."""
    seen: list[tuple[int, int]] = []
    written = write_samples(
        tmp_path / "b", model, graph_of(model), PIXELS, LABELS, SPEC, lambda *said: seen.append(said)
    )
    assert written == ("samples/00.png", "samples/01.png", "samples/02.png", EXPECTED)
    assert seen == [(2, 3), (1, 3)]
    return tmp_path / "b"


def test_pictures_and_labels_come_back_to_the_byte(folder: Path) -> None:
    samples = load_samples(folder, SPEC)
    assert np.array_equal(samples.pixels, PIXELS)
    assert samples.labels.tolist() == LABELS.tolist()


def test_expected_codes_and_logits_are_the_oracles(folder: Path, model: Path) -> None:
    expected = load_samples(folder, SPEC).expected
    runner = OrtRunner(model, oracle=True)
    images = normalize(PIXELS, SPEC)
    codes = runner.codes(images)
    assert expected.tensors == ("x.codes", "p.codes") == tuple(runner.code_names)
    assert np.array_equal(expected.logits, runner(images))
    assert np.abs(expected.logits).max() > 0
    for number, name in enumerate(expected.tensors):
        assert np.array_equal(expected.first_codes[name], codes[name][0])
        for image in range(3):
            wanted = hashlib.sha256(codes[name][image].astype("<i2").tobytes()).digest()
            assert expected.codes[image, number].tobytes() == wanted


def test_inputs_are_hashed_as_little_endian_float32(folder: Path) -> None:
    found = load_samples(folder, SPEC).expected.inputs
    wanted = hashlib.sha256(normalize(PIXELS, SPEC)[1].astype("<f4").tobytes()).digest()
    assert found[1].tobytes() == wanted
    assert np.array_equal(found, input_hashes(np.asfortranarray(normalize(PIXELS, SPEC))))


def test_every_weight_has_a_hash_of_its_own(folder: Path, model: Path, tmp_path: Path) -> None:
    constants = load_samples(folder, SPEC).expected.constants
    graph = graph_of(model)
    assert constants == constant_hashes(graph)
    assert list(constants) == [tensor.name for tensor in graph.model.graph.initializer]
    other = constant_hashes(graph_of(classifier(tmp_path / "other.onnx", seed=1)))
    assert {name for name in constants if constants[name] != other[name]} == {
        "conv.weight_codes",
        "head.weight_codes",
        "head.weight",
    }


def test_same_samples_give_the_same_bytes(folder: Path, model: Path, tmp_path: Path) -> None:
    write_samples(tmp_path / "again", model, graph_of(model), PIXELS, LABELS, SPEC)
    for name in ("samples/00.png", EXPECTED):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()


@given(arrays.arrays(np.int64, st.tuples(st.integers(0, 3), st.integers(0, 4)), elements=st.integers(-32768, 32767)))
def test_hash_depends_on_the_codes_alone(codes: np.ndarray) -> None:
    assert code_hash(codes) == code_hash(np.asfortranarray(codes))
    assert code_hash(codes) == hashlib.sha256(codes.astype("<i2").tobytes()).digest()


def test_codes_beyond_16_bits_are_refused() -> None:
    with pytest.raises(InputError, match="16 bits"):
        code_hash(np.array([32768]))


def test_grey_pictures_have_one_channel(tmp_path: Path) -> None:
    model = classifier(tmp_path / "m.onnx", input_shape=("N", 3, 16, 16))
    spec = Preprocessing(mean=(0.5,), std=(0.5,), color="L")
    grey = PIXELS[..., :1]
    with pytest.raises(InputError, match=r"not \(2, 1, 16, 16\)"):
        write_samples(tmp_path / "b", model, graph_of(model), grey, LABELS, spec)
    with Image.open(tmp_path / "b" / "samples" / "00.png") as image:
        assert (image.mode, np.asarray(image).tolist()) == ("L", grey[0, :, :, 0].tolist())


@pytest.mark.parametrize("name", ["labels", "inputs", "tensors", "codes", "logits", "constants", "codes_1"])
def test_missing_array_is_named(folder: Path, name: str) -> None:
    with np.load(folder / EXPECTED) as stored:
        kept = {key: stored[key] for key in stored.files if key != name}
    np.savez_compressed(folder / EXPECTED, **kept)
    with pytest.raises(InputError, match=f"{name} is missing"):
        load_samples(folder, SPEC)


@pytest.mark.parametrize("name", ["labels", "inputs", "codes", "logits", "constant_hashes"])
def test_array_with_a_row_too_few_is_refused(folder: Path, name: str) -> None:
    with np.load(folder / EXPECTED) as stored:
        kept = {key: stored[key] for key in stored.files}
    kept[name] = kept[name][:-1]
    np.savez_compressed(folder / EXPECTED, **kept)
    with pytest.raises(InputError, match="not what belongs to its samples"):
        load_samples(folder, SPEC)


def test_pickle_is_never_opened(folder: Path) -> None:
    np.savez_compressed(folder / EXPECTED, labels=np.array([{"a": 1}], object))
    with pytest.raises(InputError, match=r"expected\.npz is damaged"):
        load_samples(folder, SPEC)


def test_arrays_that_unpack_to_gigabytes_are_not_unpacked(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez_compressed(folder / EXPECTED, labels=np.zeros(1 << 20, np.int64))
    monkeypatch.setattr(bundle_samples, "_MOST_BYTES", 1 << 20)
    monkeypatch.setattr(np, "load", None)  # whoever calls it fails
    with pytest.raises(InputError, match=r"expected\.npz would unpack to 0\.0 GB, which no sample needs"):
        load_samples(folder, SPEC)


def test_pictures_that_unpack_to_gigabytes_are_not_unpacked(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with np.load(folder / EXPECTED) as stored:
        np.savez(folder / EXPECTED, **{name: stored[name] for name in stored.files})
    Image.new("RGB", (400, 100)).save(folder / "samples" / "00.png")
    monkeypatch.setattr(bundle_samples, "_MOST_BYTES", 300_000)
    with pytest.raises(InputError, match="3 pictures of 400x100 pixels fit no network"):
        load_samples(folder, SPEC)


def test_array_that_says_it_is_larger_than_memory_is_refused(folder: Path) -> None:
    header = b"{'descr': '<i8', 'fortran_order': False, 'shape': (%d,), }" % (1 << 60)
    head = b"\x93NUMPY\x01\x00" + (len(header) + 1).to_bytes(2, "little") + header + b"\n"
    with zipfile.ZipFile(folder / EXPECTED, "w") as archive:
        archive.writestr("labels.npy", head + bytes(8))
    with pytest.raises(InputError, match=r"expected\.npz (is damaged|says that it holds more)"):
        load_samples(folder, SPEC)


def test_picture_of_another_kind_or_size_is_refused(folder: Path) -> None:
    Image.new("RGB", (8, 8)).save(folder / "samples" / "01.png")
    with pytest.raises(InputError, match="differ in size"):
        load_samples(folder, SPEC)
    Image.new("L", (16, 16)).save(folder / "samples" / "01.png")
    with pytest.raises(InputError, match=r"01\.png is of mode L"):
        load_samples(folder, SPEC)
    (folder / "samples" / "01.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"samples/01\.png can't be used"):
        load_samples(folder, SPEC)


def test_damaged_samples_of_a_run_are_named(tmp_path: Path) -> None:
    path = tmp_path / "samples.npz"
    path.write_bytes(b"PK")
    with pytest.raises(InputError, match=r"samples\.npz is damaged"):
        pixels_of_run(path)
    np.savez(path, pixels=PIXELS, labels=LABELS[:2])
    with pytest.raises(InputError, match="does not hold pixels and labels"):
        pixels_of_run(path)
