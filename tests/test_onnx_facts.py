"""What an ONNX file says of itself, and files that are none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from engines.errors import InputError
from engines.files import sha256_of
from engines.onnx_facts import OnnxFacts, read
from tests.engine_nets import classifier


def test_our_file_tells_target_bits_and_inputs(tmp_path: Path) -> None:
    path = classifier(tmp_path / "model.onnx", metadata={"target": "tensorrt", "recipe": {"bits": 4}})
    assert read(path) == OnnxFacts(path, sha256_of(path), "tensorrt", 4, {"input": (-1, 3, 16, 16)}, None)


def test_another_tools_file_tells_nothing(tmp_path: Path) -> None:
    path = classifier(tmp_path / "model.onnx", input_shape=(4, 3, 16, 16))
    model = onnx.load(path)
    model.metadata_props.add(key="faq_deploy.recipe", value="not JSON")
    model.metadata_props.add(key="faq_deploy.target", value="[1]")
    onnx.save(model, path)
    facts = read(path)
    assert (facts.target, facts.bits, facts.inputs) == (None, None, {"input": (4, 3, 16, 16)})


def test_first_node_with_unsigned_codes_is_named(tmp_path: Path) -> None:
    path = classifier(tmp_path / "model.onnx", zero_point=np.uint8(0))
    assert read(path).unsigned_node == "x.quantize"


def test_unsigned_zero_point_in_a_constant_node_is_found(tmp_path: Path) -> None:
    path = classifier(tmp_path / "model.onnx", zero_point=np.uint8(0))
    model = onnx.load(path)
    (point,) = [tensor for tensor in model.graph.initializer if tensor.name == "x.zero_point"]
    model.graph.initializer.remove(point)
    model.graph.node.insert(0, onnx.helper.make_node("Constant", [], ["x.zero_point"], value=point))
    onnx.save(model, path)
    assert read(path).unsigned_node == "x.quantize"


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"net\.onnx does not exist"):
        read(tmp_path / "net.onnx")


@pytest.mark.parametrize("data", [b"", b"<html>not found</html>", None], ids=["empty", "HTML", "cut in half"])
def test_file_that_is_no_onnx_is_refused(tmp_path: Path, data: bytes | None) -> None:
    model = classifier(tmp_path / "model.onnx")
    whole = model.read_bytes()
    model.write_bytes(whole[: len(whole) // 2] if data is None else data)
    with pytest.raises(InputError, match=r"model\.onnx is not an ONNX file, or was cut short"):
        read(model)


def test_weights_in_another_file_belong_to_the_hash(tmp_path: Path) -> None:
    model = onnx.load(classifier(tmp_path / "model.onnx"))
    path, data = tmp_path / "model.onnx", tmp_path / "weights.bin"
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    before = read(path)
    assert before.data == (data,)
    assert before.sha256 != sha256_of(path)
    data.write_bytes(data.read_bytes()[:-1] + b"\x7f")
    assert read(path).sha256 != before.sha256
    data.unlink()
    with pytest.raises(InputError, match=r"weights\.bin is missing"):
        read(path)
