"""What a builder gets: the exported file itself where nothing has to change, else a temporary one."""

from __future__ import annotations

import errno
import tempfile
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from engines import engine_source, onnx_facts
from engines.build_options import BuildOptions
from engines.engine_source import EngineSource, temporary_onnx
from engines.errors import WriteError
from engines.prepare import Prepared
from tests.engine_nets import DEFAULTS, classifier

CHANGED = Prepared(onnx.ModelProto(producer_name="changed"), ("It was changed.",))


def _written() -> AbstractContextManager[Path]:
    return temporary_onnx(onnx.ModelProto())


def _source(path: Path, **flags: bool) -> EngineSource:
    with engine_source.engine_source(onnx_facts.read(path), "tensorrt-rtx", 86, DEFAULTS, **flags) as source:
        assert source.path.is_file()
        return source


def test_network_that_needs_no_change_is_built_from_its_own_file(tmp_path: Path) -> None:
    path = classifier(tmp_path / "model.onnx")
    source = _source(path)
    assert (source.path, source.notes) == (path, ())
    assert source.model == onnx.load(path)


def test_prepared_network_is_in_a_temporary_file_that_goes_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = classifier(tmp_path / "model.onnx")
    monkeypatch.setattr(engine_source, "prepare", lambda *arguments: CHANGED)
    with engine_source.engine_source(onnx_facts.read(path), "tensorrt-rtx", 86, DEFAULTS) as source:
        assert source.path != path
        assert onnx.load(source.path) == source.model == CHANGED.model
        assert source.notes == ("It was changed.",)
    assert not source.path.parent.exists()


def test_baseline_is_the_net_without_quantizers_in_fp16(tmp_path: Path) -> None:
    source = _source(classifier(tmp_path / "model.onnx"), baseline=True)
    operators = {node.op_type for node in source.model.graph.node}
    assert not operators & {"QuantizeLinear", "DequantizeLinear"}
    halves = [t.name for t in source.model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT16]
    assert len(halves) == 2  # the weights of both convolutions
    assert "never compared" in source.notes[0]


def test_baseline_does_not_take_options_that_change_its_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[BuildOptions] = []

    def note(model: onnx.ModelProto, runtime: str, sm: int | None, options: BuildOptions) -> Prepared:
        asked.append(options)
        return Prepared(model)

    monkeypatch.setattr(engine_source, "prepare", note)
    facts = onnx_facts.read(classifier(tmp_path / "model.onnx"))
    options = BuildOptions(int4_linear=True, fp16_rest=True)
    for baseline in (False, True):
        with engine_source.engine_source(facts, "tensorrt", None, options, baseline=baseline):
            pass
    assert asked == [options, DEFAULTS]


def test_network_too_large_for_one_file_has_its_weights_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_source, "_LARGEST_BYTES", 100)
    model = onnx.load(classifier(tmp_path / "model.onnx"))
    weight = np.arange(4096, dtype=np.float32)
    model.graph.initializer.append(numpy_helper.from_array(weight, "large"))
    with temporary_onnx(model) as path:
        assert sorted(file.name for file in path.parent.iterdir()) == ["model.data", "model.onnx"]
        loaded = onnx.load(path)
    assert [numpy_helper.to_array(t).tolist() for t in loaded.graph.initializer if t.name == "large"] == [
        weight.tolist()
    ]
    assert model.graph.initializer[-1].raw_data == weight.tobytes()  # the model itself keeps its weights


def test_full_disk_is_a_sentence_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def full(path: Path, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(WriteError, match="No space left on device") as caught, _written():
        raise AssertionError("there is no file")
    assert caught.value.remedy == "free some disk space, or choose another disk."
    assert list(tmp_path.iterdir()) == []


def test_missing_temporary_folder_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    with pytest.raises(WriteError, match="A temporary folder could not be made") as caught, _written():
        raise AssertionError("there is no file")
    assert "TMPDIR" in caught.value.remedy
