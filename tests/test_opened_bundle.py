"""Opening a bundle: what was signed again but does not belong together, or can't be run, is one sentence."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.build_options import BuildOptions
from engines.bundle import write_bundle
from engines.bundle_archive import extract
from engines.errors import InputError, WriteError
from engines.opened_bundle import opened
from engines.verify import verify_bundle
from tests.bundles import CLASSES, resigned, run_with_samples
from tests.engine_nets import VERSION


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle")
    return write_bundle(run_with_samples(folder / "r18"), folder / "r18.tgz", version=VERSION).path


def read(bundle: Path) -> None:
    with opened(bundle):
        pass


def test_bundle_is_read_as_it_was_written(bundle: Path) -> None:
    with opened(bundle) as found:
        assert (found.classes, found.modules) == (tuple(CLASSES), {"conv": "stem.conv", "head": "classifier"})
        assert (found.images().shape, found.samples.expected.tensors) == ((5, 3, 16, 16), ("x.codes", "p.codes"))
        assert found.model.is_file()
    assert not found.folder.exists()


def test_message_names_the_bundle_and_not_a_folder_that_is_gone(bundle: Path) -> None:
    with pytest.raises(InputError) as caught, opened(bundle) as found:
        raise InputError(f"{found.model} is odd.", "bundle it again.")
    assert (caught.value.what, caught.value.remedy) == (f"{bundle}: model.onnx is odd.", "bundle it again.")
    with pytest.raises(WriteError) as full, opened(bundle) as found:
        raise WriteError(f"{found.model} could not be written.", "free some space.")
    assert full.value.what == f"{found.model} could not be written."  # the place is the point


def test_preprocessing_of_another_network_is_refused(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    extract(bundle, tmp_path / "in")
    text = (tmp_path / "in" / "preprocessing.json").read_text()
    changes = {"preprocessing.json": text.replace("0.25", "0.5").encode()}
    other = resigned(bundle, tmp_path / "other.tgz", tmp_path / "unpacked", changes)
    with pytest.raises(InputError, match="is not how the images of its model were prepared"):
        read(other)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("preprocessing.json", b"{", "does not say how images are prepared"),
        ("classes.json", b"{", "is not JSON"),
        ("model.onnx", b"\x00", "is not an ONNX file"),
        ("expected.npz", b"PK", r"expected\.npz is damaged"),
    ],
)
def test_part_that_is_none_is_named(bundle: Path, tmp_path: Path, name: str, text: bytes, said: str) -> None:
    with pytest.raises(InputError, match=said):
        read(resigned(bundle, tmp_path / "other.tgz", tmp_path / "unpacked", {name: text}))


def with_model(bundle: Path, tmp_path: Path, change: Callable[[onnx.ModelProto], None]) -> Path:
    """The bundle with another model, signed again."""
    with opened(bundle) as found:
        model = onnx.load(found.model)
    change(model)
    return resigned(bundle, tmp_path / "o.tgz", tmp_path / "u", {"model.onnx": model.SerializeToString()})


def _wrong_shape(model: onnx.ModelProto) -> None:
    model.graph.initializer[2].dims[2] = 95


def _unknown_input(model: onnx.ModelProto) -> None:
    model.graph.node[-2].input[1] = "nowhere"


def _outside(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[2]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../etc/passwd")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_wrong_shape, "model.onnx is damaged: the tensor conv.weight_codes has 216 of 6,840 bytes"),
        (_unknown_input, "nowhere"),
        (_outside, "lies outside the folder"),
    ],
)
def test_model_that_no_runtime_should_see_is_refused(
    bundle: Path, tmp_path: Path, change: Callable[[onnx.ModelProto], None], said: str
) -> None:
    other = with_model(bundle, tmp_path, change)
    with pytest.raises(InputError, match=said) as caught:
        read(other)
    assert caught.value.what.startswith(f"{other}: ")
    assert tempfile.gettempdir() + "/faq-deploy-" not in caught.value.what
    assert "\n" not in caught.value.what


def test_class_names_of_another_model_are_refused(bundle: Path, tmp_path: Path) -> None:
    names = json.dumps(CLASSES[::-1]).encode()
    other = resigned(bundle, tmp_path / "o.tgz", tmp_path / "u", {"classes.json": names})
    with pytest.raises(InputError, match=r"classes\.json does not name the classes of its model"):
        read(other)


@settings(max_examples=60)
@given(st.data())
def test_changed_model_that_was_signed_again_is_a_sentence_or_a_verdict(bundle: Path, data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as name:
        with opened(bundle) as found:
            text = bytearray(found.model.read_bytes())
        for _ in range(data.draw(st.integers(1, 3))):
            text[data.draw(st.integers(0, len(text) - 1))] ^= data.draw(st.integers(1, 255))
        other = resigned(bundle, Path(name) / "o.tgz", Path(name) / "u", {"model.onnx": bytes(text)})
        try:
            exit_code = verify_bundle(other, None, ["onnxruntime"], BuildOptions(), version=VERSION).exit_code
        except InputError:
            return
        assert exit_code in {0, 1}  # 0 where only a name or a comment changed


def test_model_with_other_tensors_is_refused(bundle: Path, tmp_path: Path) -> None:
    with opened(bundle) as found:
        text = found.model.read_bytes()
    other = resigned(bundle, tmp_path / "o.tgz", tmp_path / "u", {"model.onnx": text.replace(b"p.codes", b"q.codes")})
    with pytest.raises(InputError, match="has other tensors than its samples"):
        read(other)
